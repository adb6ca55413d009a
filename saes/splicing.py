"""What it costs a model when an SAE's reconstruction takes the place of what it stands for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.activations import Site
from probes.conversations import Conversation, Rendered, conversation_batches, render
from probes.errors import InputError
from probes.hooks import Positions, capture_blocks, intervene, teacher_forced
from probes.judges.margin import logits_of
from probes.models import Model
from probes.outcomes import Rate
from saes.fits import check_fits
from saes.intervals import rates_of
from saes.sae import SparseAutoencoder

Scored = Literal["response", "all"]


@dataclass(frozen=True, eq=False)
class Spliced:
    """Puts `change(rows [sample, d_model])` in the place of activations: an operator for `intervene`.

    The first `skip_first` tokens of each conversation are left as they are.
    """

    change: Callable[[Tensor], Tensor]
    layers: tuple[int, ...]
    site: Site = "resid_post"
    skip_first: int = 0
    positions: Positions = "all"

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"], *, layer: int, mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the activations with what `change` makes of those in `mask`."""
        del layer
        mask = mask & (mask.cumsum(-1) > self.skip_first)
        return activations.index_put((mask,), self.change(activations[mask]).to(activations))


@dataclass(frozen=True)
class SplicedLoss:
    """Cross-entropy in nats per token, with 95 % intervals over conversations, as the model is and with one edit each.

    `spliced` has the SAE's reconstruction at the SAE's site, `mean` the mean activation, `zero` nothing. `recovered` is
    (mean - spliced) / (mean - clean): 1 costs nothing, 0 is no better than a constant. `recovered_zero` has zero in the
    place of mean, which a model is worse prepared for: the figure flatters. Both are NaN where the ablation does no
    harm. `kl` is the divergence KL(clean || spliced) of the predictions, `kl_mean` that of mean ablation. `n` counts
    the tokens that are scored, `conversations` their conversations.
    """

    clean: Rate
    spliced: Rate
    mean: Rate
    zero: Rate
    recovered: Rate
    recovered_zero: Rate
    kl: Rate
    kl_mean: Rate
    n: int
    conversations: int
    where: Scored
    skip_first: int

    def __str__(self) -> str:
        return (
            f"cross-entropy {self.clean.value:.3f}, spliced {self.spliced.value:.3f}, mean-ablated "
            f"{self.mean.value:.3f}: {self.recovered.value:.1%} [{self.recovered.low:.1%}, {self.recovered.high:.1%}] "
            f"recovered over {self.n:,} tokens of {self.conversations:,} conversations"
        )

    def rates(self) -> dict[str, Rate]:
        """All figures with intervals, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Rate)}

    def as_dict(self) -> dict[str, Any]:
        """All figures for JSON."""
        found = {name: rate.as_dict() for name, rate in self.rates().items()}
        said = {"n": self.n, "conversations": self.conversations, "where": self.where, "skip_first": self.skip_first}
        return found | said

    def columns(self) -> dict[str, float]:
        """The figures as columns of a table."""
        line: dict[str, float] = {}
        for name, rate in self.rates().items():
            line |= {f"ce_{name}": rate.value, f"ce_{name}_low": rate.low, f"ce_{name}_high": rate.high}
        return line

    def lines(self) -> dict[str, str]:
        """The leading figures in words."""
        rate = self.recovered
        ce = f"{self.clean.value:.3f}, spliced {self.spliced.value:.3f}, mean-ablated {self.mean.value:.3f}"
        recovered = f"{rate.value:.3g} [{rate.low:.3g}, {rate.high:.3g}]"
        return {"cross-entropy, nats a token": ce, "cross-entropy recovered": recovered}


def spliced_loss(
    sae: SparseAutoencoder,
    model: Model,
    conversations: Sequence[Conversation],
    *,
    where: Scored = "response",
    skip_first: int = 0,
    batch_size: int = 8,
    seed: int = 0,
) -> SplicedLoss:
    """Cross-entropy of `model` with the reconstruction of `sae` spliced in, against mean and zero ablation.

    Every token is edited but the first `skip_first` of each conversation, and those of the response are scored, or all
    that something stands before. The mean activation is taken over the tokens that are edited. Four passes over the
    conversations and a shorter one for the mean. `seed` is the bootstrap's. InputError for an SAE that does not fit the
    model, no conversations, and conversations without a token to score.
    """
    check_fits(sae, model)
    if where not in ("response", "all"):
        raise InputError(f"where={where!r}: use 'response' or 'all'")
    if skip_first < 0:
        raise InputError(f"skip_first={skip_first}: give 0 or more")
    if not conversations:
        raise InputError("spliced loss: no conversations given; give at least one")
    mean = _mean(sae, model, conversations, skip_first, batch_size)
    place: dict[str, Any] = {
        "layers": (sae.layer,),
        "site": sae.site,
        "skip_first": skip_first,
    }
    edits = {
        "spliced": Spliced(lambda rows: sae.decode(sae.encode(rows)), **place),
        "mean": Spliced(lambda rows: mean.expand(len(rows), -1), **place),
        "zero": Spliced(torch.zeros_like, **place),
    }
    sums = np.zeros((len(conversations), 8))  # counts, four cross-entropies, then the KLs of the three edits
    for index, rows in conversation_batches(conversations, batch_size):
        rendered = render(model.tokenizer, rows).to(model.device)
        scored = _scored(rendered, where)
        sums[index, 0] = scored.sum(-1).cpu()
        clean = _predictions(model, rendered, scored)
        sums[index, 1] = _loss(clean, rendered, scored)
        for at, edit in enumerate(edits.values()):
            with intervene(model, edit), teacher_forced(rendered):
                found = _predictions(model, rendered, scored)
            sums[index, 2 + at] = _loss(found, rendered, scored)
            sums[index, 5 + at] = _per_row((clean.exp() * (clean - found)).sum(-1), scored)
    return _summary(sums, where, skip_first, seed)


def _mean(
    sae: SparseAutoencoder, model: Model, conversations: Sequence[Conversation], skip_first: int, batch_size: int
) -> Float[Tensor, " d_model"]:
    """The mean activation at the SAE's site over the tokens that are edited, in float64."""
    n, total = 0, torch.zeros(model.d_model, dtype=torch.float64)
    for _, rows in conversation_batches(conversations, batch_size):
        rendered = render(model.tokenizer, rows)
        (found,) = capture_blocks(model, rendered, [sae.layer], site=sae.site)
        mask = rendered.attention_mask.bool()
        mask = mask & (mask.cumsum(-1) > skip_first)
        n, total = n + int(mask.sum()), total + found.cpu()[mask].double().sum(0)
    if not n:
        raise InputError(f"skip_first={skip_first}: no conversation has as many tokens; leave out fewer")
    return total / n


def _scored(rendered: Rendered, where: Scored) -> Bool[Tensor, "batch pos"]:
    """The positions whose predictions are scored: those just before a token of the response, or before any token."""
    real = rendered.attention_mask.bool()
    target = rendered.response if where == "response" else real
    return target[:, 1:] & real[:, :-1]


def _predictions(model: Model, rendered: Rendered, scored: Bool[Tensor, "batch pos"]) -> Float[Tensor, "sample vocab"]:
    return torch.log_softmax(logits_of(model, rendered)[:, :-1][scored].float(), dim=-1)


def _loss(logprobs: Tensor, rendered: Rendered, scored: Tensor) -> np.ndarray:
    targets = rendered.input_ids[:, 1:][scored]
    return _per_row(-logprobs.gather(-1, targets[:, None])[:, 0], scored)


def _per_row(values: Tensor, scored: Tensor) -> np.ndarray:
    """Sums of the values of scored positions by conversation, in float64."""
    whole = torch.zeros(scored.shape, dtype=torch.float64)
    whole[scored.cpu()] = values.double().cpu()
    return whole.sum(-1).numpy()


def _summary(sums: np.ndarray, where: Scored, skip_first: int, seed: int) -> SplicedLoss:
    kept = sums[sums[:, 0] > 0]
    if not len(kept):
        raise InputError(f"where={where!r}: no conversation has a token to score; add answers")
    n = int(kept[:, 0].sum())
    rates = rates_of(kept, _figures, n=n, seed=seed)
    return SplicedLoss(**rates, n=n, conversations=len(kept), where=where, skip_first=skip_first)


def _figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The figures from sums [draw, 8]."""
    clean, spliced, mean, zero, kl, kl_mean, _ = sums[:, 1:].T / sums[:, 0]
    found = {"clean": clean, "spliced": spliced, "mean": mean, "zero": zero, "kl": kl, "kl_mean": kl_mean}
    for name, ablated in (("recovered", mean), ("recovered_zero", zero)):
        harm = np.where(ablated > clean, ablated - clean, np.nan)
        found[name] = (ablated - spliced) / harm
    return found
