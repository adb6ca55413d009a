"""One step of sae-lens's top-k trainers (top-k, batch-top-k, Matryoshka) in which only the encoder's product is dense.

sae-lens writes the chosen latents into a matrix [batch, d_sae] and multiplies that by the decoder, forwards and
backwards: six dense products a step. Here five of them run over the k chosen entries of each row. The decoder's norms,
by which sae-lens multiplies before it chooses and divides afterwards, cancel in the reconstruction and so in every
gradient. Loss, optimiser, schedules and counters are sae-lens's own; the results are equal to float tolerance, unless
the decoder's rows are kept at length 1 (arXiv 2406.04093), which sae-lens does not do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from saes.train.recipe import SPARSE


@dataclass(frozen=True)
class Outcome:
    """What one step found: the whole loss, its reconstruction part, and latents, of which the positive are active."""

    loss: Float[Tensor, ""]
    mse: Float[Tensor, ""]
    latents: Float[Tensor, "..."]


def take_step(trainer: Any, batch: Float[Tensor, "batch d_model"]) -> Outcome:
    """One step of a `sae_lens.SAETrainer`, by its own code or, where its SAE chooses k latents, by `sparse_step`."""
    if trainer.sae.cfg.architecture() in SPARSE:
        return sparse_step(trainer, batch)
    output = trainer.step(batch)
    return Outcome(output.loss.detach(), output.losses["mse_loss"].detach(), output.feature_acts.detach())


def sparse_step(trainer: Any, batch: Float[Tensor, "batch d_model"]) -> Outcome:
    """What `trainer.step(batch)` does for an SAE that chooses k latents."""
    sae, cfg = trainer.sae, trainer.sae.cfg
    sae.train()
    with torch.no_grad():
        x = trainer.activation_scaler(batch.to(sae.device))
        trainer.n_training_samples += len(x)
        work = _Work(x, x - sae.b_dec, {name: torch.zeros_like(value) for name, value in sae.named_parameters()})
        pre = torch.addmm(sae.b_enc, work.centred, sae.W_enc)
        scaled = pre * sae.W_dec.norm(dim=-1)
        chosen = _choose(pre, scaled, cfg)
        loss, error = _reconstruct(sae, work, chosen, getattr(cfg, "matryoshka_widths", None) or [cfg.d_sae])
        mse, dead = error.square().sum(-1).mean(), trainer.dead_neurons
        if bool(dead.any()):
            loss = loss + _revive(sae, work, pre, scaled, error, dead.nonzero()[:, 0])
        if cfg.architecture() != "topk":
            sae.update_topk_threshold(scaled[chosen.rows, chosen.latents])
        _advance(trainer, work, chosen)
    return Outcome(loss, mse, chosen.values)


@dataclass
class _Work:
    """Rows as the SAE reads them, the same less its bias, and the gradients so far by parameter."""

    x: Tensor
    centred: Tensor
    gradients: dict[str, Tensor]

    def through_encoder(self, sae: Any, slopes: Tensor) -> None:
        """Add what the slopes at the encoder's output, summed over the rows [d_sae], mean for both biases."""
        self.gradients["b_enc"] += slopes
        self.gradients["b_dec"] -= sae.W_enc @ slopes


@dataclass(frozen=True)
class Chosen:
    """The entries of a [batch, d_sae] matrix that were chosen, row by row; values are never negative."""

    rows: Int[Tensor, " entry"]
    latents: Int[Tensor, " entry"]
    values: Float[Tensor, " entry"]


def _choose(pre: Tensor, scaled: Tensor, cfg: Any) -> Chosen:
    """The k largest of every row, or as many of the whole batch, by what they write."""
    if cfg.architecture() == "topk":
        places = scaled.topk(cfg.k, dim=-1, sorted=False).indices
        rows = torch.arange(len(pre), device=pre.device).repeat_interleave(cfg.k)
        return Chosen(rows, places.flatten(), pre.gather(-1, places).relu().flatten())
    flat = scaled.relu().flatten().topk(int(cfg.k * len(pre)), sorted=False).indices.sort().values
    return Chosen(flat // pre.shape[1], flat % pre.shape[1], pre.flatten()[flat].relu())


def _reconstruct(sae: Any, work: _Work, chosen: Chosen, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Sum over the nested widths of the squared error [], and the error of the whole [batch, d_model].

    A latent of one width's own part writes into that and every wider reconstruction: the slopes at its output are
    summed over these.
    """
    out, errors, taped = sae.b_dec, [], []
    for low, high in pairwise([0, *widths]):
        part = (chosen.latents >= low) & (chosen.latents < high)
        rows, latents = chosen.rows[part], chosen.latents[part]
        with torch.enable_grad():
            values = chosen.values[part].requires_grad_()
            written = _bags(rows, latents, values, len(work.x), sae.W_dec.detach())
        out = out + written.detach()
        errors.append(out - work.x)
        taped.append((low, high, rows, latents, values, written))
    up = torch.zeros_like(work.x)
    for error, (low, high, rows, latents, values, written) in zip(reversed(errors), reversed(taped), strict=True):
        up = up + error * (2 / len(error))
        (slopes,) = torch.autograd.grad(written, values, up)
        slopes = slopes * (values > 0)
        own, order = latents - low, latents.argsort(stable=True)
        own, read = own[order], rows[order]
        work.gradients["W_dec"][low:high] = _bags(own, read, values.detach()[order], high - low, up)
        work.gradients["W_enc"][:, low:high] = _bags(own, read, slopes[order], high - low, work.centred).T
        total = torch.zeros_like(sae.b_enc).index_add_(0, latents, slopes)
        work.through_encoder(sae, total)
    work.gradients["b_dec"] += up.sum(0)
    return torch.stack([error.square().sum(-1).mean() for error in errors]).sum(), errors[-1]


def _bags(bags: Tensor, items: Tensor, weights: Tensor, n: int, table: Tensor) -> Float[Tensor, "bag width"]:
    """Weighted sums of rows of `table`: entry i adds `weights[i]` times row `items[i]` to bag `bags[i]`, ascending."""
    starts = torch.searchsorted(bags, torch.arange(n, device=bags.device))
    return embedding_bag(items, table, starts, per_sample_weights=weights, mode="sum")


def _revive(
    sae: Any, work: _Work, pre: Tensor, scaled: Tensor, error: Tensor, dead: Int[Tensor, " dead"]
) -> Float[Tensor, ""]:
    """The auxiliary loss (arXiv 2406.04093, A.2): the strongest silent latents are to write what is missing."""
    wanted = work.x.shape[-1] // 2
    k = min(wanted, len(dead))
    weight = sae.cfg.aux_loss_coefficient * min(len(dead) / wanted, 1.0)
    places = scaled[:, dead].topk(k, dim=-1, sorted=False).indices
    mask = torch.zeros(len(pre), len(dead), dtype=torch.bool, device=pre.device).scatter_(-1, places, True)
    values, decoder = pre[:, dead] * mask, sae.W_dec[dead]
    missing = values @ decoder + error
    up = missing * (2 * weight / len(error))
    slopes = (up @ decoder.T) * mask
    work.gradients["W_dec"][dead] += values.T @ up
    work.gradients["W_enc"][:, dead] += work.centred.T @ slopes
    total = torch.zeros_like(sae.b_enc).index_copy_(0, dead, slopes.sum(0))
    work.through_encoder(sae, total)
    return weight * missing.square().sum(-1).mean()


def _advance(trainer: Any, work: _Work, chosen: Chosen) -> None:
    """Counters, clipping, Adam and schedules, as `SAETrainer` does them after its backward pass."""
    fired: Bool[Tensor, " entry"] = chosen.values > 0
    counts = torch.bincount(chosen.latents[fired], minlength=trainer.sae.cfg.d_sae)
    trainer.n_forward_passes_since_fired += 1
    trainer.n_forward_passes_since_fired[counts > 0] = 0
    trainer.act_freq_scores += counts
    trainer.n_frac_active_samples += len(work.x)
    unit, decoder = trainer.unit_rows, trainer.sae.W_dec
    if unit:
        rows = normalize(decoder, dim=-1)
        work.gradients["W_dec"] -= (work.gradients["W_dec"] * rows).sum(-1, keepdim=True) * rows
    for name, value in trainer.sae.named_parameters():
        value.grad = work.gradients[name]
    torch.nn.utils.clip_grad_norm_(trainer.sae.parameters(), 1.0)
    trainer.optimizer.step()
    if unit:
        decoder.copy_(normalize(decoder, dim=-1))
    trainer.optimizer.zero_grad()
    for scheduler in (trainer.lr_scheduler, *trainer.coefficient_schedulers.values()):
        scheduler.step()
