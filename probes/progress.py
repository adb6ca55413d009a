"""How long work reports its progress: a callable, so that library code prints nothing."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Anything that can be called as `progress(done, total, what)`, for instance to move a bar."""

    def __call__(self, done: int, total: int, what: str, /) -> object:
        """Take note that `done` of `total` pieces of the work called `what` are finished."""
        ...


def silent(done: int, total: int, what: str, /) -> None:
    """Ignore the report: the progress that is used where the caller gives none."""
