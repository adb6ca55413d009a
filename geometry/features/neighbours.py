"""Exact nearest neighbours among directions, in blocks of matrix products."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from geometry.features.distances import check_widths, unit_rows
from probes.errors import InputError

BLOCK = 1024


@dataclass(frozen=True)
class Neighbours:
    """The k nearest directions of each query, nearest first: their row numbers and cosines."""

    index: Int[Tensor, "query k"]
    similarity: Float[Tensor, "query k"]


@torch.no_grad()
def nearest(
    directions: Float[Tensor, "feature d_model"],
    k: int,
    *,
    queries: Float[Tensor, "query width"] | None = None,
    block: int = BLOCK,
) -> Neighbours:
    """The k directions of largest cosine to each query, exactly, by blocked matrix products and running top-k.

    Without `queries` every direction looks for the k nearest others: itself is left out, a copy of it is not, and each
    cosine is computed once for both ends, so that half the products do. A query that is among the directions finds
    itself. Memory beyond the inputs is a few block * block numbers and the answer, whatever the number of directions;
    which of several equal cosines comes first is not defined. `InputError` on a zero or NaN direction, on queries of
    another width, and on k outside what there is to find.
    """
    least = len(directions) - (queries is None)
    if not 1 <= k <= least:
        others = "other " if queries is None else ""
        raise InputError(f"k={k} neighbours asked of {least} {others}directions; use 1 to {least}")
    if queries is None:
        return _among(directions, k, block)
    check_widths(directions, queries)
    best = _Best(queries, k)
    for start, part in _units(queries, block):
        rows = slice(start, start + len(part))
        for other, columns in _units(directions, block):
            best.offer(rows, part @ columns.to(part).T, other)
    return best.found()


def _among(directions: Tensor, k: int, block: int) -> Neighbours:
    best = _Best(directions, k)
    for start, part in _units(directions, block):
        rows = slice(start, start + len(part))
        own = part @ part.T
        best.offer(rows, own.fill_diagonal_(-torch.inf), start)
        for other, columns in _units(directions[rows.stop :], block, first=rows.stop):
            cosines = part @ columns.T
            best.offer(rows, cosines, other)
            best.offer(slice(other, other + len(columns)), cosines.T.contiguous(), start)
    return best.found()


def _units(directions: Tensor, block: int, first: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Unit rows block by block, with the number of each block's first row; `first` is that of row 0."""
    for start in range(0, len(directions), block):
        yield first + start, unit_rows(directions[start : start + block], first=first + start)


class _Best:
    """The k best cosines seen so far of every query, and which directions they belong to."""

    def __init__(self, queries: Tensor, k: int) -> None:
        dtype = torch.promote_types(queries.dtype, torch.float32)
        self.cosine = torch.full((len(queries), k), -torch.inf, dtype=dtype, device=queries.device)
        self.index = torch.zeros(len(queries), k, dtype=torch.long, device=queries.device)

    def offer(self, rows: slice, cosines: Float[Tensor, "query feature"], first: int) -> None:
        """Take in the cosines of some queries to the directions `first`, `first + 1`, ..."""
        k = self.cosine.shape[1]
        top = cosines.topk(min(k, cosines.shape[1]), dim=1)
        both = torch.cat([self.cosine[rows], top.values], dim=1)
        index = torch.cat([self.index[rows], top.indices + first], dim=1)
        kept = both.topk(k, dim=1)
        self.cosine[rows], self.index[rows] = kept.values, index.gather(1, kept.indices)

    def found(self) -> Neighbours:
        return Neighbours(self.index, self.cosine.clamp(-1, 1))
