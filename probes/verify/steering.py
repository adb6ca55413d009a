"""Checks of steering: a vector must reach every position that it is meant for, once, and no other."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.hooks import POSITIONS, capture_blocks, intervene
from probes.verify.bench import Bench, error, real_tokens
from probes.verify.operators import Push, Witness
from probes.verify.writing import extended, stepped


def zero_changes(bench: Bench) -> float:
    """Error of adding zero everywhere."""
    with intervene(bench.model, Push.nowhere(bench)):
        values = capture_blocks(bench.model, bench.rendered, bench.layers)
    return error(real_tokens(values, bench.rendered), bench.left)


def wrong_positions(bench: Bench) -> float:
    """Positions that a vector misses or should have missed, over kinds of positions and blocks, read in its pass."""
    rendered, wrong = bench.rendered, 0
    masks = {"all": rendered.attention_mask.bool(), "prompt": rendered.prompt, "last_prompt": rendered.last_prompt}
    masks["response"] = rendered.response | rendered.last_prompt
    for layer in bench.ends:
        for kind in POSITIONS:
            push = Push.at(bench, layer, kind)
            with intervene(bench.model, push):
                edited = capture_blocks(bench.model, rendered, [layer])[0]
            wrong += _misplaced(bench, edited, bench.values[layer], push.steps[layer], masks[kind])
    return float(wrong)


def wrong_while_writing(bench: Bench) -> float:
    """The same while the model writes with a cache: the last prompt token and every one that it writes."""
    wrong = 0
    for layer in bench.ends:
        push, witness = Push.at(bench, layer, "response"), Witness(layer)
        with intervene(bench.model, push), intervene(bench.model, witness):
            tokens, _ = stepped(bench.model, bench.asked)
        whole = extended(bench.asked, tokens[:, :-1])  # nobody reads the last token
        edited, plain = torch.cat(witness.seen, dim=1), capture_blocks(bench.model, whole, [layer])[0]
        real, wanted = whole.attention_mask.bool(), whole.response | whole.last_prompt
        wrong += _misplaced(bench, edited[real], plain[real], push.steps[layer], wanted[real])
    return float(wrong)


def _misplaced(
    bench: Bench,
    edited: Float[Tensor, "*pos d_model"],
    plain: Float[Tensor, "*pos d_model"],
    step: Float[Tensor, " d_model"],
    wanted: Bool[Tensor, "*pos"],
) -> int:
    """Tokens at which the edit is not `step` where it is wanted, or not zero elsewhere, beyond rounding."""
    edited, plain, step = (part.cpu().double() for part in (edited, plain, step))
    change = edited - plain - wanted.cpu()[..., None] * step
    rounding = bench.tolerance * (plain.norm(dim=-1) + step.norm())
    return int((~(change.norm(dim=-1) <= rounding)).sum())
