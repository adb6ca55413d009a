"""The steps: rows in batches, every SAE of a pass on the same ones, figures and checkpoints on the way."""

import itertools
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


@dataclass(frozen=True, eq=False)
class Start:
    """Where a pass over the rows began: its number, that of its first batch, and rows left over from the one before."""

    passed: int = 0
    number: int = 0
    rest: Float[Tensor, "sample d_model"] | None = None


@dataclass
class Run:
    """One SAE on its way: its block, its trainer, where it is kept, and its figures so far."""

    layer: int
    seed: int
    folder: Path
    asked: dict[str, Any]
    trainer: Any
    log: list[dict[str, float | int | None]] = field(default_factory=list)
    start: Start = field(default_factory=Start)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.trainer.n_training_steps


@dataclass(frozen=True)
class Pace:
    """How many steps of how many rows there are, in what order, and how many lie between two checkpoints."""

    steps: int
    batch: int
    order_seed: int
    checkpoint: int

    @classmethod
    def of(cls, recipe: SAERecipe, checkpoint: int) -> "Pace":
        """That of a recipe."""
        return cls(recipe.steps, recipe.batch, recipe.order_seed, checkpoint)

    @property
    def log(self) -> int:
        """Steps between two notes of the figures."""
        return max(1, self.steps // 100)


def train_runs(
    runs: Sequence[Run], source: RowSource, surveys: Mapping[int, Survey], pace: Pace, *, progress: Progress
) -> None:
    """Take every run to its last step; the steps and figures of all go to `progress`."""
    for _ in steps(runs, source, surveys, pace):
        progress(sum(run.step for run in runs), pace.steps * len(runs), _told(runs))


def steps(
    runs: Sequence[Run], source: RowSource, surveys: Mapping[int, Survey], pace: Pace
) -> Iterator[Float[Tensor, "batch d_model"]]:
    """Yield the batch of every step taken, pass after pass over the rows, until all runs have made theirs.

    All read the same passes, from the first one in which a run still has to do something; a run that comes from a
    checkpoint lets the batches of that pass go by that it has had. The order of a pass is drawn from its number.
    """
    groups = {layer: [run for run in runs if run.layer == layer] for layer in {run.layer for run in runs}}
    feeds = {
        layer: Feed(layer, surveys[layer].cut, pace.batch, min((run.start for run in own), key=lambda at: at.passed))
        for layer, own in groups.items()
    }
    for passed in itertools.count(min(feed.start.passed for feed in feeds.values())):
        for chunk in source.chunks(torch.Generator().manual_seed(pace.order_seed * 1_000_003 + passed)):
            late, held = source.parted(chunk)
            for layer, feed in feeds.items():
                for number, batch in feed.batches(passed, chunk, late & ~held):
                    for run in groups[layer]:
                        if run.step == number < pace.steps:
                            _step(run, feed, batch, pace)
                            yield batch
            if all(run.step >= pace.steps for run in runs):
                return


class Feed:
    """The rows of one block as batches of one size, numbered from 0; rows left over wait for the next chunk.

    `start` is where its present pass began: what it takes to begin that pass again.
    """

    def __init__(self, layer: int, cut: float, size: int, start: Start) -> None:
        self.layer, self.cut, self.size, self.start = layer, cut, size, start
        self.number, self.rest = start.number, start.rest

    def batches(
        self, passed: int, chunk: Activations, keep: Tensor
    ) -> Iterator[tuple[int, Float[Tensor, "batch d_model"]]]:
        """The batches that the rows in `keep` fill, without those too long; none before the pass of `start`."""
        if passed < self.start.passed:
            return
        if passed > self.start.passed:
            self.start = Start(passed, self.number, self.rest)
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


def _step(run: Run, feed: Feed, batch: Tensor, pace: Pace) -> None:
    """One step of sae-lens's trainer, and what is due after it."""
    output = take_step(run.trainer, batch)
    run.trainer.n_training_steps += 1
    if run.step % pace.log == 0 or run.step == pace.steps:
        run.log.append(_figures(run, output, batch))
    if run.step % pace.checkpoint == 0 and run.step < pace.steps:
        begun = {"passed": feed.start.passed, "number": feed.start.number}
        about = {"asked": run.asked, "log": run.log, "start": begun}
        write_checkpoint(run.folder, run.trainer, about, rest=feed.start.rest)


@torch.no_grad()
def _figures(run: Run, output: Outcome, batch: Tensor) -> dict[str, float | int | None]:
    """Of the batch: loss, share of variance unexplained, active latents a row; and latents that fell silent."""
    trainer = run.trainer
    loss = output.loss.item()
    if not math.isfinite(loss):
        raise InputError(
            f"block {run.layer}: the loss of step {run.step} is not finite; give a smaller lr than {trainer.cfg.lr:g} "
            f"and another folder than {run.folder}"
        )
    spread = (batch - batch.mean(0)).double().square().sum(-1).mean().item()
    spread *= trainer.activation_scaler.scaling_factor**2
    return {
        "step": run.step,
        "loss": loss,
        "fvu": output.mse.item() / spread if spread else None,
        "l0": (output.latents > 0).sum().item() / len(batch),
        "dead": int(trainer.dead_neurons.sum()),
        "lr": trainer.optimizer.param_groups[0]["lr"],
    }


def _told(runs: Sequence[Run]) -> str:
    """What a bar says beside its figure: the latest figures, means over the SAEs."""
    latest = [run.log[-1] for run in runs if run.log]
    if not latest:
        return "SAE training"
    loss, l0, dead = (sum(one[name] or 0 for one in latest) / len(latest) for name in ("loss", "l0", "dead"))
    return f"SAE training (loss {loss:.3g}, L0 {l0:.1f}, {dead:.0f} dead)"
