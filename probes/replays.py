"""Replays: contexts of interventions, and parts of their passes that gradient checkpointing runs a second time.

Such a part must be edited as it was the first time, by the contexts that were in force then and by no other, even where
other passes have come between, and where the context is over.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import nn

from probes.passes import Masks, forced_rows

#: Where transformers keeps a block's checkpointing function.
_CHECKPOINT = "_gradient_checkpointing_func"


class Pass(NamedTuple):
    """What operators are told about one forward pass: its masks by kind of position, and its conversations."""

    masks: Masks
    rows: Sequence[int] | None


_REPLAYED: ContextVar[Mapping["Scope", Pass | None] | None] = ContextVar("_REPLAYED", default=None)


@dataclass(eq=False)
class Scope:
    """One context of interventions: the masks of the pass under way (none between passes), and whether it is over."""

    masks: Masks = field(default_factory=dict)
    over: bool = False

    @property
    def current(self) -> Pass | None:
        """The pass that is being run, or run again; None where this context edits nothing."""
        passes = _REPLAYED.get()
        if passes is not None:
            return passes.get(self)
        return Pass(self.masks, forced_rows()) if self.masks else None


@dataclass(frozen=True, eq=False)
class _Remembering:
    """A block's checkpointing function that binds what it runs to the pass in which it was called.

    `edits()` is a context in which the edits of the scope's block are in place.
    """

    function: Callable[..., Any]
    scope: Scope
    edits: Callable[[], AbstractContextManager[Any]]

    def __call__(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        now = self.scope.current
        now = now and Pass(dict(now.masks), now.rows)

        def again(*args: Any, **kwargs: Any) -> Any:
            with replayed({**(_REPLAYED.get() or {}), self.scope: now}):
                if not self.scope.over:
                    return run(*args, **kwargs)
                with self.edits():
                    return run(*args, **kwargs)

        return self.function(again, *args, **kwargs)


def replaying() -> bool:
    """Whether a part of a pass is run again, or a pass is run aside from all interventions."""
    return _REPLAYED.get() is not None


@contextmanager
def replayed(passes: Mapping[Scope, Pass | None]) -> Iterator[None]:
    """Let scopes see the `passes` given; a scope without one edits nothing."""
    token = _REPLAYED.set(passes)
    try:
        yield
    finally:
        _REPLAYED.reset(token)


def remember(block: nn.Module, scope: Scope, edits: Callable[[], AbstractContextManager[Any]]) -> None:
    """Have the block's checkpointing function, where there is one, keep the pass of `scope`."""
    function = vars(block).get(_CHECKPOINT)
    if function is not None and scope not in _scopes(function):
        setattr(block, _CHECKPOINT, _Remembering(function, scope, edits))


def forget(block: nn.Module, scope: Scope) -> None:
    """Undo `remember`; what has been run keeps its pass."""
    function = vars(block).get(_CHECKPOINT)
    if isinstance(function, _Remembering):
        setattr(block, _CHECKPOINT, _without(function, scope))


def _scopes(function: Callable[..., Any]) -> Iterator[Scope]:
    while isinstance(function, _Remembering):
        yield function.scope
        function = function.function


def _without(function: Callable[..., Any], scope: Scope) -> Callable[..., Any]:
    if not isinstance(function, _Remembering):
        return function
    inner = _without(function.function, scope)
    return inner if function.scope is scope else replace(function, function=inner)
