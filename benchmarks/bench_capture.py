"""Reading activations beside its limit and its peers; and writing them to disk, in memory that does not grow.

`python benchmarks/bench_capture.py [--quick] [--json FILE] [--threads N] [--rounds N]`

First job: the output of the middle block of a Llama of 100 million random parameters in float32, on 8 left-padded
conversations of 40 to 64 tokens. All go from token ids to activations, but for repeng, which goes from texts to those
of the last token. The limit is a model that has no further blocks, run without any hook.

Second job: every token's activation at the middle block of a small Llama goes through `capture` into a store, for
20,000, 100,000 and 500,000 tokens. `store.peak_mb` are the peaks of fresh processes, `store.growth` is the largest of
them over the smallest, less one. `store.writing_over_reading` is the speed with a store over that of the same capture
in memory, for 100,000 tokens in shards of 16,384.

A ratio is a speed, their seconds over ours, round by round: above 1 ours is the faster. The figure is the median over
the rounds, its interval a bootstrap over them (95 %).
"""

import argparse
import copy
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402
from benchmarks.common import finish, interleaved, options, rounds_of  # noqa: E402
from benchmarks.llama import FRAME, SPECIAL, Llama, random_llama  # noqa: E402

Run = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Size(Llama):
    """How large the model and its job are, and the block that is read."""

    block: int = 6
    batch: int = 8
    longest: int = 64
    stored: tuple[int, ...] = (20_000, 100_000, 500_000)


QUICK = Size(width=192, depth=6, block=3, vocabulary=2048, longest=32, stored=(10_000, 40_000))
#: What is captured into a store: small, so that writing is a good part of the work.
SMALL = Llama(width=128, depth=6, vocabulary=2048)
SHARD, LENGTH = 2**12, 128  # tokens of a shard and of a stored conversation
TIMED_SHARD = 2**14  # where the cost of writing is timed: a quarter of what a store does unless it is told otherwise


@dataclass(frozen=True)
class Job:
    """The model, and conversations of different lengths as tokens."""

    size: Size

    @cached_property
    def model(self) -> Any:
        return random_llama(self.size, self.size.longest)

    @cached_property
    def rendered(self) -> Any:
        from probes.conversations import render

        lengths = np.linspace(self.size.longest * 5 // 8, self.size.longest, self.size.batch).astype(int)
        return render(self.model.tokenizer, list(conversations(lengths, self.size.vocabulary)))

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        """What everybody is given: the same tokens at the same positions."""
        rows = self.rendered
        named = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask, "position_ids": rows.position_ids}
        return named


def conversations(lengths: Any, vocabulary: int) -> Iterator[Any]:
    """Conversations of so many tokens each, of random words."""
    from probes.conversations import Conversation

    generator = np.random.default_rng(0)
    for length in lengths:
        words = generator.integers(len(SPECIAL), vocabulary, int(length) - FRAME)
        yield Conversation.of(" ".join(f"w{i}" for i in words))


def ours(job: Job) -> Run:
    from probes.hooks import capture_blocks

    return lambda: capture_blocks(job.model, job.rendered, [job.size.block])[0]


def limit(job: Job) -> Run:
    """The bare decoder, cut behind the block: the same weights, no hook, no norm at the end."""
    decoder = copy.copy(job.model.hf.model)
    decoder._modules = dict(decoder._modules)
    decoder.layers = decoder.layers[: job.size.block + 1]
    decoder.norm = torch.nn.Identity()
    return torch.no_grad()(lambda: decoder(**job.inputs, use_cache=False).last_hidden_state)


def hidden_states(job: Job) -> Run:
    read = partial(job.model.hf.model, **job.inputs, use_cache=False, output_hidden_states=True)
    return torch.no_grad()(lambda: read().hidden_states[job.size.block + 1])


def with_transformer_lens(job: Job, *, stop: bool) -> Run:
    importlib.import_module("transformer_lens")
    bridge, name = job.model.bridge(), f"blocks.{job.size.block}.hook_resid_post"
    settings = {"names_filter": name, "stop_at_layer": job.size.block + 1 if stop else None}
    inputs = {"attention_mask": job.inputs["attention_mask"]}
    return torch.no_grad()(lambda: bridge.run_with_cache(job.inputs["input_ids"], **inputs, **settings)[1][name])


def with_nnsight(job: Job) -> Run:
    nnsight: Any = importlib.import_module("nnsight")
    hf, tokenizer = copy.deepcopy((job.model.hf, job.model.tokenizer))
    model = nnsight.TransformersModel(hf, tokenizer=tokenizer, task="text-generation")

    def run() -> torch.Tensor:
        with torch.no_grad(), model.trace(**job.inputs, use_cache=False) as tracer:
            found = model.model.layers[job.size.block].output.save()
            tracer.stop()
        return found

    return run


def with_steering_vectors(job: Job) -> Run:
    record: Any = importlib.import_module("steering_vectors").record_activations

    def run() -> torch.Tensor:
        with record(job.model.hf, layer_nums=[job.size.block]) as found, torch.no_grad():
            job.model.hf(**job.inputs, use_cache=False)
        return found[job.size.block][0]

    return run


def with_repeng(job: Job) -> Run:
    extract = common.import_repeng("repeng.extract")
    extract.tqdm.tqdm = lambda batches: batches
    block, tokenizer = job.size.block, copy.deepcopy(job.model.tokenizer)
    tokenizer.padding_side = "left"
    read = partial(extract.batched_get_hiddens, job.model.hf, tokenizer, list(job.rendered.texts), [block])
    return lambda: torch.from_numpy(read(job.size.batch)[block])[:, None]


CONTENDERS: dict[str, Callable[[Job], Run]] = {
    "ours": ours,
    "limit": limit,
    "hidden_states": hidden_states,
    "transformer_lens": partial(with_transformer_lens, stop=True),
    "transformer_lens_to_the_end": partial(with_transformer_lens, stop=False),
    "nnsight": with_nnsight,
    "steering_vectors": with_steering_vectors,
    "repeng": with_repeng,
}


def prove(runs: dict[str, Run], job: Job) -> None:
    """Stop unless everybody reads what the limit reads, on every token, or on the last where no other is given."""
    wanted, real = runs["limit"](), job.rendered.attention_mask.bool()
    for name, run in runs.items():
        found = run()
        error = (found - wanted[:, -found.shape[1] :])[real[:, -found.shape[1] :]].abs().max()
        assert error <= 1e-4 * wanted.abs().max(), f"{name} reads something else: off by {error}"


def store_tokens(tokens: int, *, stored: bool = True, small: Any = None, shard: int = SHARD) -> None:
    """Read every token's activation of the small model's middle block, into a store or into memory."""
    from probes.capture import capture
    from probes.store import ActivationStore

    small = small or random_llama(SMALL, LENGTH)
    rows = conversations([LENGTH] * (tokens // LENGTH), SMALL.vocabulary)
    read = partial(capture, small, layers=[SMALL.depth // 2], pool="tokens", batch_size=16)
    with tempfile.TemporaryDirectory() as folder:
        read(rows, store=ActivationStore.create(Path(folder) / "store", shard_tokens=shard) if stored else None)


def stored(size: Size, rounds: int, flags: list[str]) -> dict[str, Any]:
    """Peaks for each number of tokens, and what writing costs at the second of them."""
    peaks = {tokens: common.child(__file__, *flags, "--peak", str(tokens)) for tokens in size.stored}
    small = random_llama(SMALL, LENGTH)
    write = partial(store_tokens, size.stored[1], small=small, shard=TIMED_SHARD)
    runs = {"writing": write, "reading": partial(write, stored=False)}
    figures = common.ratios(interleaved(runs, rounds), {"writing_over_reading": ("writing", "reading")})
    cost = {"writing_over_reading": figures["ratios"]["writing_over_reading"], "seconds": figures["seconds"]}
    return {"peak_mb": peaks, "growth": max(peaks.values()) / min(peaks.values()) - 1, **cost}


def main() -> None:
    """Prove, time, print, and write as JSON if asked."""
    parser = options(__doc__)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    job = Job(QUICK if args.quick else Size())
    if args.peak:
        store_tokens(int(args.peak)) if args.peak.isdigit() else CONTENDERS[args.peak](job)()
        print(common.own_peak_mb())
        return
    flags = ["--threads", str(args.threads), *(["--quick"] if args.quick else [])]
    figures: dict[str, Any] = {
        "peak_mb": common.child(__file__, *flags, "--peak", "ours"),
        "limit_peak_mb": common.child(__file__, *flags, "--peak", "limit"),
    }
    runs, absent = common.built(CONTENDERS, job)
    prove(runs, job)
    pairs = {f"ours_over_{name}": ("ours", name) for name in CONTENDERS if name != "ours"}
    figures |= common.ratios(interleaved(runs, rounds_of(args)), pairs)
    figures |= {"store": stored(job.size, rounds_of(args), flags), "absent": absent, "versions": common.versions()}
    figures |= {"parameters": sum(p.numel() for p in job.model.hf.parameters()), "size": vars(job.size)}
    finish(figures, args)


if __name__ == "__main__":
    main()
