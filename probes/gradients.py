"""Gradients of answers' losses with respect to activations: one backward pass a batch, none left on the parameters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from probes.activations import Site
from probes.conversations import Conversation, Rendered, conversation_batches, render
from probes.errors import InputError
from probes.hooks import intervene, teacher_forced
from probes.models import Model, check_layer, evaluating, unwrap
from probes.passes import Positions


@dataclass(frozen=True)
class LossGradients:
    """Conversations of one batch at one site of one block; `rows` are their numbers, `mask` the positions asked for.

    `values` are the activations and `grads` dL/d(values), both in float32. The `losses` L are each row's cross-entropy
    of the answer's tokens, its end token included: their sum in nats over `counts` tokens.
    """

    rows: tuple[int, ...]
    rendered: Rendered
    values: Float[Tensor, "batch pos d_model"]
    grads: Float[Tensor, "batch pos d_model"]
    mask: Bool[Tensor, "batch pos"]
    losses: Float[Tensor, " batch"]

    @property
    def counts(self) -> Float[Tensor, " batch"]:
        """Tokens of each answer."""
        return self.rendered.response.sum(-1).to(self.losses)


def loss_gradients(
    model: Model,
    conversations: Sequence[Conversation],
    *,
    layer: int,
    site: Site = "resid_post",
    positions: Positions = "all",
    batch_size: int = 8,
) -> Iterator[LossGradients]:
    """Yield gradients in batches of like length. Rows do not touch one another, whatever shares their batch.

    The model computes in its own dtype; the gradient is taken at a float32 copy of the activations. Nothing before the
    block is differentiated, no parameter gets a gradient, and modes and flags stay as they were. Raises InputError for
    a block that does not exist, a conversation without an answer, and a gradient that is not finite.
    """
    check_layer(model, layer)
    for number, row in enumerate(conversations):
        if row.answer is None:
            raise InputError(f"conversation {number} has no answer to take the loss of: give it one or leave it out")
    for index, rows in conversation_batches(conversations, batch_size):
        leaf = _Leaf(layer, site, positions)
        rendered = render(model.tokenizer, rows).to(model.device)
        with evaluating(model), torch.enable_grad(), intervene(model, leaf), teacher_forced(rendered, rows=index):
            losses = _losses(model, rendered)
        assert leaf.value is not None and leaf.mask is not None  # the pass came by
        (grads,) = torch.autograd.grad(losses.sum(), leaf.value)
        if not torch.isfinite(grads).all():
            raise InputError(f"gradient at block {layer} on conversation {index[0]}: not finite; use a wider dtype")
        yield LossGradients(tuple(index), rendered, leaf.value.detach(), grads, leaf.mask, losses.detach())


class _Leaf:
    """An operator that changes no value: it puts a float32 copy without a history in the activations' place."""

    def __init__(self, layer: int, site: Site, positions: Positions) -> None:
        self.layers, self.site, self.positions = (layer,), site, positions
        self.value: Tensor | None = None
        self.mask: Tensor | None = None

    def __call__(self, activations: Tensor, *, layer: int, mask: Tensor) -> Tensor:
        self.value, self.mask = activations.detach().float().requires_grad_(), mask
        return self.value


def _losses(model: Model, rendered: Rendered) -> Float[Tensor, " batch"]:
    """Summed cross-entropy of each row's answer, in nats."""
    logits = unwrap(model.hf)(
        input_ids=rendered.input_ids,
        attention_mask=rendered.attention_mask,
        position_ids=rendered.position_ids,
        use_cache=False,
    ).logits
    predicts = rendered.response[:, 1:]
    each = cross_entropy(logits[:, :-1][predicts].float(), rendered.input_ids[:, 1:][predicts], reduction="none")
    return torch.zeros_like(predicts, dtype=each.dtype).masked_scatter(predicts, each).sum(-1)
