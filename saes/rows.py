"""The rows that an SAE reads, streamed from a tensor, from captured activations or from a store on disk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.activations import Activations, Site
from probes.errors import InputError
from probes.store import ActivationStore

Source = Tensor | Activations | ActivationStore
Where = Literal["all", "response", "prompt"]
#: Which conversations count: a function of their indices, one a row, such as `HeldOut`.
Keep = Callable[[Int[Tensor, " sample"]], Bool[Tensor, " sample"]]


@dataclass(frozen=True)
class HeldOut:
    """A `share` of the conversations, put aside: whether one belongs to it depends on its index and `seed` alone.

    Called with conversation indices it says which are put aside; `~held_out` says which are not. A conversation added
    later moves no other, so that an SAE trained on `~HeldOut(0.1)` of a store is judged on `HeldOut(0.1)` of it.
    """

    share: float
    seed: int = 0
    inverted: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"held out: a share of {self.share}; give one between 0 and 1, such as 0.1")

    def __call__(self, conversations: Int[Tensor, " sample"]) -> Bool[Tensor, " sample"]:
        """Whether each conversation is among those meant."""
        aside = torch.from_numpy(_uniform(conversations.cpu().numpy(), self.seed) < self.share)
        return ~aside if self.inverted else aside

    def __invert__(self) -> "HeldOut":
        return HeldOut(self.share, self.seed, not self.inverted)

    def __str__(self) -> str:
        return f"{'all but ' if self.inverted else ''}{self.share:.3g} of the conversations, drawn by seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Tokens:
    """What is known of the tokens that rows belong to, one entry a row; None where activations did not keep it."""

    conversation: Int[Tensor, " sample"]
    token_ids: Int[Tensor, " sample"] | None = None
    positions: Int[Tensor, " sample"] | None = None
    in_response: Bool[Tensor, " sample"] | None = None
    in_reasoning: Bool[Tensor, " sample"] | None = None

    @classmethod
    def of(cls, part: Activations) -> "Tokens":
        """Those of captured activations."""
        return cls(part.conversation_index, part.token_ids, part.positions, part.in_response, part.in_reasoning)

    def select(self, keep: Bool[Tensor, " sample"] | Int[Tensor, " kept"] | slice) -> "Tokens":
        """Those that a mask, an index or a slice picks."""
        return Tokens(**{name: part[keep] for name, part in self.known().items()})

    def known(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        named: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in named.items() if part is not None}

    def mask(self, where: Where) -> Bool[Tensor, " sample"]:
        """The tokens of the response or of the prompt, or all. InputError where it is not known which is which."""
        if where not in ("all", "response", "prompt"):
            raise InputError(f"where={where!r}: use 'all', 'response' or 'prompt'")
        if where == "all":
            return torch.ones(len(self), dtype=torch.bool)
        if self.in_response is None:
            raise InputError(f"where={where!r} needs every token: capture with pool='tokens'")
        return self.in_response if where == "response" else ~self.in_response

    def after(self, first: int) -> Bool[Tensor, " sample"]:
        """Whether a token stands behind the first `first` ones of its conversation."""
        if self.positions is None:
            raise InputError(f"skip_first={first} needs every token: capture with pool='tokens'")
        return self.positions >= first

    def __len__(self) -> int:
        return len(self.conversation)


@dataclass(frozen=True, eq=False)
class Rows:
    """Activations of one block, and what is known of their tokens: nothing for those of a plain tensor."""

    values: Float[Tensor, "sample d_model"]
    tokens: Tokens | None

    def split(self, size: int) -> Iterator["Rows"]:
        """The same, at most `size` rows at a time."""
        for start in range(0, len(self.values), size):
            some = slice(start, start + size)
            yield Rows(self.values[some], self.tokens and self.tokens.select(some))


def block_rows(d_sae: int) -> int:
    """Rows to encode at a time: 16 MB of latents, which stays in a processor's cache, but never fewer than 256 rows."""
    return max(256, 2**22 // d_sae)


def stream_rows(
    source: Source,
    layer: int,
    *,
    where: Where = "all",
    size: int | None = None,
    site: Site | None = None,
    skip_first: int = 0,
    keep: Keep | None = None,
) -> Iterator[Float[Tensor, "sample d_model"]]:
    """Yield the activations of block `layer` in their order, at most `size` rows at a time.

    A tensor is taken as the rows themselves. `where` keeps the tokens of the response or of the prompt, which only
    activations captured with `pool="tokens"` can tell apart; `skip_first` leaves out so many tokens at the beginning of
    each conversation, where a few of enormous norm stand in many models; `keep` says which conversations count. `site`
    is where the rows should have been read. Means over tokens are refused: a latent of a mean is not the mean of a
    latent. InputError also for another site, a layer that was not captured, no rows at all, and a value that is not
    finite.
    """
    for part in stream_parts(source, layer, where=where, site=site, skip_first=skip_first, keep=keep):
        yield from part.values.split(size or len(part.values))


def stream_parts(
    source: Source,
    layer: int,
    *,
    where: Where = "all",
    site: Site | None = None,
    skip_first: int = 0,
    keep: Keep | None = None,
) -> Iterator[Rows]:
    """Yield rows with what is known of their tokens, a shard of the store at a time, the whole of anything else.

    Every conversation lies within one part. What the keywords mean, and what is refused, is said by `stream_rows`.
    """
    if where not in ("all", "response", "prompt"):
        raise InputError(f"where={where!r}: use 'all', 'response' or 'prompt'")
    if skip_first < 0:
        raise InputError(f"skip_first={skip_first}: give 0 or more")
    seen = 0
    for part in _parts(source, layer, site):
        part = _chosen(part, where, skip_first, keep)
        if len(part.values):
            if not torch.isfinite(part.values).all():
                raise InputError(f"an activation of block {layer} is not finite: capture again in a wider dtype")
            seen += len(part.values)
            yield part
    if not seen:
        raise InputError(f"no rows of block {layer} to read (where={where!r}): give activations of at least one token")


def _parts(source: Source, layer: int, site: Site | None) -> Iterator[Rows]:
    if isinstance(source, Tensor):
        if source.ndim != 2:
            raise InputError(f"activations of shape {tuple(source.shape)}: give one row per token, [sample d_model]")
        yield Rows(source, None)
        return
    for part in [source] if isinstance(source, Activations) else source.iter_shards(layers=(layer,)):
        _check_kind(part, site)
        yield Rows(part.at(layer), Tokens.of(part))


def _check_kind(part: Activations, site: Site | None) -> None:
    if site is not None and part.site != site:
        raise InputError(
            f"these activations were read at {part.site}, and the SAE reads {site}: capture with site={site!r}, or "
            f"load the SAE of {part.site}"
        )
    if part.pool not in ("tokens", "last_prompt"):
        raise InputError(
            f"these activations are means (pool={part.pool!r}), and a latent of a mean is no mean of a latent: "
            "capture with pool='tokens' or 'last_prompt'"
        )


def _chosen(part: Rows, where: Where, skip_first: int, keep: Keep | None) -> Rows:
    asked = {"where": where if where != "all" else None, "skip_first": skip_first or None, "keep": keep}
    wanted = [f"{name}={value!r}" for name, value in asked.items() if value is not None]
    if not wanted:
        return part
    if part.tokens is None:
        raise InputError(f"{wanted[0]} needs captured activations; a plain tensor does not say which rows are which")
    mask = part.tokens.mask(where)
    if skip_first:
        mask = mask & part.tokens.after(skip_first)
    if keep is not None:
        mask = mask & keep(part.tokens.conversation)
    return Rows(part.values[mask.to(part.values.device)], part.tokens.select(mask))


def _uniform(indices: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for each index, drawn by splitmix64."""
    x = indices.astype(np.uint64) + np.full(1, seed % 2**64, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) / 2.0**53
