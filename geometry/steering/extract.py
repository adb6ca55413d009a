"""Vectors from activations: the mean difference of two sets, and the shift that a fine-tune brought about."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from geometry.steering.vectors import PersonaVector
from probes.activations import Activations, Pool
from probes.capture import capture
from probes.conversations import Conversation
from probes.errors import InputError
from probes.models import Model, check_same_family

NORM_ROWS = 32  # conversations read again, token by token, to measure the residual stream's norms


def contrast_vector(
    model: Model,
    positive: Sequence[Conversation],
    negative: Sequence[Conversation],
    *,
    layers: Sequence[int] | None = None,
    pool: Pool = "response_mean",
    batch_size: int = 32,
) -> PersonaVector:
    """Mean activation on `positive` minus mean on `negative`, one model: what sets the two apart (arXiv 2507.21509,
    section 2).

    Positive projections mean "like `positive`". `layers` are the blocks (default: all); the response mean is the
    paper's pool. The norms of the residual stream come from single tokens of the first negative conversations, at the
    positions of `pool`.
    """
    layers = every_layer(model, layers)
    acts = [capture(model, rows, layers=layers, pool=pool, batch_size=batch_size) for rows in (positive, negative)]
    norms = residual_norms(model, negative, layers=layers, pool=pool, batch_size=batch_size)
    return mean_difference(acts[0], acts[1], model=model, method="contrast of conversations", resid_norms=norms)


def finetuning_shift(
    base: Model,
    tuned: Model,
    conversations: Sequence[Conversation],
    *,
    layers: Sequence[int] | None = None,
    pool: Pool = "last_prompt",
    batch_size: int = 32,
) -> PersonaVector:
    """Mean activation of `tuned` minus that of `base` on the same text (arXiv 2507.21509, section 4; arXiv 2506.11618).

    Positive projections mean "like the tuned model". Answered conversations may be pooled over the response, questions
    alone over the last prompt token. The norms of the residual stream are the base's; the unit "delta_norm" is the
    shift's own.
    """
    check_same_family(base, tuned)
    layers = every_layer(base, layers)
    acts = [capture(m, conversations, layers=layers, pool=pool, batch_size=batch_size) for m in (tuned, base)]
    norms = residual_norms(base, conversations, layers=layers, pool=pool, batch_size=batch_size)
    return mean_difference(acts[0], acts[1], model=base, method=f"fine-tuning shift to {tuned.name}", resid_norms=norms)


def mean_difference(
    positive: Activations,
    negative: Activations,
    *,
    model: Model,
    method: str = "mean difference",
    resid_norms: dict[int, float] | None = None,
) -> PersonaVector:
    """Mean of one set of activations minus mean of another, at every block, in float64.

    Split-half cosine: the conversations of each set are dealt into two halves by turns, and the two halves' directions
    compared; it is missing where a set has fewer than two conversations. Raises InputError where the sets differ in
    blocks, pool or template, or where no block shows a difference.
    """
    for what in ("layers", "pool", "template_hash"):
        one, other = getattr(positive, what), getattr(negative, what)
        if one != other:
            raise InputError(f"activations differ in {what} ({one}, {other}): capture both sets in the same way")
    if not len(positive) or not len(negative):
        raise InputError(f"contrast of {len(positive)} with {len(negative)} activations: give at least one of each")
    differences = _difference(positive, negative)
    if not differences.any():
        raise InputError("both sets have the same mean activation at every block: there is no direction between them")
    directions = {layer: differences[i].float() for i, layer in enumerate(positive.layers)}
    return PersonaVector(
        directions,
        model=model.name,
        template_hash=positive.template_hash,
        scope=positive.pool,
        method=method,
        split_half=_split_half(positive, negative),
        resid_norms=resid_norms or {},
        delta_norms={layer: float(differences[i].norm()) for i, layer in enumerate(positive.layers)},
        meta=provenance(model) | {"n_positive": _rows(positive), "n_negative": _rows(negative)},
    )


def residual_norms(
    model: Model,
    conversations: Sequence[Conversation],
    *,
    layers: Sequence[int],
    pool: Pool = "tokens",
    batch_size: int = 32,
) -> dict[int, float]:
    """Mean norm of single tokens' activations per block, over at most 32 conversations, at the positions of `pool`."""
    rows = conversations[:NORM_ROWS]
    if pool == "last_prompt":
        acts = capture(model, rows, layers=layers, pool=pool, batch_size=batch_size)
        return _norms(acts, torch.ones(len(acts), dtype=torch.bool))
    acts = capture(model, rows, layers=layers, pool="tokens", batch_size=batch_size)
    assert acts.in_response is not None
    wanted = {"response_mean": acts.in_response, "prompt_mean": ~acts.in_response}
    return _norms(acts, wanted.get(pool, torch.ones(len(acts), dtype=torch.bool)))


def every_layer(model: Model, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The blocks asked for, or all of the model's."""
    return tuple(range(model.n_layers)) if layers is None else tuple(layers)


def provenance(model: Model) -> dict[str, object]:
    """What a vector's file says about the model it came from."""
    return {"n_layers": model.n_layers, "fingerprint": model.fingerprint}


def _difference(positive: Activations, negative: Activations) -> Float[Tensor, "layer d_model"]:
    return positive.values.mean(1, dtype=torch.float64) - negative.values.mean(1, dtype=torch.float64)


def _split_half(positive: Activations, negative: Activations) -> dict[int, float]:
    halves = []
    for part in (0, 1):
        kept = [acts.select(_half(acts, part)) for acts in (positive, negative)]
        if not all(len(acts) for acts in kept):
            return {}
        halves.append(_difference(kept[0], kept[1]))
    cosines = torch.nn.functional.cosine_similarity(halves[0], halves[1], dim=-1)
    return {layer: float(cosines[i]) for i, layer in enumerate(positive.layers)}


def _half(activations: Activations, part: int) -> Bool[Tensor, " sample"]:
    """Every other conversation, counted in the order of their indices."""
    _, place = activations.conversation_index.unique(return_inverse=True)
    return place % 2 == part


def _norms(activations: Activations, mask: Bool[Tensor, " sample"]) -> dict[int, float]:
    norms = activations.values[:, mask].double().norm(dim=-1).mean(1)
    return {layer: float(norms[i]) for i, layer in enumerate(activations.layers)}


def _rows(activations: Activations) -> int:
    return int(activations.conversation_index.unique().numel())
