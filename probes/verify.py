"""The self-test: does reading and editing activations give what it should, on this very model?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.conversations import Conversation, Rendered, render
from probes.errors import InputError
from probes.hooks import Positions, capture_blocks, intervene
from probes.models import Model, evaluating, unwrap


@dataclass(frozen=True)
class Check:
    """One check: it passed when `figure` (a relative error or a count) is at most `limit`."""

    name: str
    passed: bool
    figure: float
    limit: float


@dataclass(frozen=True)
class _Nothing:
    """An operator that adds zero everywhere."""

    layers: tuple[int, ...]
    positions: Positions = "all"

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"], *, layer: int, mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        return activations + mask[..., None] * torch.zeros_like(activations)


def self_test(model: Model, conversations: Sequence[Conversation]) -> list[Check]:
    """Check that reading and editing activations work on `model`, over a few conversations of different lengths.

    Capture equals the model's own hidden states; a batch equals single rows; padding may lie on either side; hooks
    leave nothing behind; adding zero changes nothing; the chat template writes the first token once. An error is the
    largest distance of a token's activation relative to its norm; the limits follow the model's dtype. Raises
    InputError for fewer than two conversations or blocks.
    """
    if len(conversations) < 2 or model.n_layers < 2:
        raise InputError(
            f"self-test: {len(conversations)} conversations, {model.n_layers} blocks; give two or more of each"
        )
    layers = tuple(range(model.n_layers))
    left, right = (_captured(model, conversations, side, layers) for side in ("left", "right"))
    tolerance = {torch.float64: 1e-8, torch.float32: 2e-4}.get(model.dtype, 5e-2)
    single = torch.cat([_captured(model, [row], "left", layers) for row in conversations], dim=1)
    return [
        _check("capture equals the model's hidden states", _hidden_error(model, conversations), tolerance),
        _check("a batch equals single rows", _error(left, single), tolerance),
        _check("left padding equals right padding", _error(left, right), tolerance),
        _check("hooks leave nothing behind", _left_behind(model, conversations), 0),
        _check("adding zero changes nothing", _zero_error(model, conversations), 0),
        _check("the first token is written once", _doubled_starts(model, conversations), 0),
    ]


def _check(name: str, figure: float, limit: float | int) -> Check:
    return Check(name, bool(figure <= limit), float(figure), float(limit))


def _error(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-12)).max())


def _captured(
    model: Model, conversations: Sequence[Conversation], side: Literal["left", "right"], layers: tuple[int, ...]
) -> Float[Tensor, "layer token d_model"]:
    """Activations of the real tokens, row by row."""
    rendered = render(model.tokenizer, conversations, padding_side=side)
    values = capture_blocks(model, rendered, layers)
    return values[:, rendered.attention_mask.bool().to(values.device)].float()


def _hidden_error(model: Model, conversations: Sequence[Conversation]) -> float:
    """Against `hidden_states`, whose i-th entry is the output of block i - 1 (the last one is past the final norm)."""
    rendered = render(model.tokenizer, conversations).to(model.device)
    mask = rendered.attention_mask.bool()
    inputs = {"attention_mask": rendered.attention_mask, "position_ids": rendered.position_ids}
    with evaluating(model):
        hidden = unwrap(model.hf)(
            rendered.input_ids, output_hidden_states=True, use_cache=False, **inputs
        ).hidden_states
    layers = tuple(range(model.n_layers - 1))
    theirs = torch.stack([hidden[layer + 1].to(mask.device)[mask] for layer in layers])
    return _error(capture_blocks(model, rendered, layers)[:, mask].float(), theirs.float())


def _left_behind(model: Model, conversations: Sequence[Conversation]) -> float:
    before = _hooks(model)
    with intervene(model, _Nothing((0,))):
        _captured(model, conversations[:1], "left", (0,))
    return float(abs(_hooks(model) - before))


def _hooks(model: Model) -> int:
    modules: list[Any] = list(model.hf.modules())
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def _zero_error(model: Model, conversations: Sequence[Conversation]) -> float:
    layers = tuple(range(model.n_layers))
    plain = _captured(model, conversations, "left", layers)
    with intervene(model, _Nothing(layers)):
        return _error(_captured(model, conversations, "left", layers), plain)


def _doubled_starts(model: Model, conversations: Sequence[Conversation]) -> float:
    """Conversations whose tokens begin with the start token twice."""
    start = model.tokenizer.bos_token_id
    rows = [_unpadded(render(model.tokenizer, [conversation])) for conversation in conversations]
    doubled = [row[:2] == [start, start] for row in rows] if start is not None else []
    return float(sum(doubled))


def _unpadded(rendered: Rendered) -> list[int]:
    return rendered.input_ids[rendered.attention_mask.bool()].tolist()
