"""Training a top-k SAE on activations with sae-lens' trainer."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import InputError
from probes.io import atomic_folder
from probes.progress import Progress, silent
from saes.load import layer_of_hook, load_sae
from saes.rows import Source, stream_rows
from saes.sae import SparseAutoencoder


def train_sae(
    activations: Source,
    *,
    layer: int,
    d_sae: int,
    k: int,
    steps: int,
    lr: float,
    batch: int,
    seed: int,
    out: str | Path,
    model_name: str,
    hook_name: str | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> SparseAutoencoder:
    """Train a top-k SAE (arXiv 2406.04093) on single tokens' activations of block `layer` and save it to `out`.

    `steps` batches of `batch` rows are drawn without replacement, pass after pass. Rows are scaled to a mean norm of
    sqrt(d_model) while training, so that one `lr` (0.003 to 0.01 with Adam) suits any model; the scale is folded into
    the weights at the end. The decoder starts with unit rows and its bias at the rows' mean. The learning rate rises
    over the first 5 % of the steps and falls to zero over the last third. Latents silent for 50 steps (a sixteenth of
    `steps` if that is more) get sae-lens' auxiliary loss.

    The folder holds sae-lens' own format (`cfg.json`, `sae_weights.safetensors`); an SAE folder already there is
    replaced. Same rows, seed and thread count give the same bytes; the global random state is left as it was.
    InputError for sizes that do not fit, rows that are means, not finite, or fewer than a batch.
    """
    out, hook = Path(out), hook_name or f"blocks.{layer}.hook_resid_post"
    if layer_of_hook(hook) != layer:
        raise InputError(
            f"hook_name {hook!r} does not mean the output of block {layer}; leave it out or correct one of them"
        )
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "cfg.json").is_file())):
        raise InputError(f"{out} exists and holds no SAE: choose another folder")
    n, mean, norm = _moments(activations, layer)
    _check_sizes(n, d_sae=d_sae, k=k, steps=steps, lr=lr, batch=batch)
    names = {"model_name": model_name, "hook_name": hook}
    sae = _initial(mean, norm, d_sae=d_sae, k=k, seed=seed, names=names).to(torch.device(device))
    trainer = _trainer(sae, steps, lr, batch)
    trainer.activation_scaler.scaling_factor = math.sqrt(len(mean)) / norm
    shuffle = torch.Generator().manual_seed(seed)
    batches = endless_batches(lambda: stream_rows(activations, layer), batch, shuffle)
    _run(trainer, batches, steps, progress)
    with atomic_folder(out) as folder:
        sae.to(torch.device("cpu")).save_inference_model(folder)
    return load_sae(out, layer=layer)


def endless_batches(
    chunks: Callable[[], Iterator[Tensor]], batch: int, generator: torch.Generator
) -> Iterator[Float[Tensor, "batch d_model"]]:
    """Yield float32 batches for ever: pass after pass over the chunks, each shuffled within itself, each row once."""
    pending: Tensor | None = None
    while True:
        for chunk in chunks():
            order = torch.randperm(len(chunk), generator=generator).to(chunk.device)
            for picked in order.split(batch):
                rows = chunk[picked].float()
                pending = rows if pending is None else torch.cat([pending, rows])
                if len(pending) >= batch:
                    yield pending[:batch]
                    pending = pending[batch:]


def _moments(activations: Source, layer: int) -> tuple[int, Tensor, float]:
    """Number of rows, their mean and their mean norm, in float64."""
    n, total, norms = 0, torch.zeros(1, dtype=torch.float64), 0.0
    for rows in stream_rows(activations, layer, size=2**16):
        rows = rows.double().cpu()
        n, total, norms = n + len(rows), total + rows.sum(0), norms + rows.norm(dim=-1).sum().item()
    if norms == 0:
        raise InputError(f"all {n} rows of block {layer} are zero: there is nothing to train on")
    return n, total / n, norms / n


def _check_sizes(n: int, *, d_sae: int, k: int, steps: int, lr: float, batch: int) -> None:
    if not 0 < k <= d_sae:
        raise InputError(f"k={k} active latents of d_sae={d_sae}: give 1 to {d_sae}")
    if steps < 1 or batch < 1 or not (math.isfinite(lr) and lr > 0):
        raise InputError(f"steps={steps}, batch={batch}, lr={lr}: all three must be positive")
    if n < batch:
        raise InputError(f"{n} rows are fewer than one batch of {batch}: give more activations or a smaller batch")


def _initial(mean: Tensor, norm: float, *, d_sae: int, k: int, seed: int, names: dict[str, str]) -> Any:
    """A sae-lens top-k training SAE, drawn from `seed` alone, its decoder bias at the (scaled) mean of the rows."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    config = TopKTrainingSAEConfig(
        d_in=len(mean), d_sae=d_sae, k=k, decoder_init_norm=1.0, device="cpu", metadata=SAEMetadata(**names)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sae = TopKTrainingSAE(config)
    with torch.no_grad():
        sae.b_dec.copy_(mean * math.sqrt(len(mean)) / norm)
    return sae


def _trainer(sae: Any, steps: int, lr: float, batch: int) -> Any:
    from sae_lens import SAETrainer
    from sae_lens.config import SAETrainerConfig

    config = SAETrainerConfig(
        total_training_samples=steps * batch,
        train_batch_size_samples=batch,
        lr=lr,
        lr_end=lr,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 3,
        dead_feature_window=max(50, steps // 16),
        feature_sampling_window=steps + 1,
        device=str(sae.device),
    )
    return SAETrainer(config, sae, data_provider=iter(()))


def _run(trainer: Any, batches: Iterator[Tensor], steps: int, progress: Progress) -> None:
    """The steps of `SAETrainer.fit`, through the trainer's public parts, without its progress bar."""
    for done in range(1, steps + 1):
        trainer.step(next(batches))
        trainer.n_training_steps += 1
        progress(done, steps, "SAE training")
    trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    trainer.activation_scaler.scaling_factor = None
    trainer.set_final_sae_metadata()
