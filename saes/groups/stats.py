"""What latents do in groups of conversations, such as harmful and harmless ones: one pass, whatever the size."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.errors import InputError
from saes.groups.contrast import Contrast, GroupContrast, Scores, sides_of
from saes.latent_store import LatentBatch, LatentStore
from saes.rows import Source, Where, block_rows, stream_parts
from saes.sae import SparseAutoencoder

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class GroupStats:
    """Each latent in each group: `mean` over tokens (zeros count), `freq`, the active share, `mean_active`, and `max`.

    `active_conversations` counts those with at least one active token. `n` and `conversations` are the groups' tokens
    and conversations. `contrast` compares two groups.
    """

    groups: tuple[str, ...]
    mean: Float[Tensor, "group d_sae"]
    freq: Float[Tensor, "group d_sae"]
    max: Float[Tensor, "group d_sae"]
    active_conversations: Int[Tensor, "group d_sae"]
    n: tuple[int, ...]
    conversations: tuple[int, ...]
    contrast: GroupContrast | None = None

    @property
    def mean_active(self) -> Float[Tensor, "group d_sae"]:
        """Mean over the tokens where the latent is active; 0 where it never is."""
        return torch.where(self.freq > 0, self.mean / self.freq.clamp(min=1e-300), 0.0)

    @cached_property
    def table(self) -> "pd.DataFrame":
        """One row for each latent and group."""
        import pandas as pd

        parts = []
        for at, group in enumerate(self.groups):
            columns = {"latent": np.arange(self.mean.shape[1]), "group": group}
            for name in ("mean", "freq", "mean_active", "max", "active_conversations"):
                columns[name] = getattr(self, name)[at].numpy()
            parts.append(pd.DataFrame(columns | {"n": self.n[at], "conversations": self.conversations[at]}))
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def ranked(self) -> "pd.DataFrame":
        """One row a latent, the one that tells the two groups apart best first; InputError where none are compared."""
        import pandas as pd

        if self.contrast is None:
            raise InputError(
                f"groups {', '.join(self.groups)}: say which two to compare, Contrast(versus=(upper, lower))"
            )
        found, columns = self.contrast, {"latent": np.arange(self.mean.shape[1])}
        columns |= {name: getattr(found, name).numpy() for name in ("auroc", "low", "high", "error")}
        for side in ("upper", "lower"):
            at = self.groups.index(getattr(found, side))
            columns |= {f"{name}_{side}": getattr(self, name)[at].numpy() for name in ("mean", "freq", "max")}
        table = pd.DataFrame(columns)
        return table.sort_values("auroc", key=lambda area: -(area - 0.5).abs(), kind="stable", ignore_index=True)

    def _repr_html_(self) -> str:
        shown = self.table if self.contrast is None else self.ranked
        counts = zip(self.groups, self.n, self.conversations, strict=True)
        head = "; ".join(f"{group}: {n:,} tokens of {rows:,} conversations" for group, n, rows in counts)
        cells = shown.head(10).to_html(index=False, float_format=lambda value: f"{value:.3g}", border=0)
        return f"<p>{escape(head)}</p>{cells}"


@torch.no_grad()
def group_stats(
    latents: SparseAutoencoder | LatentStore,
    source: Source | None,
    groups: Sequence[Hashable | None],
    *,
    where: Where = "all",
    skip_first: int = 0,
    contrast: Contrast | None = None,
) -> GroupStats:
    """Statistics of every latent by group of conversations; `groups[i]` is the label of conversation i, None for none.

    `latents` is an SAE, which encodes `source`, or a store of latents, and then `source` is None. Rows are read once.
    AUROC is exact, ties included, as long as the scores fit (see `Contrast`); with more of them it comes from
    histograms, and `error` bounds what that costs. Raises InputError for a plain tensor, for a conversation without a
    place in `groups`, for groups without a row, and for a `versus` that names no group.
    """
    contrast = contrast or Contrast()
    names = sorted({str(group) for group in groups if group is not None})
    codes = np.array([-1 if group is None else names.index(str(group)) for group in groups], dtype=np.int64)
    sides = sides_of(names, contrast)
    d_sae = latents.d_sae
    sums, scores = _Sums(len(names), d_sae), Scores(codes, len(names), d_sae, sides, contrast)
    for part in _parts(latents, source, where, skip_first):
        for batch in part:
            code = _code_of(batch, codes)
            batch = batch.select(torch.from_numpy(code >= 0))
            if len(batch):
                sums.add(batch, code[code >= 0])
                scores.add(batch)
        scores.close()
    empty = [name for name, n in zip(names, sums.n, strict=True) if not n]
    if empty or not names:
        raise InputError(
            f"group {empty[0]!r} has no row" if empty else "groups: no conversation has a label; give some"
        )
    n = torch.from_numpy(sums.n).double()[:, None]
    figures = {"mean": torch.from_numpy(sums.total) / n, "freq": torch.from_numpy(sums.fired).double() / n}
    counted = {"n": tuple(sums.n.tolist()), "conversations": tuple(scores.conversations().tolist())}
    found = None if sides is None else scores.contrast(names)
    active, top = torch.from_numpy(scores.active), torch.from_numpy(sums.top)
    return GroupStats(tuple(names), **figures, max=top, active_conversations=active, **counted, contrast=found)


def _parts(
    latents: SparseAutoencoder | LatentStore, source: Source | None, where: Where, skip_first: int
) -> Iterator[Iterator[LatentBatch]]:
    """Batches of latents, in parts that hold whole conversations."""
    if isinstance(latents, LatentStore):
        if source is not None:
            raise InputError("group_stats: a store of latents holds what it was made from; give None for the source")
        yield from latents.iter_shards(where=where, skip_first=skip_first)
    elif source is None or isinstance(source, Tensor):
        raise InputError(
            "group_stats: give captured activations or a store, which know the conversations of their rows"
        )
    else:
        for part in stream_parts(source, latents.layer, where=where, skip_first=skip_first, site=latents.site):
            yield (
                LatentBatch.of(latents.encode(rows.values), rows.tokens)
                for rows in part.split(block_rows(latents.d_sae))
                if rows.tokens is not None
            )


def _code_of(batch: LatentBatch, codes: np.ndarray) -> np.ndarray:
    """The group of each row's conversation, -1 for none."""
    conversation = batch.tokens.conversation.numpy()
    if len(conversation) and conversation.max() >= len(codes):
        raise InputError(f"conversation {conversation.max()} has no label: groups has {len(codes)}, give None for none")
    return codes[conversation]


class _Sums:
    """Sums over tokens by group and latent."""

    def __init__(self, n_groups: int, d_sae: int) -> None:
        self.n = np.zeros(n_groups, dtype=np.int64)
        self.total, self.top = np.zeros((n_groups, d_sae)), np.zeros((n_groups, d_sae))
        self.fired = np.zeros((n_groups, d_sae), dtype=np.int64)

    def add(self, batch: LatentBatch, code: np.ndarray) -> None:
        at = (code[batch.rows.numpy()], batch.indices.numpy())
        values = batch.values.double().numpy()
        np.add.at(self.n, code, 1)
        np.add.at(self.total, at, values)
        np.add.at(self.fired, at, 1)
        np.maximum.at(self.top, at, values)
