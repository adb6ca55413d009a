"""Steered generation beside its limit and its peers: a vector added to a block's output while a model writes.

`python benchmarks/bench_steering.py [--quick] [--json FILE] [--threads N] [--rounds N]`

Job: a Llama of 100 million random parameters in float32 continues 8 prompts of 32 tokens by 64 tokens, greedily, with a
vector added at every position to the output of its middle block. Ours is `sample`, from conversations to texts,
templates and decoding included; the others go from token ids to token ids. The limit is `generate` of transformers on
the same model without any steering; `unsteered` is ours without operators.

A ratio is a speed, their seconds over ours, round by round: above 1 ours is the faster. The figure is the median over
the rounds, its interval a bootstrap over them (95 %). No answer ends early: the model cannot say its end token.
"""

import argparse
import copy
import importlib
import sys
from collections.abc import Callable
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
from benchmarks.llama import END, FRAME, PAD, SPECIAL, Llama, random_llama  # noqa: E402

Run = Callable[[], Any]


@dataclass(frozen=True)
class Size(Llama):
    """How large the model and its job are, and the block whose output is steered."""

    block: int = 6
    batch: int = 8
    prompt: int = 32
    new: int = 64


QUICK = Size(width=192, depth=4, block=2, vocabulary=2048, batch=4, prompt=16, new=24)


@dataclass(frozen=True)
class Job:
    """The model, its prompts as conversations and as tokens, and the step that is added."""

    size: Size

    @cached_property
    def model(self) -> Any:
        return random_llama(self.size, self.size.prompt + self.size.new)

    @cached_property
    def conversations(self) -> list[Any]:
        from probes.conversations import Conversation

        shape = (self.size.batch, self.size.prompt - FRAME)
        words = np.random.default_rng(0).integers(len(SPECIAL), self.size.vocabulary, shape)
        return [Conversation.of(" ".join(f"w{i}" for i in row)) for row in words]

    @cached_property
    def step(self) -> torch.Tensor:
        return torch.randn(self.size.width, generator=torch.Generator().manual_seed(1))

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What `generate` of transformers takes: the same tokens and settings for everybody."""
        from probes.conversations import render

        rendered = render(self.model.tokenizer, self.conversations)
        assert rendered.input_ids.shape == (self.size.batch, self.size.prompt), rendered.input_ids.shape
        settings = {"max_new_tokens": self.size.new, "do_sample": False, "eos_token_id": END, "pad_token_id": PAD}
        return {"input_ids": rendered.input_ids, "attention_mask": rendered.attention_mask} | settings

    def words(self, ids: torch.Tensor) -> list[str]:
        """The new tokens as text: a word each, so that equal texts are equal tokens."""
        assert ids.shape == (self.size.batch, self.size.prompt + self.size.new), ids.shape
        return self.model.tokenizer.batch_decode(ids[:, self.size.prompt :], skip_special_tokens=True)


def ours(job: Job, *, steered: bool = True) -> Run:
    from geometry.steering.operators import Add
    from geometry.steering.vectors import PersonaVector
    from probes.ask import sample

    vector = PersonaVector({job.size.block: job.step}, model=job.model.name)
    operators = (Add(vector, strength=1, unit="raw", positions="all"),) if steered else ()
    settings: dict[str, Any] = {"seed": 0, "temperature": 0, "max_new_tokens": job.size.new}
    return lambda: sample(job.model, job.conversations, operators=operators, **settings)


def by_hook(job: Job) -> Run:
    """The plainest way to steer, as the reference that all must equal: a hook of torch's own."""

    def run() -> torch.Tensor:
        hook = job.model.blocks[job.size.block].register_forward_hook(lambda _, __, out: out + job.step)
        try:
            return job.model.hf.generate(**job.inputs)
        finally:
            hook.remove()

    return run


def with_repeng(job: Job) -> Run:
    repeng = common.import_repeng("repeng")
    model = repeng.ControlModel(copy.deepcopy(job.model.hf), [job.size.block])
    model.set_control(repeng.ControlVector("llama", {job.size.block: job.step.numpy()}), 1.0)
    return lambda: model.generate(**job.inputs)


def with_steering_vectors(job: Job) -> Run:
    vector: Any = importlib.import_module("steering_vectors").SteeringVector({job.size.block: job.step})

    def run() -> torch.Tensor:
        with vector.apply(job.model.hf):
            return job.model.hf.generate(**job.inputs)

    return run


def with_nnsight(job: Job) -> Run:
    nnsight: Any = importlib.import_module("nnsight")
    hf, tokenizer = copy.deepcopy((job.model.hf, job.model.tokenizer))
    model = nnsight.TransformersModel(hf, tokenizer=tokenizer, task="text-generation")

    def run() -> torch.Tensor:
        with model.generate(**job.inputs) as tracer:
            for _ in tracer.iter[: job.size.new]:
                model.model.layers[job.size.block].output = model.model.layers[job.size.block].output + job.step
            written = tracer.result.save()
        return written

    return run


def with_transformer_lens(job: Job) -> Run:
    importlib.import_module("transformer_lens")
    bridge: Any = job.model.bridge()
    hooks = [(f"blocks.{job.size.block}.hook_out", lambda out, hook: out + job.step)]
    settings = {"max_new_tokens": job.size.new, "do_sample": False, "eos_token_id": END, "return_type": "tokens"}

    def run() -> torch.Tensor:
        with bridge.hooks(fwd_hooks=hooks):
            return bridge.generate(job.inputs["input_ids"], verbose=False, **settings)

    return run


CONTENDERS: dict[str, Callable[[Job], Run]] = {
    "ours": ours,
    "limit": lambda job: lambda: job.model.hf.generate(**job.inputs),
    "unsteered": partial(ours, steered=False),
    "repeng": with_repeng,
    "steering_vectors": with_steering_vectors,
    "nnsight": with_nnsight,
    "transformer_lens": with_transformer_lens,
}


def prepared(job: Job) -> tuple[dict[str, Run], dict[str, str]]:
    """Those that can run here, after proof that they write the same, and why the others cannot."""
    runs, absent = common.built(CONTENDERS, job)
    plain, steered = job.words(runs["limit"]()), job.words(by_hook(job)())
    assert all(len(text.split()) == job.size.new for text in [*plain, *steered]), "an answer ended early"
    assert not set(plain) & set(steered), "the vector changed nothing"
    for name, run in runs.items():
        found = run()
        found = job.words(found) if isinstance(found, torch.Tensor) else found
        assert found == (plain if name in ("limit", "unsteered") else steered), f"{name} writes something else"
    return runs, absent


def compared(seconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Median ratios of speed with their intervals, and median seconds; an absent peer's ratio is null."""
    pairs = {f"ours_over_{name}": ("ours", name) for name in CONTENDERS if name not in ("ours", "unsteered")}
    return common.ratios(seconds, pairs | {"unsteered_over_limit": ("unsteered", "limit")})


def main() -> None:
    """Prove, time, print, and write as JSON if asked."""
    parser = options(__doc__)
    parser.add_argument("--peak", choices=("ours", "limit"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    job = Job(QUICK if args.quick else Size())
    if args.peak:
        CONTENDERS[args.peak](job)()
        print(common.own_peak_mb())
        return
    flags = ["--threads", str(args.threads), *(["--quick"] if args.quick else [])]
    names = {"peak_mb": "ours", "limit_peak_mb": "limit"}
    peaks = {name: common.child(__file__, *flags, "--peak", who) for name, who in names.items()}
    runs, absent = prepared(job)
    figures: dict[str, Any] = compared(interleaved(runs, rounds_of(args))) | peaks | {"absent": absent}
    figures |= {"parameters": sum(p.numel() for p in job.model.hf.parameters()), "size": vars(job.size)}
    figures |= {"versions": common.versions()}
    finish(figures, args)


if __name__ == "__main__":
    main()
