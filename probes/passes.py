"""Forward passes: which of a pass's tokens are prompt, answer or padding."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from probes.conversations import Rendered
from probes.errors import InputError

Positions = Literal["all", "prompt", "response", "last_prompt"]
POSITIONS: tuple[Positions, ...] = ("all", "prompt", "response", "last_prompt")
Masks = dict[str, Bool[Tensor, "batch pos"]]

_FORCED: ContextVar[tuple[Rendered, Sequence[int] | None] | None] = ContextVar("_FORCED", default=None)


@contextmanager
def teacher_forced(rendered: Rendered, *, rows: Sequence[int] | None = None) -> Iterator[None]:
    """Tell the interventions in force that the passes in this context read exactly `rendered`, answers included.

    `rows` are the indices of its conversations, to which operators with `for_rows` are bound.
    """
    token = _FORCED.set((rendered, rows))
    try:
        yield
    finally:
        _FORCED.reset(token)


def forced_rows() -> Sequence[int] | None:
    """The indices of the conversations that `teacher_forced` has been told of."""
    forced = _FORCED.get()
    return None if forced is None else forced[1]


def active_positions(attention_mask: Bool[Tensor, "batch pos"], *, past: int) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Masks over the tokens of one pass, by kind of position; `past` tokens lie in the cache already."""
    if past:
        nothing = torch.zeros_like(attention_mask)
        return {"all": attention_mask, "response": attention_mask, "prompt": nothing, "last_prompt": nothing}
    order = torch.arange(1, attention_mask.shape[1] + 1, device=attention_mask.device)
    last = (order * attention_mask).argmax(-1, keepdim=True) + 1 == order
    last = last & attention_mask
    return {"all": attention_mask, "prompt": attention_mask, "response": last, "last_prompt": last}


def masks_of_pass(args: tuple[Any, ...], kwargs: Mapping[str, Any], mask: Bool[Tensor, "batch pos"] | None) -> Masks:
    """Which positions of a pass are which, from what the decoder is called with; `mask` replaces what that says."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    tokens = ids if ids is not None else kwargs["inputs_embeds"][..., 0]
    shape, forced = tokens.shape[:2], _FORCED.get()
    if mask is not None:
        if mask.shape != shape:
            raise InputError(
                f"mask of shape {tuple(mask.shape)} over a pass of {tuple(shape)} tokens: give one mask per token"
            )
        return {kind: mask.to(tokens.device) for kind in POSITIONS}
    if forced is not None and forced[0].input_ids.shape == shape:
        return forced_positions(forced[0].to(tokens.device))
    past = _past(kwargs)
    return active_positions(_attended(kwargs.get("attention_mask"), tokens, past), past=past)


def forced_positions(rendered: Rendered) -> Masks:
    """Which tokens of rendered conversations operators edit, by their `positions`."""
    return {
        "all": rendered.attention_mask.bool(),
        "prompt": rendered.prompt,
        "response": rendered.response | rendered.last_prompt,
        "last_prompt": rendered.last_prompt,
    }


def _attended(mask: Any, tokens: Tensor, past: int) -> Bool[Tensor, "batch pos"]:
    """Which tokens of the pass are no padding; in a mask of queries by keys, those that may look at themselves."""
    if isinstance(mask, Mapping):  # one for each kind of attention
        mask = mask.get("full_attention", next(iter(mask.values())))
    n_batch, n_pos = tokens.shape[:2]
    if mask is None:
        return torch.ones(n_batch, n_pos, dtype=torch.bool, device=tokens.device)
    if mask.ndim == 4 and mask.shape[2] == n_pos and mask.shape[3] >= past + n_pos:
        own = mask[:, 0].diagonal(past, dim1=-2, dim2=-1)
        mask = (own if own.dtype == torch.bool else own == 0).expand(n_batch, -1)
    if mask.ndim != 2:
        raise InputError(f"attention mask with axes {tuple(mask.shape)} inside intervene: pass a [batch, pos] mask")
    return mask[:, -n_pos:].bool().to(tokens.device)


def _past(kwargs: Mapping[str, Any]) -> int:
    cache = kwargs.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())
