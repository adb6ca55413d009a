"""What the rows of a block are like before training: their mean and norm, which are outliers, which test the result."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from probes.activations import Activations, concatenated
from probes.errors import InputError
from saes.train.recipe import SAERecipe
from saes.train.source import RowSource

#: So many rows decide; a store with more is read at random places.
SURVEYED, TESTED = 2**20, 2**14
#: So many of them have their geometric median taken.
CENTRED = 2**12


@dataclass(frozen=True, eq=False)
class Survey:
    """Figures over the rows of one block that are trained on: mean `norm`, and `cut`, the largest norm kept.

    `middle` is the geometric median of 4,096 of them, from which their distances sum to the least: decoder biases begun
    there leave less unexplained than begun at the mean, which a few long rows pull away.

    `n` rows were looked at, of which `early` stand too early in their conversation and `outliers` are too long;
    `tests` are rows held out.
    """

    middle: Float[Tensor, " d_model"]
    norm: float
    cut: float
    n: int
    early: int
    outliers: int
    tests: Activations

    @property
    def kept(self) -> int:
        """Rows to train on among those looked at, held out ones aside."""
        return self.n - self.early - self.outliers

    def as_dict(self) -> dict[str, float | int | None]:
        """The figures, as JSON takes them."""
        told = {"rows": self.n, "early": self.early, "outliers": self.outliers, "kept": self.kept}
        cut = self.cut if self.cut < float("inf") else None
        return {**told, "mean_norm": self.norm, "largest_norm": cut, "tests": len(self.tests)}


def survey(source: RowSource, recipe: SAERecipe) -> dict[int, Survey]:
    """Look at the rows of every block, at most 2^20 of them, drawn with a seed of their own.

    Raises InputError for a value that is not finite, for rows that are all zero, and where fewer than a batch are kept.
    """
    cuts, seen = {}, {layer: _Seen() for layer in source.layers}
    for chunk in _sampled(source):
        late, held = source.parted(chunk)
        for layer, noted in seen.items():
            noted.look(finite(chunk.at(layer), layer), late, held)
    for layer, noted in seen.items():
        cuts[layer] = noted.cut(recipe.max_norm, layer)
    totals = {layer: _Total(cut) for layer, cut in cuts.items()}
    for chunk in _sampled(source):
        late, held = source.parted(chunk)
        for layer, total in totals.items():
            total.add(chunk, layer, late, held)
    found = {layer: totals[layer].survey(seen[layer]) for layer in source.layers}
    for layer, one in found.items():
        _check(layer, one, recipe)
    return found


def finite(values: Float[Tensor, "sample d_model"], layer: int) -> Float[Tensor, "sample d_model"]:
    """The same values. InputError where one is not finite."""
    if not torch.isfinite(values).all():
        raise InputError(f"an activation of block {layer} is not finite: capture again in a wider dtype")
    return values


def _sampled(source: RowSource) -> Iterator[Activations]:
    seen = 0
    for chunk in source.chunks(torch.Generator().manual_seed(0)):
        yield chunk
        seen += len(chunk)
        if seen >= SURVEYED:
            return


class _Seen:
    """Norms of one block's rows, as they come by."""

    def __init__(self) -> None:
        self.norms: list[Tensor] = []
        self.n, self.early = 0, 0

    def look(self, rows: Tensor, late: Tensor, held: Tensor) -> None:
        self.norms.append(rows[late & ~held].float().norm(dim=-1).cpu())
        self.n += int((~held).sum())
        self.early += int((~late & ~held).sum())

    def cut(self, times: float | None, layer: int) -> float:
        """`times` the median norm."""
        norms = torch.cat(self.norms)
        if not len(norms):
            raise InputError(f"none of {self.n} rows of block {layer} is left to train on: lower skip_first")
        return float("inf") if times is None else times * norms.median().item()


class _Total:
    """Sums over the rows that are kept, in float64, and the rows that test."""

    def __init__(self, cut: float) -> None:
        self.limit, self.n, self.norms = cut, 0, 0.0
        self.rows, self.filled = torch.empty(0, 0), 0
        self.tests: list[Activations] = []

    def add(self, chunk: Activations, layer: int, late: Tensor, held: Tensor) -> None:
        rows = chunk.at(layer)
        near = late & (rows.float().norm(dim=-1) <= self.limit)
        kept = rows[near & ~held].double().cpu()
        self.n, self.norms = self.n + len(kept), self.norms + kept.norm(dim=-1).sum().item()
        if not self.filled:
            self.rows = torch.empty(CENTRED, rows.shape[-1])
        part = kept[: CENTRED - self.filled]
        self.rows[self.filled : self.filled + len(part)] = part
        self.filled += len(part)
        room = TESTED - sum(map(len, self.tests))
        tests = (near & held).nonzero()[:room, 0]
        self.tests.append(replace(chunk.select(tests), values=rows[tests][None].float(), layers=(layer,)))

    def survey(self, seen: _Seen) -> Survey:
        middle, norm = geometric_median(self.rows[: self.filled].double()), self.norms / max(1, self.n)
        rest = seen.n - seen.early - self.n
        return Survey(middle, norm, self.limit, seen.n, seen.early, rest, concatenated(self.tests))


def geometric_median(rows: Float[Tensor, "sample d_model"], *, rounds: int = 100) -> Float[Tensor, " d_model"]:
    """The point from which the rows' distances sum to the least, by Weiszfeld's steps; zero where there are no rows."""
    at = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])
    for _ in range(rounds if len(rows) else 0):
        weights = 1 / (rows - at).norm(dim=-1).clamp_min(1e-9)
        new = (weights @ rows) / weights.sum()
        if (new - at).norm() <= 1e-9 * new.norm():
            return new
        at = new
    return at


def _check(layer: int, found: Survey, recipe: SAERecipe) -> None:
    if found.kept < recipe.batch:
        raise InputError(
            f"block {layer}: {found.kept} rows are fewer than one batch of {recipe.batch} ({found.n} rows, "
            f"{found.early} too early, {found.outliers} outliers): give more activations or a smaller batch"
        )
    if found.norm == 0:
        raise InputError(f"all {found.kept} rows of block {layer} are zero: there is nothing to train on")
