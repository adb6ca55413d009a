"""Activations of conversations: read by hooks, pooled per conversation or kept per token, in memory or in a store."""

from collections.abc import Sequence

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from probes.activations import POOLS, Activations, Pool
from probes.conversations import Conversation, Rendered, conversation_batches, render, template_hash
from probes.errors import InputError
from probes.hooks import capture_blocks
from probes.models import Model, check_layer
from probes.progress import Progress, silent
from probes.store import ActivationStore, joined


def capture(
    model: Model,
    conversations: Sequence[Conversation],
    *,
    layers: Sequence[int],
    pool: Pool = "response_mean",
    batch_size: int = 32,
    store: ActivationStore | None = None,
    progress: Progress = silent,
) -> Activations:
    """Read the outputs of the blocks `layers` on `conversations`, in their order, in float32 on the CPU.

    Means are taken in float64 over the response's (with its end token) or the prompt's tokens; "last_prompt" is the
    token whose output predicts the answer's first; "tokens" keeps every token. With `store`, batches are appended to
    it, conversations that it holds are skipped, and the returned activations hold no sample. Raises InputError for a
    bad layer, no conversations, a missing answer, a value that is not finite.
    """
    _check(model, conversations, layers, pool)
    parts: list[Activations] = []
    held = set() if store is None else store.conversations()
    wanted = [i for i in range(len(conversations)) if i not in held]
    done = len(conversations) - len(wanted)
    for batch, rows in conversation_batches([conversations[i] for i in wanted], batch_size):
        part = _batch(model, rows, [wanted[i] for i in batch], tuple(layers), pool)
        parts.append(part) if store is None else store.append(part)
        done += len(batch)
        progress(done, len(conversations), "activations")
    return joined(parts) if store is None else _nothing(model, tuple(layers), pool)


def pooled(
    values: Float[Tensor, "layer batch pos d_model"], mask: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "layer batch d_model"]:
    """Mean over the masked positions of each row, accumulated in float64, returned in float32."""
    weights = mask.to(torch.float64) / mask.sum(-1, keepdim=True)
    layers = [einsum(value.double(), weights, "batch pos d_model, batch pos -> batch d_model") for value in values]
    return torch.stack(layers).float()


def _batch(
    model: Model, rows: list[Conversation], index: list[int], layers: tuple[int, ...], pool: Pool
) -> Activations:
    rendered = render(model.tokenizer, rows)
    values = capture_blocks(model, rendered, layers, rows=index).cpu()
    where = torch.tensor(index)
    if pool == "tokens":
        part = _tokens(values, rendered, where, layers)
    else:
        mask = {"response_mean": rendered.response, "prompt_mean": rendered.prompt}.get(pool, rendered.last_prompt)
        part = Activations(pooled(values, mask), layers, pool, rendered.template_hash, where)
    if not torch.isfinite(part.values).all():
        layer, sample, _ = (~torch.isfinite(part.values)).nonzero()[0].tolist()
        row = int(part.conversation_index[sample])
        raise InputError(f"activation of block {layers[layer]} on conversation {row} is not finite: use a wider dtype")
    return part


def _tokens(values: Tensor, rendered: Rendered, where: Tensor, layers: tuple[int, ...]) -> Activations:
    mask = rendered.attention_mask.bool()
    flat = rearrange(values, "layer batch pos d_model -> layer (batch pos) d_model")[:, mask.flatten()].float()
    index = where[:, None].expand_as(mask)[mask]
    return Activations(
        flat,
        layers,
        "tokens",
        rendered.template_hash,
        index,
        rendered.input_ids[mask],
        rendered.position_ids[mask],
        rendered.response[mask],
    )


def _nothing(model: Model, layers: tuple[int, ...], pool: Pool) -> Activations:
    values = torch.zeros(len(layers), 0, model.d_model)
    return Activations(values, layers, pool, template_hash(model.tokenizer), torch.zeros(0, dtype=torch.long))


def _check(model: Model, conversations: Sequence[Conversation], layers: Sequence[int], pool: str) -> None:
    if pool not in POOLS:
        raise InputError(f"pool {pool!r}: use one of {', '.join(POOLS)}")
    if not conversations:
        raise InputError("capture: no conversations given; give at least one")
    if not layers:
        raise InputError("capture: no layers given; give at least one block index")
    for layer in layers:
        check_layer(model, layer)
    missing = [i for i, row in enumerate(conversations) if row.answer is None]
    if pool == "response_mean" and missing:
        raise InputError(f"conversation {missing[0]} has no answer to average over: add one or use pool='last_prompt'")
