"""What latents are read on: conversations, documents, captured activations or a store, a bounded part at a time."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.activations import Activations
from probes.capture import Reading, read_chunk
from probes.chunks import chunks, rows_of, scope_of
from probes.conversations import Conversation, iter_conversations, load_conversations
from probes.errors import InputError
from probes.models import Model
from probes.plain import plain_text
from probes.store import ActivationStore
from saes.fits import check_fits
from saes.rows import Where, block_rows
from saes.sae import SparseAutoencoder

Texts = Sequence[Conversation] | Sequence[str] | Iterable[Conversation] | Iterable[str] | str | Path
TextSource = Texts | Activations | ActivationStore
PART = 2**14
"""Tokens that are read at a time; a longer conversation makes a part of its own."""


def token_parts(sae: SparseAutoencoder, model: Model, source: TextSource, *, size: int = PART) -> Iterator[Activations]:
    """Yield the activations of single tokens at the SAE's block, whole conversations of about `size` tokens at a time.

    `source` holds conversations (or names their JSONL file), documents as plain strings, or is what `capture` returned
    or stored with `pool="tokens"`. Documents are read without a chat template, as text behind the start token. Raises
    InputError for an SAE that does not fit the model, for no rows, means, another site or a block not captured.
    """
    check_fits(sae, model)
    if isinstance(source, Activations | ActivationStore):
        yield from _captured(sae, source)
        return
    texts: Iterable[Conversation] | Iterable[str] = (
        iter_conversations(source) if isinstance(source, str | Path) else source
    )
    rows = iter(texts)
    first = next(rows, None)
    if first is None:
        raise InputError("no conversations given: latents need at least one conversation or document to be read on")
    plain = isinstance(first, str)
    reader = plain_text(model) if plain else model
    numbered = enumerate(_conversations(chain([first], rows), plain=plain))
    reading = Reading((sae.layer,), "tokens", site=sae.site)
    for chunk in chunks(rows_of(reader.tokenizer, numbered, scope_of("tokens")), size):
        yield read_chunk(reader, chunk, reading)


def counted(part: Activations, where: Where, skip: int) -> Bool[Tensor, " sample"]:
    """The tokens that count: those of the prompt, of the response or all, from position `skip` on."""
    if where not in ("all", "response", "prompt"):
        raise InputError(f"where={where!r}: use 'all', 'response' or 'prompt'")
    assert part.positions is not None and part.in_response is not None  # `token_parts` yields single tokens only
    kept = part.positions >= skip
    return kept if where == "all" else kept & (part.in_response if where == "response" else ~part.in_response)


def latent_values(
    sae: SparseAutoencoder, part: Activations, latents: Sequence[int], keep: Bool[Tensor, " sample"]
) -> Float[Tensor, "sample feature"]:
    """The latents of a part in float32 on the CPU, 0 at tokens that do not count; encoded a block of rows at a time."""
    blocks = part.at(sae.layer).split(block_rows(sae.d_sae))
    with torch.no_grad():
        return torch.cat([sae.encode_some(rows, latents).float().cpu() for rows in blocks]) * keep[:, None]


def load_rows(path: str | Path) -> list[Conversation] | list[str] | ActivationStore:
    """What a file or folder holds for `feature_cards` to read.

    A folder is an activation store. `.jsonl` has a conversation (`messages`) or a document (`text`) a line, `.json` a
    list of documents, `.txt` a document a line. Raises InputError for another kind of file and for one without rows.
    """
    path = Path(path)
    if path.is_dir():
        return ActivationStore.open(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a .jsonl, .json or .txt file, or an activation store")
    if path.suffix == ".jsonl" and not _holds_texts(path):
        return load_conversations(path)
    readers = {".jsonl": _lines, ".json": _listed, ".txt": lambda text: text.splitlines()}
    if path.suffix not in readers:
        raise InputError(f"{path}: ends in {path.suffix!r}; give a .jsonl, .json or .txt file, or an activation store")
    try:
        found = readers[path.suffix](path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a list of documents ({error}); write one string each") from None
    documents = [text.strip() for text in found if isinstance(text, str) and text.strip()]
    if not documents:
        raise InputError(f"{path}: no document in it; write one string each")
    return documents


def _captured(sae: SparseAutoencoder, source: Activations | ActivationStore) -> Iterator[Activations]:
    seen = False
    for part in [source] if isinstance(source, Activations) else source.iter_shards(layers=(sae.layer,)):
        part.at(sae.layer)
        if part.pool != "tokens" or part.token_ids is None or part.positions is None or part.in_response is None:
            raise InputError(f"pool {part.pool!r} holds no single tokens to show: capture with pool='tokens'")
        if part.site != sae.site:
            raise InputError(
                f"SAE {sae.name!r} reads {sae.site}, these activations are of {part.site}: capture that site"
            )
        seen = seen or len(part) > 0
        yield part
    if not seen:
        raise InputError("no conversations given: the activations hold no token")


def _conversations(rows: Iterable[Conversation | str], *, plain: bool) -> Iterator[Conversation]:
    for number, row in enumerate(rows):
        if isinstance(row, str) != plain:
            raise InputError(f"row {number} is a {type(row).__name__}: give conversations only, or documents only")
        if isinstance(row, str) and not row.strip():
            raise InputError(f"document {number} is empty: leave it out")
        yield Conversation.of(row) if isinstance(row, str) else row


def _holds_texts(path: Path) -> bool:
    with path.open(encoding="utf-8") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        row = json.loads(first)
    except json.JSONDecodeError:
        return False  # the reader of conversations says which line is wrong
    return isinstance(row, str) or (isinstance(row, dict) and "messages" not in row and "text" in row)


def _lines(text: str) -> list[str]:
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [row if isinstance(row, str) else row["text"] for row in rows]


def _listed(text: str) -> list[str]:
    rows = json.loads(text)
    if not isinstance(rows, list):
        raise TypeError("a list of strings is due")
    return [row if isinstance(row, str) else row["text"] for row in rows]
