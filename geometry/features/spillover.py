"""Spill-over: what training on some data does to features it was not about, predicted before and measured after."""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from geometry.features.filtering.checks import rank_correlations, spearman
from geometry.features.filtering.gradients import latent_push, loss_gradients
from geometry.features.sets import FeatureSet, check_fits, check_same_sae
from probes.capture import capture
from probes.conversations import Conversation, render
from probes.errors import InputError
from probes.judges.margin import answer_logprobs
from probes.models import Model, check_same_family, evaluating, unwrap
from saes import check_fits as check_sae
from saes.latents import latent_stats
from saes.sae import SparseAutoencoder

Place = Literal["last_prompt", "tokens"]


@dataclass(frozen=True, eq=False)
class Spillover:
    """How each harmful latent is expected to change, up to one common positive factor, and what chance would say.

    `change` is `[feature]` in the order of `harmful`, positive = the latent rises; `random` `[draw feature]` is the
    same prediction from random targets; `form` says how it was made.
    """

    harmful: FeatureSet
    change: Float[Tensor, " feature"]
    random: Float[Tensor, "draw feature"]
    form: str

    def against(self, measured: Float[Tensor, " feature"], *, seed: int = 0) -> pd.Series:
        """Spearman correlation with the change that was measured, over the latents.

        Entries: form, n, spearman, low, high (95 %, bootstrap over latents); random_mean, random_low, random_high: mean
        and 5-95 % range of the random targets' correlations.
        """
        if len(measured) != len(self.change):
            raise InputError(f"{len(measured)} measured changes for {len(self.change)} latents; measure the same ones")
        found = spearman(self.change, measured, seed=seed)
        chance = rank_correlations(self.random, measured)
        low, high = chance.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
        rates = {"spearman": found.value, "low": found.low, "high": found.high}
        chances = {"random_mean": float(chance.mean()), "random_low": low, "random_high": high}
        return pd.Series({"form": self.form, "n": found.n, **rates, **chances})


def decoder_spillover(
    sae: SparseAutoencoder, harmful: FeatureSet, target: FeatureSet, *, n_random: int = 20, seed: int = 0
) -> Spillover:
    """Spill-over by decoder similarity: delta f_j ~ sum_i w_i <d_j, d_i> over the target latents i (arXiv 2605.00842).

    d are unit decoder directions, w the target's effects (equal where they are all 0). A latent's own share is left
    out where it is a target itself. Random targets are as many other living latents with the same w.
    """
    check_fits(harmful, sae, "harmful")
    check_fits(target, sae, "target")
    effects = torch.tensor(target.effect, dtype=torch.float64)
    weights = effects if bool(effects.any()) else torch.ones(len(target), dtype=torch.float64)
    alive = (sae.directions.norm(dim=1) > 0).nonzero().squeeze(1).cpu()
    others = alive[~torch.isin(alive, target.index)]
    if len(others) < len(target):
        raise InputError(f"{len(target)} target latents and {len(others)} others: too few for a random target")
    generator = torch.Generator().manual_seed(seed)
    drawn = [others[torch.randperm(len(others), generator=generator)[: len(target)]] for _ in range(n_random)]
    spilt = torch.stack([_spilt(sae, harmful.index, index, weights) for index in (target.index, *drawn)])
    return Spillover(harmful, spilt[0], spilt[1:], "decoder")


def _spilt(sae: SparseAutoencoder, harmful: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    directions = sae.directions.cpu().double()
    near = directions[harmful] @ directions[target].T
    return near.masked_fill(harmful[:, None] == target[None], 0.0) @ weights


def gradient_spillover(
    model: Model,
    sae: SparseAutoencoder,
    harmful: FeatureSet,
    rows: Sequence[Conversation],
    *,
    gate: bool = False,
    batch_size: int = 16,
    n_random: int = 20,
    seed: int = 0,
) -> Spillover:
    """Spill-over by the data's gradient: delta f_j ~ mean over rows and trained positions of <e_j, -dL/dh>.

    h is what the SAE reads, e_j its encoder's column: a training step goes down the loss, so a latent rises where h is
    pushed along what it reads. The general form of the derivation of arXiv 2605.00842 (ours); with `gate` only the
    positions count at which the latent fires. Random targets push every position along one random direction.
    """
    check_sae(sae, model)
    check_fits(harmful, sae, "harmful")
    index, total, fires = harmful.index.to(sae.device), torch.zeros(len(harmful), dtype=torch.float64), list[Tensor]()
    for part in loss_gradients(model, rows, layer=sae.layer, site=sae.site, batch_size=batch_size):
        total += latent_push(sae, part, index, gate=gate).sum(0)
        if gate:
            with torch.no_grad():
                fires.append(part.mean((sae.encode_some(part.values, harmful.latents) > 0).double()).cpu())
    rate = torch.cat(fires).mean(0) if gate else torch.ones(len(harmful), dtype=torch.float64)
    encoder = (sae.W_enc[:, index] * torch.linalg.vector_norm(sae.W_dec[index], dim=1)).double().cpu()
    drawn = torch.randn(n_random, sae.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Spillover(harmful, total / len(rows), (drawn @ encoder) * rate, "gradient, gated" if gate else "gradient")


def measured_spillover(
    base: Model,
    tuned: Model,
    sae: SparseAutoencoder,
    harmful: FeatureSet,
    conversations: Sequence[Conversation],
    *,
    pool: Place = "tokens",
) -> Float[Tensor, " feature"]:
    """What a fine-tune did to each harmful latent: its mean over fixed text in `tuned` less that in `base`.

    Over the response's tokens ("tokens"), or at the last prompt token; units: residual-stream length.
    """
    check_same_family(base, tuned)
    return _means(tuned, sae, harmful, conversations, pool) - _means(base, sae, harmful, conversations, pool)


def _means(
    model: Model, sae: SparseAutoencoder, harmful: FeatureSet, text: Sequence[Conversation], pool: Place
) -> Tensor:
    acts = capture(model, text, layers=(sae.layer,), pool=pool, site=sae.site)
    found = latent_stats(sae, acts, where="response" if pool == "tokens" else "all").mean
    return (found * torch.linalg.vector_norm(sae.W_dec, dim=1).cpu().double())[harmful.index]


def step_spillover(
    model: Model,
    sae: SparseAutoencoder,
    harmful: FeatureSet,
    rows: Sequence[Conversation],
    conversations: Sequence[Conversation],
    *,
    size: float | int = 0.003,
    n_random: int = 10,
    seed: int = 0,
) -> Spillover:
    """Spill-over by one small step: what a copy of the model does after it went down the gradient of the data's loss.

    The step moves every linear layer's weights but the output's, by `size` of their joint norm; the change of the
    latents' means over the response tokens of `conversations` is the first-order prediction, through all of the model
    (ours; gradient_spillover stops at what the SAE reads). Random targets are steps of the same size, layer by layer,
    in random directions. The model stays as it is.
    """
    check_sae(sae, model)
    check_fits(harmful, sae, "harmful")
    before, slopes = _means(model, sae, harmful, conversations, "tokens"), _slopes(model, rows)
    weights = {name: model.hf.get_parameter(name).detach() for name in slopes}
    scale = size * _norm(weights.values()) / _norm(slopes.values())
    generator, changes = torch.Generator().manual_seed(seed), list[Tensor]()
    for draw in range(n_random + 1):
        moved = replace(model, hf=copy.deepcopy(model.hf))
        for name, slope in slopes.items():
            way = slope if not draw else _noise_like(slope, generator)
            moved.hf.get_parameter(name).data -= (scale * way).to(weights[name].dtype)
        changes.append(_means(moved, sae, harmful, conversations, "tokens") - before)
    return Spillover(harmful, changes[0], torch.stack(changes[1:]), "step")


def _slopes(model: Model, rows: Sequence[Conversation], *, batch_size: int = 32) -> dict[str, Tensor]:
    """Gradient of the answers' mean loss per token, summed over batches, for every linear layer but the output's."""
    head = unwrap(model.hf).get_output_embeddings()
    linear = [n for n, m in model.hf.named_modules() if isinstance(m, torch.nn.Linear) and m is not head]
    work = replace(model, hf=copy.deepcopy(model.hf).requires_grad_(False))
    names = [f"{name}.weight" for name in linear]
    wanted = [work.hf.get_parameter(name).requires_grad_() for name in names]
    total = [torch.zeros_like(weight) for weight in wanted]
    for start in range(0, len(rows), batch_size):
        batch = render(model.tokenizer, rows[start : start + batch_size], padding_side="right").to(model.device)
        with evaluating(work), torch.enable_grad():
            loss = -answer_logprobs(
                unwrap(work.hf)(
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    position_ids=batch.position_ids,
                    use_cache=False,
                ).logits.float(),
                batch,
            ).sum()
            for held, slope in zip(total, torch.autograd.grad(loss, wanted), strict=True):
                held += slope
    return dict(zip(names, total, strict=True))


def _noise_like(slope: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(slope.shape, generator=generator).to(slope)
    return drawn * slope.norm() / drawn.norm()


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def unshared(spillover: Spillover, other: FeatureSet) -> Int[Tensor, " kept"]:
    """Places of the harmful latents that `other` does not hold: the headline leaves shared latents out."""
    check_same_sae(spillover.harmful, other)
    return torch.tensor([i for i, latent in enumerate(spillover.harmful) if latent not in other], dtype=torch.long)
