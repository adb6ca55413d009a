"""Checks of reading: what a capture gives against the model's own account, alone and in batches."""

import inspect
import re
from typing import Any

import torch
from torch import nn

from probes.activations import Site
from probes.conversations import Rendered
from probes.errors import InputError
from probes.hooks import capture_sites
from probes.models import Model, evaluating, unwrap
from probes.verify.bench import Bench, NotHere, activations_of, error, real_tokens, run


def unfinite_activations(bench: Bench) -> float:
    """Tokens at which some block writes a value that is not finite."""
    return float((~torch.isfinite(bench.left).all(-1)).any(0).sum())


def hidden_states(bench: Bench) -> float:
    """Against `hidden_states`, whose i-th entry is the output of block i - 1 (the last one is past the final norm)."""
    hidden = run(bench.model, bench.rendered, output_hidden_states=True).hidden_states
    theirs = torch.stack([state.to(bench.model.device) for state in hidden[1 : bench.model.n_layers]])
    return error(bench.left[:-1], real_tokens(theirs, bench.rendered))


def final_norm(bench: Bench) -> float:
    """The last block's output under the final norm, against the model's last hidden state; 1 where they are the same
    without it."""
    last, norm = bench.values[-1], _norm_behind(bench.model)
    theirs = getattr(_decoded(bench.model, bench.rendered), "last_hidden_state", None)
    if theirs is None:
        raise NotHere
    mask = bench.rendered.attention_mask.bool()
    if error(last[mask], theirs[mask]) <= bench.tolerance:
        return 1.0
    if norm is None:
        raise NotHere
    with evaluating(bench.model):
        return error(norm(last)[mask], theirs[mask])


def in_place(bench: Bench) -> float:
    """Every block read alone, in a pass that ends with it, against all blocks read in one pass."""
    return error(real_tokens(torch.stack(bench.alone), bench.rendered), bench.left)


def parts_of_blocks(bench: Bench) -> float:
    """What enters a block, plus what attention and MLP add, against what leaves it."""
    layers = [*bench.ends, bench.middle]
    sites: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out")
    try:
        found = capture_sites(bench.model, bench.rendered, [(layer, site) for layer in layers for site in sites])
    except InputError:
        raise NotHere from None
    stacks = [torch.stack([found[layer, site] for layer in layers]) for site in sites]
    pre, attn, mlp = (real_tokens(stack, bench.rendered) for stack in stacks)
    return error(pre + attn + mlp, bench.left[layers])


def left_batch(bench: Bench) -> float:
    """A batch padded on the left, against its rows read alone."""
    return error(bench.left, bench.single)


def right_batch(bench: Bench) -> float:
    """A batch padded on the right, against its rows read alone."""
    return error(activations_of(bench.model, bench.rows, side="right"), bench.single)


def positions_unheeded(bench: Bench) -> float:
    """Conversations that the model reads just the same when `position_ids` count backwards."""
    if "position_ids" not in inspect.signature(type(unwrap(bench.model.hf)).forward).parameters:
        raise NotHere
    rendered, mask = bench.rendered, bench.rendered.attention_mask.bool()
    backwards = (rendered.position_ids.amax(-1, keepdim=True) - rendered.position_ids) * mask
    try:
        there, back = (run(bench.model, rendered, position_ids=p).logits for p in (rendered.position_ids, backwards))
    except InputError:
        raise NotHere from None
    return float(sum(torch.equal(a[row], b[row]) for a, b, row in zip(there, back, mask, strict=True)))


def other_dtypes(bench: Bench) -> float:
    """Blocks whose output is not in the dtype of the model."""
    return float(sum(values.dtype != bench.model.dtype for values in bench.alone))


def _decoded(model: Model, rendered: Rendered) -> Any:
    """What the decoder returns below the head."""
    with evaluating(model):
        return unwrap(model.hf).base_model(
            input_ids=rendered.input_ids,
            attention_mask=rendered.attention_mask,
            position_ids=rendered.position_ids,
            use_cache=False,
        )


def _norm_behind(model: Model) -> nn.Module | None:
    """The norm behind the last block: the last norm among the siblings of the list of blocks."""
    blocks = model.blocks
    for parent in unwrap(model.hf).modules():
        children = dict(parent.named_children())
        if any(child is blocks for child in children.values()):
            norms = [c for name, c in children.items() if re.search(r"norm|^ln_", f"{name} {type(c).__name__}", re.I)]
            return norms[-1] if norms else None
    return None
