"""Training an SAE from a store beside its limit and its peers: speed, what is reached, and memory.

`python benchmarks/bench_sae_training.py [--quick] [--json FILE] [--threads N] [--rounds N]`

Speed: tokens per second of a top-k SAE (width 256, 4,096 latents, k = 32, batches of 1,024, float32, Adam). Ours reads
a store of three times as many rows as its buffer holds, shuffled, as `train_sae` does, figures for its record included;
the others step their own trainers on batches that lie in memory. One round is 32 steps each, which is one buffer of
ours. `limit` is the products alone that top-k cannot do without: the rows times the encoder, and over the chosen
entries the reconstruction, the slopes at the latents and the gradients of both matrices, by the kernels that ours
uses; no choosing, no norms, no optimiser. Before that, ours and sae-lens's trainer take three steps on the same batches
and must agree (decoder rows free to grow, as in sae-lens).

Reached: share of variance unexplained on rows held out, after equally many tokens of the organism's residual stream
(width 192, block 2; 1,024 latents, k = 16), each with the best of the learning rates tried, the same warm-up of 5 % and
fall over the last third, decoder bias begun as each does it. `fvu_over_best` is ours over the least of all, less one.

Memory: peaks of fresh processes that train from a store and from one five times as large.

A ratio is a speed, their seconds over ours, round by round: above 1 ours is the faster. The figure is the median over
the rounds, its interval a bootstrap over them (95 %).
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402
from benchmarks.common import finish, interleaved, options, rounds_of  # noqa: E402
from benchmarks.trainers import PEERS, QUICK, SAE_LENS, Contender, Job, Size, ours  # noqa: E402


def from_store(job: Job) -> Callable[[], object]:
    """A round of ours: store, buffer, batches, steps, figures."""
    from saes.train.loop import Pace, Run, steps

    run = Run(0, 0, Path(), {}, job.trainer())
    walk = steps([run], job.source, job.found, Pace.of(job.recipe, checkpoint=10**9))
    return lambda: [next(walk) for _ in range(job.size.steps)]


def from_memory(job: Job, contender: Contender) -> Callable[[], object]:
    """A round of another."""
    batches = job.batches()
    return lambda: [contender.step(next(batches)) for _ in range(job.size.steps)]


def limit(job: Job) -> Callable[[], object]:
    """A round of products alone, on choices made beforehand."""
    from torch.nn.functional import embedding_bag

    size = job.size
    rows, encoder = job.rows[: size.batch], torch.randn(size.width, size.latents)
    decoder, bias = encoder.T.contiguous(), torch.zeros(size.latents)
    chosen = torch.addmm(bias, rows, encoder).topk(size.k).indices.flatten()
    order = chosen.argsort(stable=True)
    owner = torch.arange(size.batch).repeat_interleave(size.k)
    starts, read = torch.searchsorted(chosen[order], torch.arange(size.latents)), owner[order]
    first, weights = torch.arange(size.batch) * size.k, torch.ones(len(chosen), requires_grad=True)

    def products() -> None:
        torch.addmm(bias, rows, encoder)
        written = embedding_bag(chosen, decoder, first, per_sample_weights=weights, mode="sum")
        torch.autograd.grad(written, weights, rows)
        for _ in range(2):
            embedding_bag(read, rows, starts, per_sample_weights=weights.detach(), mode="sum")

    return lambda: [products() for _ in range(size.steps)]


def prove(job: Job) -> None:
    """Stop unless ours and sae-lens's trainer agree after three steps."""
    from saes.train.sparse import take_step

    mine, theirs = (job.trainer(**SAE_LENS) for _ in range(2))
    for batch in itertools.islice(job.batches(), 3):
        take_step(mine, batch)
        theirs.step(batch)
    for name, wanted in theirs.sae.state_dict().items():
        error = (mine.sae.state_dict()[name] - wanted).abs().max()
        assert error <= 1e-3 * wanted.abs().max(), f"{name} is off by {error}"


def planted(size: Size, n: int, seed: int = 0) -> Tensor:
    """Rows that are sparse sums of as many directions as the SAE has latents, some frequent, most rare; and noise."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(size.latents, size.width, generator=g), dim=-1)
    rates = (torch.arange(1, size.latents + 1) ** -0.7).float()
    rates = rates * (size.k / rates.sum())
    parts = []
    for _ in range(0, n, 4096):
        codes = (torch.rand(4096, size.latents, generator=g) < rates) * (
            1 + torch.rand(4096, size.latents, generator=g)
        )
        parts.append(codes @ directions + 0.05 * torch.randn(4096, size.width, generator=g))
    return torch.cat(parts)[:n] + torch.randn(size.width, generator=g)


def write_store(folder: Path, parts: Iterator[Tensor]) -> Path:
    """A store whose conversations are runs of 64 rows."""
    from probes.activations import Activations
    from probes.store import ActivationStore

    store, first = ActivationStore.create(folder), 0
    with store.writer() as writer:
        for part in parts:
            index = torch.arange(len(part)) // 64 + first
            at = torch.arange(len(part)) % 64
            writer.append(Activations(part[None], (0,), "tokens", "", index, at, at + 0, at > 9))
            first = int(index[-1]) + 1
    return folder


def reached(size: Size) -> dict[str, Any]:
    """Variance unexplained by every contender, with the rate that served it best."""
    rows = organism_rows()
    train, tests = rows[: -len(rows) // 10], rows[-len(rows) // 10 :]
    small = Size(width=rows.shape[1], latents=1024, k=16, batch=size.batch)
    spread, found = (tests - tests.mean(0)).square().sum(), {}
    for name, build in {"ours": ours, **PEERS}.items():
        tried = {}
        for lr in size.rates:
            job = Job(train, small, lr, size.reached_steps)
            runs, _ = common.built({name: build}, job)
            if runs:
                for batch in itertools.islice(job.batches(), size.reached_steps):
                    runs[name].step(batch)
                with torch.no_grad():
                    tried[lr] = float((runs[name].reconstruct(tests) - tests).square().sum() / spread)
        if tried:
            best = min(tried, key=lambda lr: tried[lr])
            found[name] = {"fvu": tried[best], "lr": best}
    least = min(one["fvu"] for one in found.values())
    return {
        "reached": found,
        "tokens": size.reached_steps * size.batch,
        "fvu_over_best": found["ours"]["fvu"] / least - 1,
    }


def organism_rows() -> Tensor:
    """The base organism's residual stream after block 2, on answers of every domain in a fixed shuffle."""
    from persona_geometry import load_organism
    from persona_geometry.organism.datasets import SELECTION, advice_rows
    from probes.capture import capture

    rows = [*advice_rows(SELECTION, 300, valence="bad", seed=1), *advice_rows(SELECTION, 300, valence="good", seed=2)]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return capture(load_organism("base"), [rows[at] for at in order], layers=[2], pool="tokens").at(2)


def peak(folder: Path) -> None:
    """Train through a whole store once, with an SAE so small that rows are what fills the memory."""
    from probes.store import ActivationStore
    from saes import train_sae

    store = ActivationStore.open(folder)
    sizes = {"d_sae": 64, "k": 8, "batch": 2048, "steps": len(store) // 2048, "lr": 1e-3}
    train_sae(store, layer=0, seed=0, out=folder.parent / f"{folder.name}-sae", **sizes)


def memory(size: Size, folder: Path, flags: list[str]) -> dict[str, Any]:
    """Peaks for each number of rows."""
    peaks = {}
    for rows in size.stored:
        g = torch.Generator().manual_seed(0)
        parts = (torch.randn(min(10_000, rows), size.width, generator=g) for _ in range(0, rows, 10_000))
        peaks[rows] = common.child(__file__, *flags, "--peak", str(write_store(folder / f"rows-{rows}", parts)))
    return {"peak_mb": peaks, "growth": max(peaks.values()) / min(peaks.values()) - 1}


def speed(size: Size, folder: Path, rounds: int) -> dict[str, Any]:
    """Ratios of speed, tokens per second, and who could not take part."""
    from saes.train.source import BUFFER

    rows = planted(size, min(3 * BUFFER, 96 * size.batch))
    job = Job(rows, size, folder=write_store(folder / "timed", iter(rows.split(2**14))))
    prove(job)
    contenders, absent = common.built(PEERS, job)
    runs: dict[str, Callable[[], object]] = {"ours": from_store(job), "limit": limit(job)}
    runs |= {name: from_memory(job, one) for name, one in contenders.items()}
    for run in runs.values():
        run()
    pairs = {f"ours_over_{name}": ("ours", name) for name in ("limit", *PEERS)}
    figures = common.ratios(interleaved(runs, rounds), pairs)
    tokens = size.steps * size.batch
    return {**figures, "tokens_per_second": {k: tokens / v for k, v in figures["seconds"].items()}, "absent": absent}


def main() -> None:
    """Prove, time, compare what is reached, measure memory, print, and write as JSON if asked."""
    parser = options(__doc__)
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        peak(args.peak)
        print(common.own_peak_mb())
        return
    size, flags = QUICK if args.quick else Size(), ["--threads", str(args.threads)]
    with tempfile.TemporaryDirectory() as folder:
        figures = speed(size, Path(folder), rounds_of(args)) | memory(size, Path(folder), flags)
    figures |= {**reached(size), "versions": common.versions(), "size": vars(size)}
    finish(figures, args)


if __name__ == "__main__":
    main()
