"""The harvest on Ray beside one process: conversations a second into a store, and what a cluster costs to start.

`python benchmarks/bench_harvest.py [--quick] [--json FILE] [--threads N] [--rounds N] [--workers N]`

Job: a Llama of random parameters in float32 reads conversations, and the output of its middle block at every token goes
to a store in bfloat16. Both write the same shards, proven equal before anything is timed. `start` is `ray.init` alone.
Every harvest starts its actors and loads a model in each: `first` is how long it takes until a first shard is stored.
What Ray costs per shard shows in `rates`: conversations a second of one process, and of the harvest behind its first
shard. With as many workers as cores on one machine little can be won.
"""

import importlib.metadata
import os
import random
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bench_steering import Job, Size  # noqa: E402
from benchmarks.common import finish, interleaved, options, rounds_of  # noqa: E402

FULL = Size(width=512, depth=8, block=4, vocabulary=4096, prompt=512, new=0)
QUICK = Size(width=128, depth=4, block=2, vocabulary=1024, prompt=256, new=0)


def conversations(size: Size, count: int) -> list[Any]:
    """Conversations of 32 to 480 words (quick: to 240), the same every time."""
    from probes.conversations import Conversation

    draw = random.Random(0)
    lengths = [draw.randint(32, size.prompt - 16) // 2 for _ in range(count)]
    words = range(4, size.vocabulary)
    return [Conversation.of(*(" ".join(f"w{i}" for i in draw.choices(words, k=n)) for _ in range(2))) for n in lengths]


def main() -> None:
    """Prove, time, print, and write as JSON if asked."""
    parser = options(__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = Path(tempfile.mkdtemp(prefix="bench_harvest_"))
    try:
        finish(measured(folder, QUICK if args.quick else FULL, args), args)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measured(folder: Path, size: Size, args: Any) -> dict[str, Any]:
    """Seconds and rates of both, after proof that they store the same."""
    try:
        import ray
    except ImportError:
        return {"absent": {"ray": "not installed"}}
    from probes import ActivationStore, Reading, Workers, capture, harvest, load_model

    job = Job(size)
    job.model.hf.save_pretrained(folder / "model")
    job.model.tokenizer.save_pretrained(folder / "model")
    model, rows = load_model(folder / "model"), conversations(size, 128 if args.quick else 512)
    reading = Reading((size.block,), "tokens", batch_tokens=4096)
    started = time.perf_counter()
    ray.init("local", num_cpus=args.workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    start = time.perf_counter() - started

    def fresh(name: str) -> ActivationStore:
        shutil.rmtree(folder / name, ignore_errors=True)
        return ActivationStore.create(folder / name, dtype=torch.bfloat16, shard_tokens=2048)

    def alone() -> ActivationStore:
        store = fresh("alone")
        capture(model, rows, **vars(reading), store=store)
        return store

    told: list[list[tuple[float, int]]] = []

    def spread() -> ActivationStore:
        store, load, begun = fresh("spread"), partial(load_model, str(folder / "model")), time.perf_counter()
        told.append([])
        work: Any = {"tokenizer": model.tokenizer, "reading": reading, "workers": Workers(args.workers)}
        tell = lambda done, *_: told[-1].append((time.perf_counter() - begun, done))  # noqa: E731
        harvest(load, rows, store=store, progress=tell, **work)
        return store

    one, other = alone(), spread()
    torch.testing.assert_close(one.load().values, other.load().values)
    assert [shard.conversations for shard in one.shards] == [shard.conversations for shard in other.shards]
    seconds = interleaved({"alone": alone, "harvest": spread}, rounds_of(args))
    ray.shutdown()
    middle = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "seconds": middle | {"start": start, "first": float(np.median([times[0][0] for times in told[1:]]))},
        "rates": {
            "alone": len(rows) / middle["alone"],
            "harvest": float(np.median([rate(times) for times in told[1:]])),
        },
        "tokens": len(one),
        "shards": len(one.shards),
        "workers": args.workers,
        "ratios": {"harvest_over_alone": middle["alone"] / middle["harvest"]},
        "size": vars(size),
        "versions": {name: importlib.metadata.version(name) for name in ("ray", "torch", "transformers")},
    }


def rate(times: list[tuple[float, int]]) -> float:
    """Conversations a second behind the first shard."""
    (start, held), (end, done) = times[0], times[-1]
    return (done - held) / (end - start)


if __name__ == "__main__":
    main()
