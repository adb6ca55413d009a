"""Activations of conversations: read by hooks, pooled per conversation or kept per token, in memory or in a store."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from probes.activations import SITES, Activations, Pool, Site, joined
from probes.chunks import (
    Row,
    TokenScope,
    batches,
    check_answered,
    chunk_digest,
    chunks,
    rows_of,
    samples_of,
    scope_of,
    stacked,
    text_digest,
)
from probes.conversations import Conversation, iter_conversations, template_hash
from probes.errors import InputError
from probes.hooks import capture_blocks
from probes.models import Model, check_layer
from probes.names import resolve_layers
from probes.progress import Progress, silent
from probes.store import ActivationStore, StoreWriter
from probes.store.journal import Shard

CHUNK = 2**16  # tokens of a chunk where no store says so
Places = dict[int, tuple[int, int]]  # conversation -> its samples, [start, stop)
Conversations = Sequence[Conversation] | Iterable[Conversation] | str | Path


@dataclass(frozen=True)
class Reading:
    """What is read of every conversation, and in which batches: at most `batch_size` rows and `batch_tokens` tokens."""

    layers: tuple[int, ...]
    pool: Pool | TokenScope = "response_mean"
    site: Site = "resid_post"
    batch_size: int = 32
    batch_tokens: int | None = None

    def __post_init__(self) -> None:
        scope_of(self.pool)
        if self.site not in SITES:
            raise InputError(f"site {self.site!r}: use one of {', '.join(SITES)}")
        if not self.layers:
            raise InputError("capture: no layers given; give at least one block index")
        if len(set(self.layers)) < len(self.layers):
            raise InputError(f"layers {self.layers}: give each block once")
        for name in ("batch_size", "batch_tokens"):
            if (getattr(self, name) or 1) < 1 or getattr(self, name) == 0:
                raise InputError(f"{name} {getattr(self, name)}: give 1 or more")

    def kind(self, model: Model) -> dict[str, Any]:
        """What a store is told of the model and of what is read, as JSON."""
        identity = f"{model.name} (configuration {model.fingerprint}, weights {model.weights_digest})"
        return {"model": identity, "d_model": model.d_model} | self.asked(model.tokenizer)

    def asked(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """As `kind`, of what is known without the model."""
        pool, scope = _labels(self.pool)
        known = {"layers": list(self.layers), "site": self.site, "pool": pool, "scope": scope}
        return known | {"template_hash": template_hash(tokenizer)}


def capture(
    model: Model,
    conversations: Conversations,
    *,
    layers: Sequence[int | str],
    pool: Pool | TokenScope = "response_mean",
    site: Site | None = None,
    batch_size: int = 32,
    batch_tokens: int | None = None,
    store: ActivationStore | None = None,
    progress: Progress = silent,
) -> Activations:
    """Read the blocks `layers` at `site` on `conversations`, in their order, in float32 on the CPU.

    A layer is a block's index, or TransformerLens's name of its site such as "blocks.3.hook_mlp_out"; unless a site is
    given, blocks are read at their output. Means are taken in float64 over the response's (with its end token) or the
    prompt's tokens; "last_prompt" is the token whose output predicts the answer's first; "tokens" keeps every token; a
    `TokenScope` names others. Rows of like length share a pass: at most `batch_size` of them and, padding counted,
    `batch_tokens` tokens.

    Conversations may be a sequence, any iterable, or the path of a JSONL file; the latter two are read as they are
    needed, and `progress` is told a total of 0 for an iterable, whose end is not known. With `store`, memory holds one
    shard and one batch: activations go there shard by shard in its dtype, conversations that it holds are skipped, and
    the returned activations hold no sample. Raises InputError for a bad layer, no conversations, a missing answer, a
    value that is not finite, and where the store was begun with another model, template or text.
    """
    blocks, place = resolve_layers(layers, site)
    reading = Reading(blocks, pool, place, batch_size, batch_tokens)
    for layer in blocks:
        check_layer(model, layer)
    tell = Told(total_of(conversations), progress)
    if store is not None:
        with store.writer() as writer:
            _into(writer, model, conversations, reading, tell)
        return _nothing(model, reading)
    whole = checked(conversations, reading)
    rows = rows_of(model.tokenizer, enumerate(whole), scope_of(pool))
    pieces = [list(rows)] if isinstance(whole, Sequence) else chunks(rows, CHUNK)
    return joined([read_chunk(model, chunk, reading, tick=tell) for chunk in pieces])


class Told:
    """Counts conversations and passes the count on."""

    def __init__(self, total: int, progress: Progress) -> None:
        """Start at nothing done of `total`."""
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self, more: int) -> None:
        """Take note of conversations that are read."""
        self.done += more
        self.progress(self.done, self.total, "activations")


def read_chunk(
    model: Model,
    chunk: Sequence[Row],
    reading: Reading,
    *,
    dtype: torch.dtype = torch.float32,
    tick: Callable[[int], object] = lambda more: None,
) -> Activations:
    """Activations of one chunk, in the conversations' order, in `dtype` on the CPU; `tick` hears of every batch."""
    scope = scope_of(reading.pool)
    places = dict(zip((row.index for row in chunk), samples_of(chunk, scope), strict=True))
    values = torch.empty(len(reading.layers), places[chunk[-1].index][1], model.d_model, dtype=dtype)
    for rows in batches(chunk, reading.batch_size, reading.batch_tokens):
        at = torch.cat([torch.arange(*places[row.index]) for row in rows])
        read = _batch(model, rows, reading).to(dtype)
        _check_finite(read, at, rows, reading, places)
        values[:, at] = read
        tick(len(rows))
    pool, name = _labels(reading.pool)
    index = torch.tensor([row.index for row in chunk for _ in range(*places[row.index])])
    singles = _singles(chunk) if scope.single else {}
    hash_ = chunk[0].rendered.template_hash
    return Activations(values, reading.layers, pool, hash_, index, **singles, site=reading.site, scope=name)


def pooled(
    values: Float[Tensor, "layer batch pos d_model"], mask: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "layer batch d_model"]:
    """Mean over the masked positions of each row, accumulated in float64, returned in float32."""
    weights = mask.to(torch.float64) / mask.sum(-1, keepdim=True)
    layers = [einsum(value.double(), weights, "batch pos d_model, batch pos -> batch d_model") for value in values]
    return torch.stack(layers).float()


def unheld(
    conversations: Iterable[Conversation], writer: StoreWriter, skipped: Callable[[int], object]
) -> Iterator[tuple[int, Conversation]]:
    """The conversations that the store lacks, with their numbers; those that it holds must be the same text."""
    count = 0
    found = ((i, writer.holder(i), conversation) for i, conversation in enumerate(conversations))
    for shard, run in groupby(found, key=lambda one: one[1]):
        if shard is None:
            for count, _, conversation in run:
                yield count, conversation
            continue
        texts = [(index, text_digest(conversation)) for index, _, conversation in run]
        whole = [index for index, _ in texts] == shard.indices()
        if shard.data and (not whole or chunk_digest(text for _, text in texts) != shard.data):
            raise InputError(
                f"{writer.path}: was begun with other conversations (of {texts[0][0]} to {texts[-1][0]}, {shard.file} "
                f"holds a text of digest {shard.data}, not this); give the same ones or use another store"
            )
        count = texts[-1][0]
        skipped(len(texts))
    if count + 1 < writer.stop:
        raise InputError(
            f"{writer.path}: holds conversation {writer.stop - 1}, and these end with {count}; give the same or use "
            "another store"
        )


def _into(
    writer: StoreWriter, model: Model, conversations: Conversations, reading: Reading, tell: Callable[[int], object]
) -> None:
    """A shard is written while the next one is read: the disk and its checksum cost next to no time."""
    writer.begin(reading.kind(model))
    wanted = unheld(checked(conversations, reading), writer, tell)
    with ThreadPoolExecutor(max_workers=1) as beside:
        writing: list[Future[Shard]] = []
        for chunk in chunks(rows_of(model.tokenizer, wanted, scope_of(reading.pool)), writer.shard_tokens):
            read = read_chunk(model, chunk, reading, dtype=writer.dtype, tick=tell)
            packed = writer.pack(read, data=chunk_digest(row.digest for row in chunk))
            _written(writing)
            writing.append(beside.submit(writer.put, packed))
        _written(writing)


def _written(writing: "list[Future[Shard]]") -> None:
    """Wait for the shard that is being written. Raises InputError where the disk did not take it."""
    while writing:
        writing.pop().result()


def _batch(model: Model, rows: Sequence[Row], reading: Reading) -> Float[Tensor, "layer sample d_model"]:
    rendered, mask = stacked(rows)
    index = [row.index for row in rows]
    values = capture_blocks(model, rendered, reading.layers, site=reading.site, rows=index)
    if scope_of(reading.pool).single:
        return values[:, mask.to(values.device)].cpu()
    if values.device.type == "mps":  # has no float64
        values = values.cpu()
    return pooled(values, mask.to(values.device)).cpu()


def _singles(chunk: Sequence[Row]) -> dict[str, Tensor]:
    def kept(name: str) -> Tensor:
        return torch.cat([getattr(row.rendered, name)[0][row.mask] for row in chunk])

    names = {"token_ids": "input_ids", "positions": "position_ids", "in_response": "response"}
    return {part: kept(name) for part, name in {**names, "in_reasoning": "reasoning"}.items()}


def _labels(pool: Pool | TokenScope) -> tuple[Any, str]:
    """What activations say of the tokens they come from: the pool, and the name of a scope of the caller's own."""
    if isinstance(pool, TokenScope):
        return "tokens" if pool.single else "mean", pool.name
    return pool, ""


def checked(conversations: Conversations, reading: Reading) -> Iterable[Conversation]:
    """The conversations, a file's as they come; of a sequence, what can be known to be wrong is said at once."""
    if isinstance(conversations, str | Path):
        return iter_conversations(conversations)
    if not isinstance(conversations, Sequence):
        return _some(conversations)
    if not conversations:
        raise InputError("capture: no conversations given; give at least one")
    if reading.pool == "response_mean":
        for index, conversation in enumerate(conversations):
            check_answered(index, conversation)
    return conversations


def _some(conversations: Iterable[Conversation]) -> Iterator[Conversation]:
    empty = True
    for conversation in conversations:
        empty = False
        yield conversation
    if empty:
        raise InputError("capture: no conversations given; give at least one")


def total_of(conversations: Conversations) -> int:
    """How many conversations there are; 0 where only reading them all would tell."""
    if isinstance(conversations, str | Path):
        return count_rows(conversations)
    return len(conversations) if isinstance(conversations, Sequence) else 0


def count_rows(path: str | Path) -> int:
    """Lines of a JSONL file that hold something; 0 where there is no such file."""
    if not Path(path).is_file():
        return 0
    with Path(path).open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _nothing(model: Model, reading: Reading) -> Activations:
    values, (pool, scope) = torch.zeros(len(reading.layers), 0, model.d_model), _labels(reading.pool)
    index = torch.zeros(0, dtype=torch.long)
    hash_ = template_hash(model.tokenizer)
    return Activations(values, reading.layers, pool, hash_, index, site=reading.site, scope=scope)


def _check_finite(read: Tensor, at: Tensor, rows: Sequence[Row], reading: Reading, places: Places) -> None:
    if torch.isfinite(read).all():
        return
    layer, sample, _ = (~torch.isfinite(read)).nonzero()[0].tolist()
    row = next(row.index for row in rows if at[sample] in range(*places[row.index]))
    raise InputError(
        f"activation of block {reading.layers[layer]} on conversation {row} is not finite in {read.dtype}: use a wider "
        "dtype"
    )
