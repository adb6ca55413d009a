"""Operators that treat the rows of a batch differently, so that many treatments share one run of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from geometry.steering.operators import check_positions, masked, wide
from probes.errors import InputError
from probes.hooks import Operator, Positions


@dataclass(frozen=True, eq=False)
class PerRow:
    """Apply to each row its own operator: row r gets `operators[rows[r]]`, or nothing where `rows[r]` is -1.

    All operators share one kind of positions. In `sample` and `capture`, a row is a conversation of the whole call:
    they bind the rows of each batch through `for_rows`. Called directly, a row is a row of the batch.
    """

    operators: Sequence[Operator]
    rows: Sequence[int]
    layers: tuple[int, ...] = field(init=False)
    positions: Positions = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "operators", tuple(self.operators))
        object.__setattr__(self, "rows", tuple(self.rows))
        kinds = {operator.positions for operator in self.operators}
        if len(kinds) != 1:
            raise InputError(f"operators at positions {sorted(kinds)} in one PerRow: make one PerRow for each kind")
        _check_rows(self.rows, len(self.operators), "operators")
        object.__setattr__(self, "layers", tuple(sorted({i for operator in self.operators for i in operator.layers})))
        object.__setattr__(self, "positions", kinds.pop())

    def for_rows(self, indices: Sequence[int]) -> "PerRow":
        """The same treatment for a batch that holds the rows `indices`, in that order."""
        return PerRow(self.operators, _picked(self.rows, indices))

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"], *, layer: int, mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the activations with every row edited by its own operator where `mask` is true."""
        _check_batch(self.rows, len(activations))
        edited, order = [], []
        for number in sorted(set(self.rows)):
            mine = [row for row, other in enumerate(self.rows) if other == number]
            part, operator = activations[mine], self.operators[number] if number >= 0 else None
            acts = operator is not None and layer in operator.layers
            edited.append(operator(part, layer=layer, mask=mask[mine]) if operator is not None and acts else part)
            order += mine
        return torch.cat(edited)[torch.tensor(order, device=activations.device).argsort()]


@dataclass(frozen=True, eq=False)
class AddPerRow:
    """Add to each row its own direction: row r gets `directions[layer][rows[r]]`, raw, or nothing where `rows[r]` is
    -1.

    The fast form of `PerRow` over `Add`: one gather and one sum a block, however many directions there are.
    """

    directions: Mapping[int, Float[Tensor, "control d_model"]]
    rows: Sequence[int]
    positions: Positions = "response"
    layers: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.directions:
            raise InputError("AddPerRow without directions: give at least one block's table")
        object.__setattr__(self, "rows", tuple(self.rows))
        object.__setattr__(self, "layers", tuple(sorted(self.directions)))
        check_positions(self.positions)
        for table in self.directions.values():
            _check_rows(self.rows, len(table), "directions")

    def for_rows(self, indices: Sequence[int]) -> "AddPerRow":
        """The same treatment for a batch that holds the rows `indices`, in that order."""
        return AddPerRow(self.directions, _picked(self.rows, indices), self.positions)

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"], *, layer: int, mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the activations with every row's direction added where `mask` is true."""
        _check_batch(self.rows, len(activations))
        before = wide(activations)
        rows = torch.tensor(self.rows, device=activations.device)
        step = self.directions[layer].to(before)[rows.clamp(min=0)]
        acting = mask & rearrange(rows >= 0, "batch -> batch 1")
        return masked(activations, before + rearrange(step, "batch d_model -> batch 1 d_model"), acting)


def _picked(rows: Sequence[int], indices: Sequence[int]) -> tuple[int, ...]:
    if indices and max(indices) >= len(rows):
        raise InputError(f"row {max(indices)}: the operator knows {len(rows)} rows; give it one entry per conversation")
    return tuple(rows[index] for index in indices)


def _check_rows(rows: Sequence[int], n: int, what: str) -> None:
    if any(not -1 <= row < n for row in rows):
        raise InputError(
            f"rows name {what} {min(rows)} to {max(rows)}, but there are {n}; use 0 to {n - 1}, or -1 for none"
        )


def _check_batch(rows: Sequence[int], batch: int) -> None:
    if len(rows) != batch:
        raise InputError(
            f"batch of {batch} rows, but the operator was given {len(rows)}: bind it with for_rows(indices)"
        )
