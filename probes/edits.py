"""Edits: operators, and what they do to the activations of a pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from probes.activations import Site
from probes.errors import InputError
from probes.passes import Positions
from probes.replays import Pass, Scope
from probes.sites import Point

Tap = Callable[[Tensor], Tensor | None]


@runtime_checkable
class Operator(Protocol):
    """A change of the residual stream: `layers` are the blocks that it edits, `positions` the tokens where it acts.

    It edits the blocks' outputs, or another `site` where it has an attribute of that name (see `Site`). An operator may
    also have `for_rows(indices) -> Operator`: `sample` and `capture` then bind it to the conversations of every batch
    by their indices, so that one run can hold another edit for each conversation. It may have
    `for_pass(masks) -> Operator`: `intervene` then binds it, before every call, to the masks of all kinds of positions
    in the pass, by kind; a context keeps one mapping, whose masks change from pass to pass.
    """

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the blocks that are edited."""
        ...

    @property
    def positions(self) -> Positions:
        """Which tokens are edited."""
        ...

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"], *, layer: int, mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the edited activations; outside `mask` they come back as they were."""
        ...


@dataclass(frozen=True)
class Edit:
    """What is done at one point of one block."""

    block: nn.Module
    point: Point
    tap: Tap


def operators_for(operators: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    """Bind operators that differ between conversations to the conversations of one batch."""
    return [op.for_rows(rows) if hasattr(op, "for_rows") else op for op in operators]


def site_of(operator: Any) -> Site:
    """The site that an operator edits."""
    return getattr(operator, "site", "resid_post")


def editor(operators: Sequence[Any], layer: int, scope: Scope) -> Tap:
    """What makes the activations at one site of one block into those that the operators leave."""

    def edit(hidden: Tensor) -> Tensor | None:
        now = scope.current
        return None if now is None else _applied(operators, layer, now, hidden)

    return edit


def middle_editor(operators: Sequence[Any], layer: int, scope: Scope) -> tuple[Tap, Tap]:
    """An edit of the middle of a block, made in what attention adds: a' = edit(pre + a) - pre.

    The first of the two holds the block's input, the second edits what attention adds.
    """
    held: list[Tensor] = []

    def hold(pre: Tensor) -> None:
        held[:] = [pre]

    def edit(added: Tensor) -> Tensor | None:
        now = scope.current
        if now is None:
            return None
        if not held:
            raise InputError(f"resid_mid of block {layer} cannot be edited while it is checkpointed: edit resid_post")
        pre = held.pop()
        moved = _applied(operators, layer, now, pre + added)
        step = (moved.to(torch.promote_types(moved.dtype, torch.float32)) - pre).to(added.dtype)
        touched = torch.stack([now.masks[operator.positions] for operator in operators]).any(0)
        return torch.where(touched[..., None].to(added.device), step, added)

    return hold, edit


def _applied(operators: Sequence[Any], layer: int, now: Pass, hidden: Tensor) -> Tensor:
    for operator in operators if now.rows is None else operators_for(operators, now.rows):
        operator = operator.for_pass(now.masks) if hasattr(operator, "for_pass") else operator
        edited = operator(hidden, layer=layer, mask=now.masks[operator.positions].to(hidden.device))
        if edited.shape != hidden.shape:
            raise InputError(f"{operator!r} made {tuple(edited.shape)} of {tuple(hidden.shape)}: keep the shape")
        hidden = edited.to(hidden.dtype)
    return hidden
