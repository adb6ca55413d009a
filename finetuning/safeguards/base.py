"""What a safeguard is: a change of a fine-tune's rows, losses, passes or weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from probes.conversations import Conversation, Rendered
from probes.models import Model

if TYPE_CHECKING:
    from finetuning.steps import Schedule


class StopTraining(Exception):
    """Raised by a guard's `after_step` or by `on_step`: no more steps are taken, and the fine-tune ends as if done."""


class Guard:
    """A safeguard at work on one model in training. The loop calls, at every optimiser step:

    `around(batch)` and within it the forward pass of a (micro-)batch, then `on_batch`, whose value is backpropagated
    with the batch's loss; once, `on_step`; after the optimiser has moved the weights, `after_step`. `finish` comes when
    all steps are done; `close` comes last, after an error too, and leaves no hook. Here each of them does nothing.
    """

    def around(self, batch: Rendered) -> AbstractContextManager[Any]:
        """What holds while the model reads one (micro-)batch of the training rows."""
        return nullcontext()

    def on_batch(self, batch: Rendered, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, ""] | None:
        """The weighted penalty of one (micro-)batch, as a mean over its response tokens.

        The loop weighs it by the batch's share of the step's response tokens, as it does the loss, so that cutting a
        batch into pieces changes no penalty. `logits` are the model's own, with the hooks of `around` in force.
        """
        return None

    def on_step(self, step: int) -> Float[Tensor, ""] | None:
        """The weighted penalty on anything but the training rows, once an optimiser step (0-based)."""
        return None

    def after_step(self, step: int) -> None:
        """Called when the weights of a step (0-based) are in place; may change them."""

    def finish(self) -> None:
        """Called once when all steps are done, and not after an error; may change the weights."""

    def close(self) -> None:
        """Called once when training ends."""

    def state(self) -> dict[str, Any]:
        """What a resumed fine-tune needs to go on, as JSON: the number of steps done says the rest."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""


@dataclass(frozen=True, eq=False)  # a subclass that compares no fields must not take over a comparison of none
class Safeguard:
    """Settings of a safeguard. Subclasses override `rows`, which changes the data, or `attach`, which does the rest."""

    def rows(self, rows: Sequence[Conversation], *, seed: int) -> list[Conversation]:
        """The rows to train on in place of `rows`."""
        return list(rows)

    def longer(self, schedule: Schedule) -> Schedule:
        """The schedule under which as many of the given rows are seen as without the safeguard."""
        return schedule

    def attach(self, model: Model, *, seed: int) -> Guard:
        """Begin with a model whose weights are still those of the start (an adapter on it is at zero)."""
        return Guard()


@dataclass(frozen=True)
class Together(Safeguard):
    """Several safeguards at once: rows are changed in their order, penalties add up."""

    parts: tuple[Safeguard, ...]

    def rows(self, rows: Sequence[Conversation], *, seed: int) -> list[Conversation]:
        """The rows as every part leaves them."""
        for part in self.parts:
            rows = part.rows(rows, seed=seed)
        return list(rows)

    def longer(self, schedule: Schedule) -> Schedule:
        """The schedule as every part lengthens it."""
        for part in self.parts:
            schedule = part.longer(schedule)
        return schedule

    def attach(self, model: Model, *, seed: int) -> Guard:
        """Begin with every part."""
        return _Guards([part.attach(model, seed=seed) for part in self.parts])


class _Guards(Guard):
    def __init__(self, parts: Sequence[Guard]) -> None:
        self.parts = parts

    @contextmanager
    def around(self, batch: Rendered) -> Iterator[None]:
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.around(batch))
            yield

    def on_batch(self, batch: Rendered, logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, ""] | None:
        return _sum([part.on_batch(batch, logits) for part in self.parts])

    def on_step(self, step: int) -> Float[Tensor, ""] | None:
        return _sum([part.on_step(step) for part in self.parts])

    def after_step(self, step: int) -> None:
        for part in self.parts:
            part.after_step(step)

    def finish(self) -> None:
        for part in self.parts:
            part.finish()

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def state(self) -> dict[str, Any]:
        return {str(i): part.state() for i, part in enumerate(self.parts)}

    def restore(self, state: dict[str, Any]) -> None:
        for i, part in enumerate(self.parts):
            part.restore(state[str(i)])


def _sum(terms: Sequence[Tensor | None]) -> Tensor | None:
    found = [term for term in terms if term is not None]
    return torch.stack(found).sum() if found else None
