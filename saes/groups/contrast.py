"""How two groups of conversations differ, latent by latent: a score for each conversation, and what it tells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import InputError
from saes.groups.areas import BINS, Areas, Entries, Sides, areas, bin_of, ties_of
from saes.latent_store import LatentBatch


@dataclass(frozen=True)
class Contrast:
    """How two groups are compared: by each conversation's `by` ("max" or "mean" over its tokens) of every latent.

    `versus` names the upper and the lower group (default: of exactly two, the one that sorts last is the upper). As
    many times as `shuffles` says, conversations are dealt anew by `seed`, for what the best latent reaches by chance.
    Up to `entries` scores that are not zero are held (12 bytes each); beyond that, histograms of them are.
    """

    versus: tuple[str, str] | None = None
    by: Literal["max", "mean"] = "max"
    shuffles: int = 20
    seed: int = 0
    entries: int = 2**26


@dataclass(frozen=True, eq=False)
class GroupContrast:
    """How well each latent tells the group `upper` from the group `lower`, conversation by conversation.

    `auroc`: the chance that a conversation of `upper` scores higher than one of `lower`, ties counting half; `low` and
    `high`: 95 % by DeLong's standard error, the exact binomial limit where one side always wins. `error`: by how much
    the AUROC may be off because scores were put into bins; 0 where `exact`. `chance`: how far from 0.5 the best latent
    of all came with conversations dealt at random, one value a shuffle; empty unless exact.
    """

    upper: str
    lower: str
    by: str
    auroc: Float[Tensor, " d_sae"]
    low: Float[Tensor, " d_sae"]
    high: Float[Tensor, " d_sae"]
    error: Float[Tensor, " d_sae"]
    exact: bool
    chance: Float[Tensor, " shuffle"]


def sides_of(names: Sequence[str], contrast: Contrast) -> tuple[int, int] | None:
    if contrast.by not in ("max", "mean"):
        raise InputError(f"contrast by {contrast.by!r}: use 'max' or 'mean'")
    versus = contrast.versus or ((names[1], names[0]) if len(names) == 2 else None)
    if versus is None:
        return None
    wrong = [name for name in versus if name not in names]
    if wrong or versus[0] == versus[1]:
        raise InputError(f"versus {versus}: name two of the groups {', '.join(names)}")
    return names.index(versus[0]), names.index(versus[1])


class Scores:
    """Scores of conversations: gathered part by part, held as they are or, where they are too many, in histograms."""

    def __init__(
        self, codes: np.ndarray, n_groups: int, d_sae: int, sides: tuple[int, int] | None, contrast: Contrast
    ) -> None:
        self._codes, self._sides, self._how, self._d_sae = codes, sides, contrast, d_sae
        self.active = np.zeros((n_groups, d_sae), dtype=np.int64)
        self._rows = np.zeros(len(codes), dtype=np.int64)
        self._open: list[tuple[np.ndarray, np.ndarray]] = []
        self._held: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._bins: np.ndarray | None = None
        self._add = np.maximum if contrast.by == "max" else np.add

    def add(self, batch: LatentBatch) -> None:
        """Take a batch's rows into the scores of their conversations."""
        conversation = batch.tokens.conversation.numpy()
        np.add.at(self._rows, conversation, 1)
        keys = conversation[batch.rows.numpy()] * self._d_sae + batch.indices.numpy()
        self._open.append(self._reduced(keys, batch.values.double().numpy()))

    def close(self) -> None:
        """Finish the conversations of a part."""
        if not self._open:
            return
        keys, scores = self._reduced(*(np.concatenate(side) for side in zip(*self._open, strict=True)))
        self._open = []
        conversation, latent = np.divmod(keys, self._d_sae)
        code = self._codes[conversation]
        np.add.at(self.active, (code, latent), 1)
        if self._sides is not None:
            scores = scores / self._rows[conversation] if self._how.by == "mean" else scores
            kept = np.isin(code, self._sides)
            self._keep(
                conversation[kept].astype(np.int32), latent[kept].astype(np.int32), scores[kept].astype(np.float32)
            )

    def conversations(self) -> np.ndarray:
        """How many conversations of each group have a row."""
        return np.bincount(self._codes[self._rows > 0], minlength=len(self.active))

    def contrast(self, names: Sequence[str]) -> GroupContrast:
        """The comparison of the two sides."""
        assert self._sides is not None
        masks = [(self._codes == side) & (self._rows > 0) for side in self._sides]
        sides = Sides(*(int(mask.sum()) for mask in masks))
        chance = np.zeros(0)
        if self._bins is not None:
            ties, unknown = ties_of(*self._bins)
            found = areas(ties, sides, self._d_sae, unknown=unknown)
        else:
            conversation, latent, score = (np.concatenate(part) for part in zip(*self._held, strict=True))
            entries = Entries(latent, score, conversation)
            found = areas(entries.ties(*masks), sides, self._d_sae)
            chance = self._chance(entries, masks, sides)
        upper, lower = (names[side] for side in self._sides)
        figures = {name: torch.from_numpy(array) for name, array in _named(found, sides).items()}
        exact = self._bins is None
        return GroupContrast(upper, lower, self._how.by, **figures, exact=exact, chance=torch.from_numpy(chance))

    def _chance(self, entries: Entries, masks: list[np.ndarray], sides: Sides) -> np.ndarray:
        """How far from one half the best latent comes with the two sides' conversations dealt anew."""
        rng, pool, best = np.random.default_rng(self._how.seed), np.flatnonzero(masks[0] | masks[1]), []
        for _ in range(self._how.shuffles):
            upper = np.zeros_like(masks[0])
            upper[rng.permutation(pool)[: sides.upper]] = True
            found = areas(entries.ties(upper, (masks[0] | masks[1]) & ~upper), sides, self._d_sae)
            best.append(np.abs(found.auroc - 0.5).max())
        return np.array(best)

    def _keep(self, conversation: np.ndarray, latent: np.ndarray, score: np.ndarray) -> None:
        self._held.append((conversation, latent, score))
        if self._bins is None and sum(len(part[0]) for part in self._held) > self._how.entries:
            self._bins = np.zeros((2, self._d_sae, BINS), dtype=np.int32)
        if self._bins is not None:
            for part in self._held:
                side = (self._codes[part[0]] == self._sides[1]).astype(np.int64)  # type: ignore[index]
                np.add.at(self._bins, (side, part[1], bin_of(part[2])), 1)
            self._held = []

    def _reduced(self, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One value for each key."""
        order = np.argsort(keys, kind="stable")
        keys, values = keys[order], values[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        return keys[starts], self._add.reduceat(values, starts) if len(starts) else values


def _named(found: Areas, sides: Sides) -> dict[str, np.ndarray]:
    low, high = found.limits(sides)
    return {"auroc": found.auroc, "low": low, "high": high, "error": found.error}
