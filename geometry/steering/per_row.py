"""Operators that treat the rows of a batch differently, so that many treatments share one run of the model."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from geometry.steering.operators import RankOne, check_positions, masked, wide
from probes.activations import Site
from probes.edits import site_of
from probes.errors import InputError
from probes.hooks import Operator, Positions


class Table(NamedTuple):
    """The rank-one edits of all operators at one block, stacked; `known` marks the operators that have one there."""

    known: Bool[Tensor, " operator"]
    step: Float[Tensor, "operator d_model"]
    unit: Float[Tensor, "operator d_model"]
    low: Float[Tensor, " operator"]
    high: Float[Tensor, " operator"]


@dataclass(frozen=True, eq=False)
class PerRow:
    """Apply to each row its own operator: row r gets `operators[rows[r]]`, or nothing where `rows[r]` is -1.

    All operators share one kind of positions and one site. In `sample` and `capture`, a row is a conversation of the
    whole call: they bind the rows of each batch through `for_rows`. Called directly, a row is a row of the batch.
    Operators that move activations along one direction (`Add`, `AddLatent`, `SetProjection`, `Cap`, `Floor`, `Ablate`
    of a vector) are applied to all rows in one formula, so that a hundred of them cost no more than one; others take a
    call each.
    """

    operators: Sequence[Operator]
    rows: Sequence[int]
    layers: tuple[int, ...] = field(init=False)
    positions: Positions = field(init=False)
    site: Site = field(init=False)
    tables: Mapping[int, Table] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "operators", tuple(self.operators))
        object.__setattr__(self, "rows", tuple(self.rows))
        kinds = {operator.positions for operator in self.operators}
        if len(kinds) != 1:
            raise InputError(f"operators at positions {sorted(kinds)} in one PerRow: make one PerRow for each kind")
        sites = {site_of(operator) for operator in self.operators}
        if len(sites) != 1:
            raise InputError(f"operators at sites {sorted(sites)} in one PerRow: make one PerRow for each site")
        bound = [type(operator).__name__ for operator in self.operators if hasattr(operator, "for_pass")]
        if bound:
            raise InputError(f"{bound[0]} inside PerRow: it must see every pass whole; put the PerRow inside it")
        _check_rows(self.rows, len(self.operators), "operators")
        layers = sorted({layer for operator in self.operators for layer in operator.layers})
        tables = {layer: _table(self.operators, layer) for layer in layers}
        object.__setattr__(self, "layers", tuple(layers))
        object.__setattr__(self, "positions", kinds.pop())
        object.__setattr__(self, "site", sites.pop())
        object.__setattr__(self, "tables", {layer: table for layer, table in tables.items() if table is not None})

    def for_rows(self, indices: Sequence[int]) -> "PerRow":
        """The same treatment for a batch that holds the rows `indices`, in that order."""
        part = copy(self)
        object.__setattr__(part, "rows", _picked(self.rows, indices))
        return part

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"], *, layer: int, mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the activations with every row edited by its own operator where `mask` is true."""
        _check_batch(self.rows, len(activations))
        rows = torch.tensor(self.rows, device=activations.device)
        table = self.tables.get(layer)
        edited = activations if table is None else _at_once(activations, rows, mask, table)
        for number in sorted(set(self.rows)):
            if number < 0 or layer not in self.operators[number].layers or (table and bool(table.known[number])):
                continue
            mine = (rows == number).nonzero()[:, 0]
            part = self.operators[number](activations[mine], layer=layer, mask=mask[mine])
            edited = edited.index_copy(0, mine, part)
        return edited


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


def _table(operators: Sequence[Operator], layer: int) -> Table | None:
    """The rank-one edits at one block, or None where no operator has one."""
    edits = [_rank_one(operator, layer) for operator in operators]
    known = [edit for edit in edits if edit is not None]
    if not known:
        return None
    nothing = RankOne.adding(torch.zeros_like(known[0].step))
    filled = [edit or nothing for edit in edits]
    step, unit = torch.stack([e.step.cpu() for e in filled]), torch.stack([e.unit.cpu() for e in filled])
    low, high = torch.tensor([e.low for e in filled]), torch.tensor([e.high for e in filled])
    return Table(torch.tensor([e is not None for e in edits]), step, unit, low, high)


def _rank_one(operator: Operator, layer: int) -> RankOne | None:
    method = getattr(operator, "rank_one", None)
    return method(layer) if method is not None and layer in operator.layers else None


def _at_once(
    activations: Float[Tensor, "batch pos d_model"],
    rows: Int[Tensor, " batch"],
    mask: Bool[Tensor, "batch pos"],
    table: Table,
) -> Float[Tensor, "batch pos d_model"]:
    """Edit every row whose operator is in the table."""
    before, chosen = wide(activations), rows.clamp(min=0).cpu()
    known, step, unit, low, high = (part[chosen].to(activations.device) for part in table)
    acting = mask & rearrange((rows >= 0) & known, "batch -> batch 1")
    length = einsum(before, unit.to(before), "batch pos d_model, batch d_model -> batch pos")
    low, high = (rearrange(bound.to(length), "batch -> batch 1") for bound in (low, high))
    change = (length.clamp(low, high) - length).to(before)
    moved = before + rearrange(step.to(before), "batch d_model -> batch 1 d_model")
    return masked(activations, moved + einsum(change, unit.to(before), "batch pos, batch d -> batch pos d"), acting)


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
