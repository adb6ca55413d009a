"""Writers: which attention heads and MLPs put a direction into the residual stream, in each of two models."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from geometry.steering.vectors import PersonaVector
from probes.conversations import Conversation, Rendered, conversation_batches, render
from probes.errors import InputError
from probes.models import Model, check_layer, check_same_family

if TYPE_CHECKING:
    import plotly.graph_objects as go

Pool = Literal["response_mean", "prompt_mean", "last_prompt"]
Key = tuple[int, str, int]  # block (-1: before the first), component, head (-1: no head)
COLUMNS = ("layer", "component", "head", "base", "tuned", "shift")
TOLERANCE = 1e-3  # of the largest contribution: beyond it the architecture is not a plain sum


@dataclass(frozen=True)
class Writers:
    """Contributions to the mean projection on a direction after block `layer`, in units of the residual stream.

    `table` has one row per component: "embed" (layer -1), "head" (layer, head), "attn_bias" (the output bias of
    attention, where there is one) and "mlp", with the contribution in the base model, in the tuned one, and their
    difference `shift`. Each column sums to the model's own mean projection, `projection["base"]` or
    `projection["tuned"]`.
    """

    table: pd.DataFrame
    projection: Mapping[str, float]
    layer: int

    def top(self, n: int = 5) -> pd.DataFrame:
        """The `n` components whose contribution the fine-tune changed most, by size."""
        order = np.argsort(-self.table["shift"].abs().to_numpy(), kind="stable")
        return self.table.iloc[order[:n]].reset_index(drop=True)

    def figure(self) -> "go.Figure":
        """Heads and MLPs by block, coloured by what the fine-tune changed."""
        from geometry.steering.figures import writers_figure

        return writers_figure(self.table)

    def _repr_html_(self) -> str:
        return self.top(10).to_html(index=False, float_format=lambda value: f"{value:.3g}", border=0)


def direction_writers(
    base: Model,
    tuned: Model,
    conversations: Sequence[Conversation],
    vector: PersonaVector,
    layer: int,
    *,
    pool: Pool = "response_mean",
    batch_size: int = 16,
) -> Writers:
    """Split the mean projection on the vector's direction at block `layer` into what each component wrote.

    The residual stream is the sum of the embedding and of all that attention heads and MLPs up to the block added, so
    its projection on a fixed direction is the sum of theirs (direct contributions; what a component caused downstream
    counts as the downstream component's). Both models read the same conversations through a TransformerLens bridge over
    a copy of their weights; means run over conversations in float64. Raises InputError for architectures that are not a
    plain sum of heads (a norm after attention, as in Gemma 2) and where an answer is missing.
    """
    check_same_family(base, tuned)
    check_layer(base, layer)
    _check(conversations, pool)
    unit = vector.unit(layer)
    found = {
        name: _contributions(model, conversations, unit, layer, (pool, batch_size))
        for name, model in (("base", base), ("tuned", tuned))
    }
    projection = {name: contributions.pop((layer, "projection", -1)) for name, contributions in found.items()}
    rows = [
        {"layer": at, "component": what, "head": head, "base": value, "tuned": found["tuned"][at, what, head]}
        for (at, what, head), value in found["base"].items()
    ]
    rows = [{**row, "shift": row["tuned"] - row["base"]} for row in rows]
    return Writers(pd.DataFrame(rows, columns=list(COLUMNS)), projection, layer)


def _contributions(
    model: Model,
    conversations: Sequence[Conversation],
    unit: Float[Tensor, " d_model"],
    layer: int,
    how: tuple[Pool, int],
) -> dict[Key, float]:
    """Mean contribution of every component, and the mean projection itself, in one model."""
    pool, batch_size = how
    bridge = model.bridge()
    totals: dict[Key, float] = {}
    for _, rows in conversation_batches(conversations, batch_size):
        rendered = render(model.tokenizer, rows).to(model.device)
        mask = {"response_mean": rendered.response, "prompt_mean": rendered.prompt}.get(pool, rendered.last_prompt)
        for key, values in _written(bridge, rendered, unit.to(model.device), layer):
            totals[key] = totals.get(key, 0.0) + _pooled(values, mask)
    found = {key: total / len(conversations) for key, total in totals.items()}
    _check_sum(model, found, (layer, "projection", -1))
    return found


def _written(
    bridge: Any, rendered: Rendered, unit: Float[Tensor, " d_model"], layer: int
) -> Iterable[tuple[Key, Float[Tensor, "batch pos"]]]:
    """What every component wrote along `unit`, token by token, and last the projection of the block's output."""
    blocks = range(layer + 1)
    names = ["hook_embed", "pos_embed.hook_out", f"blocks.{layer}.hook_resid_post"]
    names += [f"blocks.{i}.{name}" for i in blocks for name in ("attn.hook_z", "hook_mlp_out")]
    with torch.no_grad():
        _, cache = bridge.run_with_cache(
            rendered.input_ids,
            attention_mask=rendered.attention_mask,
            names_filter=lambda name: name in names,
            stop_at_layer=layer + 1,
        )
        embedding = cache["hook_embed"]
        if "pos_embed.hook_out" in cache:
            embedding = embedding + cache["pos_embed.hook_out"]
        yield (-1, "embed", -1), _along(embedding, unit)
        for i in blocks:
            attention = bridge.blocks[i].attn
            heads, bias = _heads(attention, cache[f"blocks.{i}.attn.hook_z"], unit)
            for head in range(heads.shape[-1]):
                yield (i, "head", head), heads[..., head]
            if bias is not None:
                yield (i, "attn_bias", -1), bias.expand(heads.shape[:2])
            yield (i, "mlp", -1), _along(cache[f"blocks.{i}.hook_mlp_out"], unit)
        yield (layer, "projection", -1), _along(cache[f"blocks.{layer}.hook_resid_post"], unit)


def _heads(
    attention: Any, z: Tensor, unit: Float[Tensor, " d_model"]
) -> tuple[Float[Tensor, "batch pos head"], Float[Tensor, ""] | None]:
    """What each head writes along `unit`, z_h W_O_h u, and what the output bias writes (None where there is none)."""
    weights = attention.W_O.double()
    n_heads, d_head, _ = weights.shape
    reading = einsum(weights, unit.double(), "head d_head d_model, d_model -> head d_head")
    z = z.double().reshape(*z.shape[:2], n_heads, d_head)
    bias = getattr(attention, "b_O", None)
    written = einsum(z, reading, "batch pos head d_head, head d_head -> batch pos head")
    return written, None if bias is None else bias.double() @ unit.double()


def _along(values: Tensor, unit: Float[Tensor, " d_model"]) -> Float[Tensor, "batch pos"]:
    return einsum(values.double(), unit.double(), "batch pos d_model, d_model -> batch pos")


def _pooled(values: Float[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]) -> float:
    """Sum over conversations of the mean over the masked positions."""
    return float(((values * mask).sum(-1) / mask.sum(-1)).sum())


def _check(conversations: Sequence[Conversation], pool: str) -> None:
    if pool not in ("response_mean", "prompt_mean", "last_prompt"):
        raise InputError(f"pool {pool!r}: use 'response_mean', 'prompt_mean' or 'last_prompt'")
    if not conversations:
        raise InputError("writers: no conversations given; give at least one")
    missing = [i for i, row in enumerate(conversations) if row.answer is None]
    if pool == "response_mean" and missing:
        raise InputError(f"conversation {missing[0]} has no answer to average over: add one or use pool='last_prompt'")


def _check_sum(model: Model, found: Mapping[Key, float], projection: Key) -> None:
    parts = [value for key, value in found.items() if key != projection]
    gap = abs(sum(parts) - found[projection])
    if gap > TOLERANCE * max(1e-6, *map(abs, parts)):
        raise InputError(
            f"{model.name}: the components miss the projection by {gap:.3g}, since this architecture does not "
            "simply add up its heads; take a model without norms behind its attention"
        )
