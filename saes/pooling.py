"""Latents by conversation, streamed: a few conversations' sums at a time, however many latents there are."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.errors import InputError
from saes.rows import Source, Tokens, block_rows, stream_parts
from saes.sae import SparseAutoencoder

#: Which tokens of a conversation count. "prompt" is everything that is no response.
Where = Literal["all", "response", "prompt", "last_prompt"]
#: What counts equally: every token, or every conversation however long it is.
Weight = Literal["token", "conversation"]
#: Numbers held for the conversations of one group: 16 MB in float64.
HELD = 2**21


@dataclass(frozen=True, eq=False)
class Pooled:
    """A few conversations, ascending, with sums over the tokens of each that count.

    `count` tokens; `latents` their sum and `fired` how often each was active; `inputs` the sum of the activations,
    `square` that of their squares, `error` that of the squared reconstruction errors. `digest` tells texts apart; it is
    0 where the tokens are not known.
    """

    conversation: Int[Tensor, " sample"]
    digest: Int[Tensor, " sample"]
    count: Int[Tensor, " sample"]
    latents: Float[Tensor, "sample d_sae"]
    fired: Int[Tensor, "sample d_sae"]
    inputs: Float[Tensor, "sample d_model"]
    square: Float[Tensor, " sample"]
    error: Float[Tensor, " sample"]

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, some: slice) -> "Pooled":
        return Pooled(**{field.name: getattr(self, field.name)[some] for field in fields(self)})

    def weights(self, weight: Weight) -> Float[Tensor, " sample"]:
        """How much each conversation counts: its tokens, or one."""
        return self.count.double() if weight == "token" else torch.ones(len(self), dtype=torch.float64)

    def means(self) -> Float[Tensor, "sample d_sae"]:
        """Each latent's mean over the tokens of each conversation."""
        return self.latents / self.count[:, None]

    def reads_the_same(self, other: "Pooled") -> bool:
        """Whether both hold the same conversations, and, where their tokens are known, the same texts."""
        return torch.equal(self.conversation, other.conversation) and torch.equal(self.digest, other.digest)


class Moments:
    """Mean of rows that belong to one conversation each, and its variance over conversations, in float64.

    With y the rows and w their weights, mean = sum w y / sum w, and the variance of the mean is that of a ratio,
    n / (n - 1) sum w^2 (y - mean)^2 / (sum w)^2: for equal weights the usual s^2 / n.
    """

    def __init__(self) -> None:
        """Start with no row."""
        self.n, self.total, self.total_square = 0, 0.0, 0.0
        self.shift: Tensor | None = None
        self.sums: list[Tensor] = []

    def add(self, rows: Float[Tensor, "sample d"], weights: Float[Tensor, " sample"]) -> None:
        """Take in a row a conversation."""
        if not len(rows):
            return
        if self.shift is None:
            self.shift = rows[0].double().clone()  # sums about a point near the mean keep their digits
            self.sums = [torch.zeros_like(self.shift) for _ in range(3)]
        y, w = rows.double() - self.shift, weights.double()
        self.sums[0] += w @ y
        self.sums[1] += w.square() @ y
        self.sums[2] += w.square() @ y.square()
        self.n, self.total = self.n + len(rows), self.total + float(w.sum())
        self.total_square += float(w.square().sum())

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """The weighted mean."""
        assert self.shift is not None  # asked after the first row
        return self.shift + self.sums[0] / self.total

    @property
    def variance(self) -> Float[Tensor, " d"]:
        """Variance of the mean over conversations; NaN for one conversation."""
        if self.n < 2:
            return torch.full_like(self.mean, torch.nan)
        m = self.sums[0] / self.total
        spread = self.sums[2] - 2 * m * self.sums[1] + m.square() * self.total_square
        return spread.clamp(min=0) / self.total**2 * self.n / (self.n - 1)


def pooled_latents(
    sae: SparseAutoencoder, source: Source, *, where: Where = "all", group: int | None = None
) -> Iterator[Pooled]:
    """Yield the conversations of a source in ascending order, at most `group` (default: as memory allows) at a time.

    A bare tensor has one conversation a row. Conversations without a token that counts are left out. Sums run in
    float64 on the CPU. Raises InputError for what `saes.rows.stream_parts` refuses, and where `where` asks for tokens
    that the source cannot tell apart.
    """
    if where not in get_args(Where):
        raise InputError(f"where={where!r}: use one of {', '.join(get_args(Where))}")
    size, before, empty = group or max(1, HELD // sae.d_sae), 0, True
    for part in stream_parts(source, sae.layer, site=sae.site):
        tokens = part.tokens or _numbered(part.values, before, where)
        before += len(part.values)
        for values, some, digest in _conversations(part.values, tokens, where, size):
            empty = False
            yield _pooled(sae, values, some, digest)
    if empty:
        raise InputError(f"no token of block {sae.layer} to read (where={where!r}): give conversations that have some")


def aligned(streams: Mapping[str, Iterator[Pooled]]) -> Iterator[dict[str, Pooled]]:
    """Walk several streams side by side, the same number of conversations of each at every step.

    A stream that has ended is left out from there on.
    """
    heads: dict[str, Pooled] = {}
    while True:
        for name, stream in streams.items():
            if name not in heads and (head := next(stream, None)) is not None:
                heads[name] = head
        if not heads:
            return
        n = min(map(len, heads.values()))
        yield {name: head[:n] for name, head in heads.items()}
        heads = {name: head[n:] for name, head in heads.items() if len(head) > n}


def blocks(lengths: Int[Tensor, " sample"], size: int) -> Iterator[tuple[slice, slice, Int[Tensor, " run"]]]:
    """Cut runs of neighbouring rows into blocks of at most `size` rows: the block's rows, its runs, their lengths."""
    place = torch.arange(len(lengths)).repeat_interleave(lengths)
    for start in range(0, len(place), size):
        runs, counts = place[start : start + size].unique_consecutive(return_counts=True)
        yield slice(start, start + size), slice(int(runs[0]), int(runs[-1]) + 1), counts


def segment_sums(values: Tensor, counts: Int[Tensor, " sample"]) -> Float[Tensor, "sample d"]:
    """Sums over runs of `counts` neighbouring rows, in float64 on the CPU; no run's rows are copied."""
    rows = values.split(counts.tolist())
    return torch.stack([part.sum(0, dtype=torch.float64) for part in rows]).cpu()


def _numbered(values: Tensor, before: int, where: Where) -> Tokens:
    if where != "all":
        raise InputError(
            f"where={where!r} needs captured activations; a plain tensor does not say which rows are which"
        )
    return Tokens(torch.arange(before, before + len(values)))


def _conversations(
    values: Tensor, tokens: Tokens, where: Where, size: int
) -> Iterator[tuple[Tensor, Tensor, dict[int, int]]]:
    """Groups of whole conversations: their rows that count, the conversation of each, and each one's digest."""
    numbers = tokens.conversation.cpu()
    if bool((numbers.diff() < 0).any()):
        order = numbers.argsort(stable=True)
        values, tokens, numbers = values[order.to(values.device)], tokens.select(order), numbers[order]
    mask = _counted(tokens, where).cpu()
    _, lengths = numbers.unique_consecutive(return_counts=True)
    ends = lengths.cumsum(0).tolist()
    for first in range(0, len(ends), size):
        start, stop = ends[first - 1] if first else 0, ends[min(first + size, len(ends)) - 1]
        kept = mask[start:stop]
        if kept.any():
            some = values[start:stop]
            yield (
                some if kept.all() else some[kept.to(some.device)],
                numbers[start:stop][kept],
                _digests(tokens, numbers, start, stop),
            )


def _counted(tokens: Tokens, where: Where) -> Bool[Tensor, " sample"]:
    if where != "last_prompt":
        return tokens.mask(where)
    if tokens.in_response is None:  # one row a conversation: captured at this very token
        return torch.ones(len(tokens), dtype=torch.bool)
    return _last_prompt(tokens.conversation, tokens.in_response)


def _last_prompt(numbers: Tensor, response: Tensor) -> Bool[Tensor, " sample"]:
    """The token before each response; where there is none, the conversation's last token."""
    follows = torch.cat([numbers[1:] == numbers[:-1], numbers.new_zeros(1, dtype=torch.bool)])
    opens = torch.cat([response[1:], response.new_zeros(1)]) & follows & ~response
    answered = torch.isin(numbers, numbers[response])
    return opens | (~follows & ~answered)


def _digests(tokens: Tokens, numbers: Tensor, start: int, stop: int) -> dict[int, int]:
    """A number for each conversation that tells its tokens from others; 0 where they are not known."""
    found, lengths = numbers[start:stop].unique_consecutive(return_counts=True)
    if tokens.token_ids is None:
        return dict.fromkeys(found.tolist(), 0)
    parts = tokens.token_ids[start:stop].cpu().split(lengths.tolist())
    hashes = (hashlib.blake2b(part.numpy().tobytes(), digest_size=7).digest() for part in parts)
    return dict(zip(found.tolist(), map(int.from_bytes, hashes), strict=True))


@torch.no_grad()
def _pooled(sae: SparseAutoencoder, values: Tensor, numbers: Tensor, digest: Mapping[int, int]) -> Pooled:
    """Encode a group block by block and add up by conversation."""
    found, lengths = numbers.unique_consecutive(return_counts=True)
    shape = {"latents": sae.d_sae, "fired": sae.d_sae, "inputs": sae.d_model, "square": 1, "error": 1}
    sums = {name: torch.zeros(len(found), width, dtype=torch.float64) for name, width in shape.items()}
    for rows, runs, counts in blocks(lengths, block_rows(sae.d_sae)):
        x = values[rows].to(sae.device)
        latents, wide = sae.encode(x), x.double()
        error = (sae.decode(latents) - wide).square().sum(-1, keepdim=True)
        square = wide.square().sum(-1, keepdim=True)
        given = {"latents": latents, "fired": latents > 0, "inputs": wide, "square": square, "error": error}
        for name, part in given.items():
            sums[name][runs] += segment_sums(part, counts)
    digests = torch.tensor([digest[number] for number in found.tolist()])
    ends = {"square": sums.pop("square")[:, 0], "error": sums.pop("error")[:, 0], "fired": sums.pop("fired").int()}
    return Pooled(found, digests, lengths, **sums, **ends)
