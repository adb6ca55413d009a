"""What a latent means: the contexts in which it is most active, the tokens that it writes, and a card with both."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probes.activations import Activations
from probes.capture import capture
from probes.conversations import Conversation
from probes.errors import InputError
from probes.models import Model, unwrap
from saes.sae import SparseAutoencoder, check_fits


@dataclass(frozen=True)
class Context:
    """A stretch of a conversation around the token where a latent is most active.

    `tokens` and `values` (the latent at each) run side by side, `peak` is the index of the strongest; `conversation`
    is the row.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    peak: int
    conversation: int

    @property
    def value(self) -> float:
        """The latent at its peak."""
        return self.values[self.peak]

    @property
    def text(self) -> str:
        """The stretch as plain text."""
        return "".join(self.tokens)

    def _repr_html_(self) -> str:
        top = max(self.values) or 1.0
        shades = [f"background:rgba(213,94,0,{value / top * 0.6:.2f})" for value in self.values]
        cells = zip(self.tokens, self.values, shades, strict=True)
        spans = (f"<span style='{shade}' title='{value:.3g}'>{escape(token)}</span>" for token, value, shade in cells)
        return f"<div style='white-space:pre-wrap'>{''.join(spans)}</div>"


@dataclass(frozen=True)
class LatentCard:
    """One latent: the tokens its decoder direction makes likelier and unlikelier, and its strongest contexts."""

    latent: int
    top_tokens: tuple[str, ...]
    bottom_tokens: tuple[str, ...]
    contexts: tuple[Context, ...]

    def as_dict(self) -> dict[str, Any]:
        """The card for JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        tokens = [", ".join(escape(repr(t)) for t in group) for group in (self.top_tokens, self.bottom_tokens)]
        contexts = "".join(context._repr_html_() for context in self.contexts) or "<p>never active here</p>"
        return f"<h4>Latent {self.latent}</h4><p>writes {tokens[0]}<br>writes against {tokens[1]}</p>{contexts}"


def latent_cards(
    sae: SparseAutoencoder,
    model: Model,
    conversations: Sequence[Conversation],
    latents: Sequence[int],
    *,
    n_contexts: int = 5,
    n_tokens: int = 8,
) -> dict[int, LatentCard]:
    """A card for each of `latents`, read off `model` on `conversations`."""
    written = logit_lens(sae, model, latents, k=n_tokens)
    against = logit_lens(sae, model, latents, k=n_tokens, largest=False)
    contexts = top_contexts(sae, model, conversations, latents, n=n_contexts)
    return {
        int(latent): LatentCard(
            int(latent),
            tuple(token for token, _ in written[latent]),
            tuple(token for token, _ in against[latent]),
            tuple(contexts[latent]),
        )
        for latent in latents
    }


def top_contexts(
    sae: SparseAutoencoder,
    model: Model,
    conversations: Sequence[Conversation],
    latents: Sequence[int],
    *,
    n: int = 5,
    before: int = 12,
    after: int = 4,
) -> dict[int, list[Context]]:
    """For each latent the `n` conversations where it is most active, the strongest first, cut around the peak.

    A conversation appears once per latent; a latent that is never active has no contexts. Conversations are read in
    groups, so that memory does not grow with their number.
    """
    check_fits(sae, model)
    sae.check_latents(latents)
    best: dict[int, list[Context]] = {int(latent): [] for latent in latents}
    for start, acts in _groups(model, conversations, sae.layer):
        values = sae.encode_some(acts.at(sae.layer), latents).float().cpu()
        for column, found in enumerate(best.values()):
            found += _peaks(acts, values[:, column], model, start=start, n=n, window=(before, after))
            found.sort(key=lambda context: (-context.value, context.conversation))
            del found[n:]
    return best


def _groups(
    model: Model, conversations: Sequence[Conversation], layer: int, size: int = 256
) -> Iterator[tuple[int, Activations]]:
    for start in range(0, max(len(conversations), 1), size):
        yield start, capture(model, conversations[start : start + size], layers=[layer], pool="tokens")


def _peaks(
    acts: Activations,
    values: Float[Tensor, " sample"],
    model: Model,
    *,
    start: int,
    n: int,
    window: tuple[int, int],
) -> list[Context]:
    """The `n` conversations of a group in which a latent reaches highest."""
    rows = acts.conversation_index
    peaks = torch.zeros(int(rows.max()) + 1).scatter_reduce(0, rows, values, "amax")
    strongest = [int(i) for i in peaks.argsort(descending=True, stable=True)[:n] if peaks[i] > 0]
    return [_context(acts, values, model, row=row, start=start, window=window) for row in strongest]


def _context(
    acts: Activations, values: Tensor, model: Model, *, row: int, start: int, window: tuple[int, int]
) -> Context:
    here = (acts.conversation_index == row).nonzero().flatten()
    peak = int(values[here].argmax())
    first = max(0, peak - window[0])
    kept = here[first : peak + window[1] + 1]
    assert acts.token_ids is not None  # tokens were captured
    texts = _texts(model, acts.token_ids[kept].tolist())
    return Context(texts, tuple(values[kept].tolist()), peak - first, start + row)


def logit_lens(
    sae: SparseAutoencoder, model: Model, latents: Sequence[int], *, k: int = 10, largest: bool = True
) -> dict[int, list[tuple[str, float]]]:
    """For each latent the `k` tokens whose logits its decoder direction raises most (`largest=False`: lowers most).

    The unit direction goes through the final norm and the unembedding, and figures are relative to the mean over all
    tokens. The final norm rescales, so figures compare within one latent only; later blocks are left out, as in any
    logit lens.
    """
    check_fits(sae, model)
    sae.check_latents(latents)
    directions = sae.directions[torch.as_tensor(list(latents), dtype=torch.long, device=sae.device)]
    logits = _unembedded(model, directions)
    k = min(k, logits.shape[-1])
    values, ids = (logits - logits.mean(-1, keepdim=True)).topk(k, dim=-1, largest=largest)
    return {
        int(latent): list(zip(_texts(model, ids[i].tolist()), values[i].tolist(), strict=True))
        for i, latent in enumerate(latents)
    }


@torch.no_grad()
def _unembedded(model: Model, directions: Float[Tensor, "feature d_model"]) -> Float[Tensor, "feature vocabulary"]:
    norm, head = _final_norm(model), unwrap(model.hf).get_output_embeddings()
    x = directions.to(head.weight.device, head.weight.dtype)
    x = (norm(x) - norm(-x)) / 2  # the odd part: a LayerNorm's bias belongs to no direction
    return (x @ head.weight.T).float().cpu()


def _final_norm(model: Model) -> nn.Module:
    """The norm after the last block: the module beside the list of blocks."""
    blocks = model.blocks
    for parent in unwrap(model.hf).modules():
        children = dict(parent.named_children())
        if any(child is blocks for child in children.values()):
            norms = [child for name, child in children.items() if "norm" in name or name.startswith("ln_f")]
            if len(norms) == 1:
                return norms[0]
    raise InputError(f"{model.name!r}: no single norm stands beside its blocks, so there is no logit lens for it")


def _texts(model: Model, ids: list[int]) -> tuple[str, ...]:
    """Each token's own text; characters split over tokens show as replacement marks."""
    return tuple(str(model.tokenizer.decode([i])) for i in ids)
