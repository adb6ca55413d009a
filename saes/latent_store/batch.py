"""Sparse latents in memory: some rows of all latents, or all rows of one latent."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saes.rows import Tokens

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True, eq=False)
class LatentBatch:
    """Latents of some rows in compressed form: those of row i are `indices[indptr[i]:indptr[i + 1]]`, ascending.

    `values` has their activations, which are never 0; whatever is not named is 0.
    """

    indptr: Int[Tensor, " _"]
    indices: Int[Tensor, " entry"]
    values: Float[Tensor, " entry"]
    d_sae: int
    tokens: Tokens

    @classmethod
    def of(cls, latents: Float[Tensor, "sample d_sae"], tokens: Tokens) -> "LatentBatch":
        """The compressed form of dense latents, on the CPU."""
        active = latents != 0
        indptr = torch.cat([active.new_zeros(1, dtype=torch.long), active.sum(1).cumsum(0)])
        indices = active.nonzero()[:, 1].to(torch.int32)
        return cls(indptr.cpu(), indices.cpu(), latents[active].cpu(), latents.shape[1], tokens)

    @property
    def rows(self) -> Int[Tensor, " entry"]:
        """The row of each entry."""
        return torch.arange(len(self)).repeat_interleave(self.indptr.diff())

    def select(self, keep: Bool[Tensor, " sample"]) -> "LatentBatch":
        """The rows that a mask picks."""
        if bool(keep.all()):
            return self
        counts = self.indptr.diff()
        entries = keep.repeat_interleave(counts)
        indptr = torch.cat([self.indptr.new_zeros(1), counts[keep].cumsum(0)])
        return LatentBatch(indptr, self.indices[entries], self.values[entries], self.d_sae, self.tokens.select(keep))

    def scipy(self) -> "csr_array":
        """As a SciPy matrix [sample, d_sae], float32 (float64 stays)."""
        from scipy.sparse import csr_array

        values = self.values if self.values.dtype == torch.float64 else self.values.float()
        return csr_array((values.numpy(), self.indices.numpy(), self.indptr.numpy()), shape=(len(self), self.d_sae))

    def torch(self) -> Tensor:
        """As a sparse CSR tensor of torch, [sample, d_sae]."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
            shape = (len(self), self.d_sae)
            return torch.sparse_csr_tensor(self.indptr, self.indices.long(), self.values, shape, check_invariants=True)

    def dense(self) -> Float[Tensor, "sample d_sae"]:
        """All latents, zeros included."""
        out = self.values.new_zeros(len(self), self.d_sae)
        out[self.rows, self.indices.long()] = self.values
        return out

    def __len__(self) -> int:
        return len(self.indptr) - 1


@dataclass(frozen=True, eq=False)
class LatentColumn:
    """Where one latent fires in a store: `rows` of the `n` in reading order, their `values` and their `tokens`."""

    latent: int
    rows: Int[Tensor, " entry"]
    values: Float[Tensor, " entry"]
    tokens: Tokens
    n: int

    def top(self, k: int) -> "LatentColumn":
        """The `k` strongest entries, the strongest first; of equal ones the earlier."""
        order = torch.sort(self.values, descending=True, stable=True).indices[:k]
        return LatentColumn(self.latent, self.rows[order], self.values[order], self.tokens.select(order), self.n)

    def dense(self) -> Float[Tensor, " sample"]:
        """One value for every row of the store, zeros included."""
        return self.values.new_zeros(self.n).scatter(0, self.rows, self.values)

    def __len__(self) -> int:
        return len(self.values)


def stacked(parts: Sequence[LatentBatch]) -> LatentBatch:
    """Batches behind each other, as one."""
    starts = torch.tensor([0, *(len(part.values) for part in parts)]).cumsum(0)
    indptr = [part.indptr[:-1] + start for part, start in zip(parts, starts[:-1], strict=True)]
    whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("indices", "values")}
    return LatentBatch(torch.cat([*indptr, starts[-1:]]), **whole, d_sae=parts[0].d_sae, tokens=joined_tokens(parts))


def joined_tokens(parts: Sequence[LatentBatch | LatentColumn]) -> Tokens:
    """The tokens of all parts, behind each other."""
    known = [part.tokens.known() for part in parts]
    return Tokens(**{name: torch.cat([tokens[name] for tokens in known]) for name in known[0]})
