"""The steps: rows in batches, every SAE of a pass on the same ones, figures and checkpoints on the way."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probes.activations import Activations
from probes.errors import InputError
from probes.progress import Progress
from saes.train.checkpoint import write_checkpoint
from saes.train.recipe import SAERecipe
from saes.train.source import RowSource
from saes.train.sparse import Outcome, take_step
from saes.train.survey import Survey, finite


@dataclass
class Run:
    """One SAE on its way: its block, its trainer, where it is kept, and its figures so far."""

    layer: int
    seed: int
    folder: Path
    asked: dict[str, Any]
    trainer: Any
    log: list[dict[str, float | int]] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.trainer.n_training_steps


@dataclass(frozen=True)
class Pace:
    """How many steps there are, and every how many of them a checkpoint is written and figures are noted."""

    steps: int
    checkpoint: int
    log: int


def train_runs(
    runs: Sequence[Run],
    source: RowSource,
    surveys: Mapping[int, Survey],
    recipe: SAERecipe,
    *,
    checkpoint_every: int,
    progress: Progress,
) -> None:
    """Take every run to its last step, in one pass after the other over the rows; what is done is not done again."""
    pace = Pace(recipe.steps, checkpoint_every, max(1, recipe.steps // 100))
    feeds = {layer: Feed(layer, surveys[layer].cut, recipe.batch) for layer in {run.layer for run in runs}}
    for chunk in _endless(source, recipe.order_seed):
        late, held = source.parted(chunk)
        for layer, feed in feeds.items():
            own = [run for run in runs if run.layer == layer]
            for number, batch in feed.batches(chunk, late & ~held):
                for run in own:
                    if run.step == number < pace.steps:
                        _step(run, batch, pace)
                        progress(sum(each.step for each in runs), pace.steps * len(runs), _told(runs))
        if all(run.step >= pace.steps for run in runs):
            return


def _endless(source: RowSource, seed: int) -> Iterator[Activations]:
    """Pass after pass; the order of each is drawn from the seed and the number of the pass."""
    number = 0
    while True:
        yield from source.chunks(torch.Generator().manual_seed(seed * 1_000_003 + number))
        number += 1


class Feed:
    """The rows of one block as batches of one size, numbered from 0; rows left over wait for the next chunk."""

    def __init__(self, layer: int, cut: float, size: int) -> None:
        self.layer, self.cut, self.size, self.number = layer, cut, size, 0
        self.rest: Tensor | None = None

    def batches(self, chunk: Activations, keep: Tensor) -> Iterator[tuple[int, Float[Tensor, "batch d_model"]]]:
        """The batches that the rows in `keep` fill, without those that are too long."""
        rows = finite(chunk.at(self.layer), self.layer).float()
        if self.cut < math.inf:
            keep = keep & (rows.norm(dim=-1) <= self.cut)
        rows = rows if bool(keep.all()) else rows[keep]
        rows = rows if self.rest is None else torch.cat([self.rest, rows])
        full = len(rows) - len(rows) % self.size
        for batch in rows[:full].split(self.size) if full else ():
            yield self.number, batch
            self.number += 1
        self.rest = rows[full:].clone()


def _step(run: Run, batch: Tensor, pace: Pace) -> None:
    """One step of sae-lens's trainer, and what is due after it."""
    output = take_step(run.trainer, batch)
    run.trainer.n_training_steps += 1
    if run.step % pace.log == 0 or run.step == pace.steps:
        run.log.append(_figures(run, output, batch))
    if run.step % pace.checkpoint == 0 and run.step < pace.steps:
        write_checkpoint(run.folder, run.trainer, {"asked": run.asked, "log": run.log})


@torch.no_grad()
def _figures(run: Run, output: Outcome, batch: Tensor) -> dict[str, float | int]:
    """Of the batch: loss, share of variance unexplained, active latents a row; and latents that fell silent."""
    trainer = run.trainer
    loss = output.loss.item()
    if not math.isfinite(loss):
        raise InputError(
            f"block {run.layer}: the loss of step {run.step} is not finite; give a smaller lr than {trainer.cfg.lr:g} "
            f"and another folder than {run.folder}"
        )
    spread = (batch - batch.mean(0)).double().square().sum(
        -1
    ).mean().item() * trainer.activation_scaler.scaling_factor**2
    return {
        "step": run.step,
        "loss": loss,
        "fvu": output.mse.item() / spread if spread else math.nan,
        "l0": (output.latents > 0).sum().item() / len(batch),
        "dead": int(trainer.dead_neurons.sum()),
        "lr": trainer.optimizer.param_groups[0]["lr"],
    }


def _told(runs: Sequence[Run]) -> str:
    """What a bar says beside its figure: the latest figures, means over the SAEs."""
    latest = [run.log[-1] for run in runs if run.log]
    if not latest:
        return "SAE training"
    loss, l0, dead = (sum(one[name] for one in latest) / len(latest) for name in ("loss", "l0", "dead"))
    return f"SAE training (loss {loss:.3g}, L0 {l0:.1f}, {dead:.0f} dead)"
