"""The bench: what every check looks at, measured once, and the check as a value."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probes.conversations import Conversation, Rendered, render
from probes.hooks import capture_blocks
from probes.models import Model, evaluating, unwrap

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Check:
    """One check: it passed when `figure` (a relative error or a count) is at most `limit`.

    `guards` names the public bug that it would have caught, as repository#thread; `detail` says what went wrong where
    no figure could be measured.
    """

    name: str
    passed: bool
    figure: float
    limit: float
    guards: str = ""
    detail: str = ""


class NotHere(Exception):
    """A check does not apply to this model."""


@dataclass(frozen=True, eq=False)
class Bench:
    """A model on the bench, with the conversations that it reads; `base` are the activations of its base model."""

    model: Model
    rows: tuple[Conversation, ...]
    base: Float[Tensor, "layer token d_model"] | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """All blocks."""
        return tuple(range(self.model.n_layers))

    @property
    def ends(self) -> tuple[int, ...]:
        """The first and the last block."""
        return (0, self.model.n_layers - 1)

    @property
    def middle(self) -> int:
        """A block in the middle."""
        return self.model.n_layers // 2

    @property
    def tolerance(self) -> float:
        """The relative error that rounding may cause in the model's dtype."""
        return {torch.float64: 1e-8, torch.float32: 2e-4}.get(self.model.dtype, 5e-2)

    @cached_property
    def rendered(self) -> Rendered:
        """The conversations, padded on the left."""
        return render(self.model.tokenizer, self.rows).to(self.model.device)

    @cached_property
    def asked(self) -> Rendered:
        """Their prompts, padded on the left: what generation starts from."""
        return render(self.model.tokenizer, [row.prompt for row in self.rows]).to(self.model.device)

    @cached_property
    def values(self) -> Float[Tensor, "layer batch pos d_model"]:
        """What all blocks write on `rendered`."""
        return capture_blocks(self.model, self.rendered, self.layers)

    @cached_property
    def alone(self) -> list[Float[Tensor, "batch pos d_model"]]:
        """What each block writes on `rendered`, in a pass that ends with it."""
        return [capture_blocks(self.model, self.rendered, [layer])[0] for layer in self.layers]

    @cached_property
    def single(self) -> Float[Tensor, "layer token d_model"]:
        """What all blocks write on each conversation alone."""
        return torch.cat([activations_of(self.model, [row]) for row in self.rows], dim=1)

    @cached_property
    def left(self) -> Float[Tensor, "layer token d_model"]:
        """What all blocks write on the real tokens, padded on the left, row by row."""
        return real_tokens(self.values, self.rendered)


def real_tokens(
    values: Float[Tensor, "layer batch pos d_model"], rendered: Rendered
) -> Float[Tensor, "layer token d_model"]:
    """Activations without padding, row by row, in float64 on the CPU."""
    return values[:, rendered.attention_mask.bool().to(values.device)].cpu().double()


def activations_of(
    model: Model, conversations: Sequence[Conversation], *, side: Side = "left"
) -> Float[Tensor, "layer token d_model"]:
    """What every block writes on the tokens of `conversations`, read in one batch, in float64 on the CPU."""
    rendered = render(model.tokenizer, conversations, padding_side=side)
    return real_tokens(capture_blocks(model, rendered, range(model.n_layers)), rendered)


def run(model: Model, rendered: Rendered, **settings: Any) -> Any:
    """One forward pass of the whole model over `rendered`, without gradients and, unless asked for, without cache."""
    inputs = {"attention_mask": rendered.attention_mask, "position_ids": rendered.position_ids, "use_cache": False}
    with evaluating(model):
        return unwrap(model.hf)(input_ids=rendered.input_ids, **(inputs | settings))


def error(ours: Float[Tensor, "*any d"], theirs: Float[Tensor, "*any d"]) -> float:
    """The largest distance of a vector from its counterpart, relative to the counterpart's norm."""
    ours, theirs = ours.cpu().double(), theirs.cpu().double()
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-12)).max())
