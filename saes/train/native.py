"""sae-lens's training SAEs and trainer, made from a recipe, and folded into plain weights at the end."""

import math
from pathlib import Path
from typing import Any

import torch

from saes.train.recipe import SAERecipe
from saes.train.survey import Survey


def make_trainer(
    recipe: SAERecipe, found: Survey, *, seed: int, names: dict[str, str], device: torch.device | str
) -> Any:
    """A `sae_lens.SAETrainer` with no data, its SAE drawn from `seed` alone, decoder bias at the rows' (scaled) middle.

    The learning rate rises over the first 5 % of the steps and falls to zero over the last third; so does the price of
    a latent rise. Latents silent for 50 steps (a sixteenth of the steps if that is more) count as dead.
    """
    from sae_lens import SAETrainer
    from sae_lens.config import SAETrainerConfig

    config = SAETrainerConfig(
        total_training_samples=recipe.steps * recipe.batch,
        train_batch_size_samples=recipe.batch,
        lr=recipe.lr,
        lr_end=recipe.lr,
        lr_warm_up_steps=recipe.steps // 20,
        lr_decay_steps=recipe.steps // 3,
        dead_feature_window=max(50, recipe.steps // 16),
        feature_sampling_window=recipe.steps + 1,
        device=str(device),
    )
    trainer: Any = SAETrainer(config, _initial(recipe, found, seed, names).to(device), data_provider=iter(()))
    trainer.activation_scaler.scaling_factor = scale_of(found)
    trainer.unit_rows = recipe.unit_rows  # sae-lens knows no such setting; `sparse_step` heeds it
    return trainer


def scale_of(found: Survey) -> float:
    """What rows are multiplied by while training: their mean norm becomes sqrt(d_model)."""
    return math.sqrt(len(found.middle)) / found.norm


def _initial(recipe: SAERecipe, found: Survey, seed: int, names: dict[str, str]) -> Any:
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    kind, config = get_sae_training_class(recipe.architecture)
    settings = config(
        d_in=len(found.middle),
        d_sae=recipe.d_sae,
        decoder_init_norm=1.0,
        device="cpu",
        metadata=SAEMetadata(**names),
        **_own_settings(recipe),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sae: Any = kind(settings)
    with torch.no_grad():
        sae.b_dec.copy_(found.middle * scale_of(found))
    return sae


def _own_settings(recipe: SAERecipe) -> dict[str, Any]:
    """What one architecture alone is told."""
    warm, aux = recipe.steps // 20, {"aux_loss_coefficient": recipe.revive}
    if recipe.architecture == "topk":
        return aux | {"k": recipe.k}
    if recipe.architecture in ("batchtopk", "matryoshka_batchtopk"):
        own: dict[str, Any] = aux | {"k": float(recipe.k), "topk_threshold_lr": max(0.01, min(0.5, 20 / recipe.steps))}
        return own | ({"matryoshka_widths": list(recipe.widths)} if recipe.widths else {})
    if recipe.architecture == "jumprelu":
        target = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(recipe.k)}
        return target | {"l0_coefficient": recipe.sparsity, "l0_warm_up_steps": warm}
    return {"l1_coefficient": recipe.sparsity, "l1_warm_up_steps": warm}


def save(trainer: Any, folder: Path) -> None:
    """Fold the scale and the decoder's norms into the weights, and write sae-lens's inference format into `folder`."""
    sae = trainer.sae.to(torch.device("cpu"))
    sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    trainer.activation_scaler.scaling_factor = None
    trainer.set_final_sae_metadata()
    if not getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):  # which folds them while it saves
        sae.fold_W_dec_norm()
    sae.save_inference_model(folder)
