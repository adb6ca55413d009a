"""Comparing two models latent by latent, beside controls, in one pass over their activations."""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch

from probes.errors import InputError
from saes.diff.table import LatentTable
from saes.pooling import Moments, Pooled, Weight, Where, aligned, pooled_latents
from saes.rows import Source
from saes.sae import SparseAutoencoder
from saes.significance import Change, Values, paired_change, q_values, unpaired_change


def diff_latents(
    base_acts: Source,
    tuned_acts: Source,
    sae: SparseAutoencoder,
    *,
    control: Source | None = None,
    controls: Mapping[str, Source] | None = None,
    where: Where = "all",
    weight: Weight = "token",
) -> LatentTable:
    """Change of each latent's mean and firing rate between two models, tested over conversations, beside controls.

    One SAE reads all models. The activations come from its block, captured with `pool="tokens"` or `"last_prompt"`; a
    bare tensor has one conversation a row. `where` says which tokens count: "prompt" with equal tokens is the pooled
    mean of arXiv 2506.19823, "response" with `weight="conversation"` that of arXiv 2602.00767. Tokens count equally by
    default, as everywhere in this package; give "conversation" where answers differ in length between the models.

    Tests and effects take the conversation as their unit under either weight. Where two sources hold the same
    conversations (and, as far as tokens are known, the same texts) differences are paired (d_z); where they do not, as
    with each model's own answers, the test is Welch's and the effect Hedges' g. `controls` are other fine-tunes by
    name, such as "benign" and "narrow"; `control` is one of the name "control".

    One streaming pass: memory holds a group of conversations' sums a source. What rises here is a candidate, no more:
    the cited works go on to causal checks. InputError for what `saes.pooling.pooled_latents` refuses.
    """
    if weight not in get_args(Weight):
        raise InputError(f"weight={weight!r}: use one of {', '.join(get_args(Weight))}")
    others = dict(controls or {}) | ({} if control is None else {"control": control})
    _check_names(others)
    sources = {"base": base_acts, "tuned": tuned_acts, **others}
    sides = {name: _Side(weight) for name in sources}
    pairs = {pair: _Pair(weight) for pair in [("base", "tuned"), *((name, "tuned") for name in others)]}
    streams = {name: pooled_latents(sae, source, where=where) for name, source in sources.items()}
    for step in aligned(streams):
        for name, part in step.items():
            sides[name].add(part)
        for pair, differences in pairs.items():
            differences.add(*map(step.get, pair))
    found = {pair: _change(sides, pair, pairs[pair]) for pair in pairs}
    shift = sides["tuned"].inputs - sides["base"].inputs
    return LatentTable(
        _columns(sae, sides, found, shift, others),
        sae.name,
        sae.layer,
        sides["base"].tokens,
        sides["tuned"].tokens,
        conversations=(sides["base"].moments.n, sides["tuned"].moments.n),
        test="paired" if pairs["base", "tuned"].same else "welch",
        where=where,
        weight=weight,
        fvu={name: side.fvu for name, side in sides.items()},
        shift_norm=float(shift.norm()),
    )


class _Side:
    """What is added up of one model."""

    def __init__(self, weight: Weight) -> None:
        self.weight: Weight = weight
        self.moments, self.tokens, self.total = Moments(), 0, 0.0
        self.fired: Any = 0.0
        self.weighted: Any = 0.0
        self.sum: Any = 0.0
        self.square, self.error = 0.0, 0.0

    def add(self, part: Pooled) -> None:
        """Take in a few conversations."""
        weights = part.weights(self.weight)
        self.moments.add(part.means(), weights)
        share = weights / part.count
        self.fired = self.fired + share @ part.fired.double()
        self.weighted = self.weighted + share @ part.inputs
        self.total += float(weights.sum())
        self.tokens += int(part.count.sum())
        self.sum = self.sum + part.inputs.sum(0)
        self.square, self.error = self.square + float(part.square.sum()), self.error + float(part.error.sum())

    @property
    def mean(self) -> Values:
        """Each latent's mean."""
        return self.moments.mean.numpy()

    @property
    def freq(self) -> Values:
        """Share of the tokens on which each latent is active."""
        return (self.fired / self.total).numpy()

    @property
    def inputs(self) -> torch.Tensor:
        """Mean activation, `[d_model]`."""
        return self.weighted / self.total

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained; NaN where all rows are equal."""
        spread = self.square - float(self.sum.square().sum()) / self.tokens
        return self.error / spread if spread > 1e-12 * self.square else float("nan")


class _Pair:
    """Differences between two models, for as long as both read the same conversations."""

    def __init__(self, weight: Weight) -> None:
        self.weight: Weight = weight
        self.moments, self.same = Moments(), True

    def add(self, before: Pooled | None, after: Pooled | None) -> None:
        """Take in the same few conversations of both."""
        self.same = self.same and before is not None and after is not None and before.reads_the_same(after)
        if self.same and before is not None and after is not None:
            self.same = torch.equal(before.count, after.count)
            self.moments.add(after.means() - before.means(), after.weights(self.weight))


def _change(sides: Mapping[str, _Side], pair: tuple[str, str], differences: _Pair) -> Change:
    """The change and its test, over the latents that fired in either model."""
    before, after = (sides[name] for name in pair)
    found = paired_change(differences.moments) if differences.same else unpaired_change(before.moments, after.moments)
    silent = (before.freq == 0) & (after.freq == 0)
    return Change(found.delta, np.where(silent, np.nan, found.effect), np.where(silent, np.nan, found.p))


def _columns(
    sae: SparseAutoencoder,
    sides: Mapping[str, _Side],
    found: Mapping[tuple[str, str], Change],
    shift: torch.Tensor,
    others: Mapping[str, Source],
) -> pd.DataFrame:
    base, tuned, change = sides["base"], sides["tuned"], found["base", "tuned"]
    delta, cosine = tuned.mean - base.mean, _cosine(sae, shift)
    deltas = {name: sides[name].mean - base.mean for name in others}
    columns = {
        "latent": np.arange(sae.d_sae),
        "delta_mean": delta,
        "delta_freq": tuned.freq - base.freq,
        "base_mean": base.mean,
        "tuned_mean": tuned.mean,
        "base_freq": base.freq,
        "tuned_freq": tuned.freq,
        "control_delta": deltas.get("control", np.full(sae.d_sae, np.nan)),
        "rank": _rank(-delta),
        "fall_rank": _rank(delta),
        "effect": change.effect,
        "p": change.p,
        "q": q_values(change.p),
        "cosine": cosine,
        "cosine_rank": _rank(-cosine),
        "over_controls": _beyond(delta, list(deltas.values())),
    }
    columns |= {f"{name}_delta": values for name, values in deltas.items()}
    columns |= {f"{name}_q": q_values(found[name, "tuned"].p) for name in others}
    return pd.DataFrame(columns)


def _beyond(delta: Values, controls: list[Values]) -> Values:
    """What is left of a change once the largest change of its sign in any control is taken off; 0 where none is."""
    if not controls:
        return np.full_like(delta, np.nan)
    up, down = np.max([*controls, 0 * delta], axis=0), np.min([*controls, 0 * delta], axis=0)
    return np.where(delta > 0, np.maximum(delta - up, 0.0), np.minimum(delta - down, 0.0))


def _cosine(sae: SparseAutoencoder, shift: torch.Tensor) -> Values:
    """Cosine of the difference of mean activations with each decoder row; 0 for a row or a difference of length 0."""
    direction = torch.nn.functional.normalize(shift, dim=0).to(sae.W_dec)
    lengths = torch.linalg.vector_norm(sae.W_dec, dim=-1)
    cosine = (sae.W_dec @ direction) / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)
    return cosine.double().cpu().numpy()


def _rank(values: Values) -> np.ndarray:
    """1 for the smallest; of equal ones the earlier comes first."""
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(values, kind="stable")] = np.arange(1, len(values) + 1)
    return rank


def _check_names(others: Mapping[str, Source]) -> None:
    taken = {"base", "tuned", "over_controls"} & set(others)
    if taken:
        raise InputError(f"control {min(taken)!r}: the name is taken; call it by what was trained, such as 'benign'")
