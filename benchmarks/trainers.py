"""Who trains in `bench_sae_training.py`: ours, sae-lens, sparsify, dictionary_learning, step by step."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Tensor], object]
#: sae-lens's own ways, where the recipe has others.
SAE_LENS = {"unit_rows": False, "revive": 1.0}


@dataclass(frozen=True)
class Size:
    """How large the SAE is, how many steps a round has, what is tried for quality; rows of the memory test's stores."""

    width: int = 256
    latents: int = 4096
    k: int = 32
    batch: int = 1024
    steps: int = 32
    rates: tuple[float, ...] = (2e-3, 4e-3, 6e-3, 8e-3)
    reached_steps: int = 300
    stored: tuple[int, int] = (60_000, 300_000)


QUICK = Size(width=128, latents=1024, k=16, steps=16, rates=(6e-3,), reached_steps=40, stored=(15_000, 75_000))


@dataclass(frozen=True)
class Job:
    """Rows, the SAE that is trained on them, its rate and steps in all, and the store that holds the rows, if any."""

    rows: Tensor
    size: Size
    lr: float = 1e-3
    total: int = 10_000
    folder: Path | None = None

    @cached_property
    def recipe(self) -> Any:
        from saes import SAERecipe

        sizes = {"d_sae": self.size.latents, "k": self.size.k, "batch": self.size.batch}
        return SAERecipe(**sizes, steps=self.total, lr=self.lr, held_out=0.0)

    @cached_property
    def source(self) -> Any:
        from probes.store import ActivationStore
        from saes.train.source import open_source

        rows = self.rows if self.folder is None else ActivationStore.open(self.folder)
        return open_source(rows, (0,), self.recipe)

    @cached_property
    def found(self) -> Any:
        from saes.train.survey import survey

        return survey(self.source, self.recipe)

    @property
    def scale(self) -> float:
        """What rows are multiplied by."""
        return self.rows.shape[1] ** 0.5 / self.found[0].norm

    def trainer(self, **changes: Any) -> Any:
        """A trainer by the recipe, but for these fields."""
        from saes.train.native import make_trainer

        return make_trainer(self.recipe.with_(**changes), self.found[0], seed=0, names={}, device="cpu")

    def schedule(self, optimiser: Any) -> Any:
        """sae-lens's schedule of the rate, for the others."""
        from sae_lens.training.optim import get_lr_scheduler

        warm, fall = self.total // 20, self.total // 3
        told = {"lr": self.lr, "lr_end": self.lr, "warm_up_steps": warm, "decay_steps": fall, "num_cycles": 1}
        return get_lr_scheduler("constant", optimizer=optimiser, training_steps=self.total, **told)

    def batches(self) -> Iterator[Tensor]:
        """Pass after pass over the rows in memory, each in an order of its own."""
        for number in itertools.count():
            order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(number))
            for part in order.split(self.size.batch):
                if len(part) == self.size.batch:
                    yield self.rows[part]


@dataclass(frozen=True)
class Contender:
    """One step on a batch, and the reconstruction of rows by what has been learnt."""

    step: Step
    reconstruct: Callable[[Tensor], Tensor]


def ours(job: Job) -> Contender:
    from saes.train.sparse import take_step

    return _native(job, job.trainer(), take_step)


def with_sae_lens(job: Job) -> Contender:
    return _native(job, job.trainer(**SAE_LENS), lambda trainer, batch: trainer.step(batch))


def _native(job: Job, trainer: Any, take: Callable[[Any, Tensor], object]) -> Contender:

    def step(batch: Tensor) -> None:
        take(trainer, batch)
        trainer.n_training_steps += 1

    return Contender(step, lambda x: trainer.sae(x * job.scale) / job.scale)


def with_sparsify(job: Job) -> Contender:
    """As its `Trainer.train` does for the loss "fvu" and Adam, without a model."""
    from sparsify import SparseCoder, SparseCoderConfig

    with torch.random.fork_rng():
        torch.manual_seed(0)
        coder = SparseCoder(job.size.width, SparseCoderConfig(num_latents=job.size.latents, k=job.size.k))
    optimiser = torch.optim.Adam(coder.parameters(), lr=job.lr)
    schedule = job.schedule(optimiser)
    coder.b_dec.data = job.rows.mean(0) * job.scale

    def step(batch: Tensor) -> None:
        x = batch * job.scale
        coder.set_decoder_norm_to_unit_norm()
        coder(x, total_variance=(x - x.mean(0)).square().sum()).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()

    return Contender(step, lambda x: coder(x * job.scale).sae_out / job.scale)


def with_dictionary_learning(job: Job) -> Contender:
    from dictionary_learning.trainers import TopKTrainer

    sizes = {"activation_dim": job.size.width, "dict_size": job.size.latents, "k": job.size.k}
    when = {"steps": job.total, "warmup_steps": max(1, job.total // 20), "decay_start": job.total - job.total // 3}
    with torch.random.fork_rng():
        trainer = TopKTrainer(**sizes, **when, lr=job.lr, layer=0, lm_name="", seed=0, device="cpu")
    number = itertools.count()
    return Contender(
        lambda batch: trainer.update(next(number), batch * job.scale),
        torch.no_grad()(lambda x: trainer.ae(x * job.scale) / job.scale),
    )


PEERS: dict[str, Callable[[Job], Contender]] = {
    "sae_lens": with_sae_lens,
    "sparsify": with_sparsify,
    "dictionary_learning": with_dictionary_learning,
}
