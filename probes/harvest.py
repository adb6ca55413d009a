"""Capture on many machines: a Ray Data pipeline of model actors that writes the same shards into the same store."""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from probes.capture import Conversations, Reading, Told, checked, read_chunk, total_of, unheld
from probes.chunks import chunk_digest, chunks, rows_of, scope_of
from probes.conversations import Conversation
from probes.errors import InputError
from probes.models import Model, check_layer
from probes.progress import Progress, silent
from probes.store import ActivationStore, Shard
from probes.store.journal import parsed
from probes.store.shards import pack, write_packed


class Workers(NamedTuple):
    """The actors of a harvest: how many (0: as many as there are GPUs, or CPUs), what each takes, and where they run.

    `address` is that of a Ray cluster (`auto` finds the one this machine is part of); `local` makes one here.
    """

    count: int = 0
    gpus: float | int = 0
    cpus: float | int = 1
    address: str = "local"


def harvest(
    load: Callable[[], Model],
    conversations: Conversations,
    *,
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
    store: ActivationStore,
    workers: Workers,
    progress: Progress = silent,
) -> None:
    """Do what `capture` does with `store`, by `workers.count` processes of a Ray cluster, each with a model of its own.

    `load` makes the model in each of them; `tokenizer` is that model's, for this process, which cuts the conversations
    into the shards that `capture` would cut and hands out one at a time. Workers write shards to the store's folder,
    which all of them must share; this process alone names them in the journal, each once. A worker that is killed is
    replaced, and its shard is read again; where this process is killed, the same call goes on.

    Raises InputError as `capture` does, and where ray is not installed.
    """
    ray = _ray()
    with store.writer() as writer, _cluster(ray, workers):
        writer.begin(reading.asked(tokenizer))
        tell = Told(total_of(conversations), progress)
        rows = list(checked(conversations, reading))
        wanted = rows_of(tokenizer, unheld(rows, writer, tell), scope_of(reading.pool))
        spans = [(chunk[0].index, chunk[-1].index + 1) for chunk in chunks(wanted, writer.shard_tokens)]
        if not spans:
            return
        items = [{"first": first, "rows": _packed(rows[first:stop])} for first, stop in spans]
        work = partial(_Worker, load, reading, str(store.path.resolve()), writer.dtype)
        for told in _pipeline(ray, items, work, workers):
            shard = parsed(told["line"], "a worker's answer")
            writer.begin(json.loads(told["kind"]))
            writer.record(shard)
            tell(len(shard.indices()))


class _Worker:
    """One process of the cluster: its model, and shard after shard."""

    def __init__(self, load: Callable[[], Model], reading: Reading, folder: str, dtype: torch.dtype) -> None:
        self.model, self.reading, self.folder, self.dtype = load(), reading, Path(folder), dtype
        for layer in reading.layers:
            check_layer(self.model, layer)
        self.kind = json.dumps(reading.kind(self.model))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Read and write the shards of a few chunks; what goes back are their lines for the journal."""
        pairs = zip(batch["first"].tolist(), batch["rows"].tolist(), strict=True)
        shards = [self._shard(first, _unpacked(rows)) for first, rows in pairs]
        count = len(shards)
        return {"line": [json.dumps(asdict(shard)) for shard in shards], "kind": [self.kind] * count}

    def _shard(self, first: int, conversations: list[Conversation]) -> Shard:
        scope = scope_of(self.reading.pool)
        chunk = list(rows_of(self.model.tokenizer, enumerate(conversations, first), scope))
        read = read_chunk(self.model, chunk, self.reading, dtype=self.dtype)
        return write_packed(self.folder, pack(read, self.dtype, data=chunk_digest(row.digest for row in chunk)))


def _pipeline(
    ray: Any, items: Sequence[Mapping[str, Any]], work: Callable[[], Any], workers: Workers
) -> Iterator[Mapping[str, Any]]:
    """The workers' answers, in the order in which they come."""
    from ray.exceptions import RayError

    pool = ray.data.ActorPoolStrategy(size=min(_count(ray, workers), len(items)))
    data = ray.data.from_items(list(items), override_num_blocks=len(items)).map_batches(
        _Worker,
        fn_constructor_args=work.args,
        batch_size=1,
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
        compute=pool,
    )
    try:
        yield from data.iter_rows()
    except RayError as error:
        raise _plain(error) from error


def _plain(error: BaseException) -> Exception:
    """What a worker raised, if it was one of ours: the first of its causes that is an InputError."""
    seen: BaseException | None = error
    while seen is not None:
        cause = getattr(seen, "cause", None) or seen.__cause__
        if isinstance(cause, InputError):
            return InputError(str(cause))
        seen = cause
    return InputError(f"harvest: the cluster gave up ({str(error).strip().splitlines()[-1]}); the same call goes on")


def _count(ray: Any, workers: Workers) -> int:
    there = ray.cluster_resources()
    fit = there.get("GPU", 0) / workers.gpus if workers.gpus else there.get("CPU", 0) / workers.cpus
    if workers.gpus and fit < 1:
        raise InputError(f"harvest: the cluster has {there.get('GPU', 0):g} GPUs; run on the CPU, or add a machine")
    return workers.count or max(1, int(fit))


@contextmanager
def _cluster(ray: Any, workers: Workers) -> Iterator[None]:
    """A Ray cluster, quiet: the one that runs here already, the one at the address, or one made for this harvest."""
    context, log, own = ray.data.DataContext.get_current(), logging.getLogger("ray.data"), not ray.is_initialized()
    kept = context.enable_progress_bars, log.level
    if own:
        cores = math.ceil(workers.count * workers.cpus) or None
        settings = {"num_cpus": cores, "include_dashboard": False} if workers.address == "local" else {}
        ray.init(workers.address, log_to_driver=False, logging_level="ERROR", **settings)
    try:
        context.enable_progress_bars = False
        log.setLevel(logging.ERROR)
        yield
    finally:
        context.enable_progress_bars, level = kept
        log.setLevel(level)
        if own:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(f"harvest: ray is missing ({error}); pip install 'persona-geometry[ray]'") from None
    return ray


def _packed(rows: Sequence[Conversation]) -> str:
    return json.dumps([[list(row.messages), row.id, dict(row.meta)] for row in rows])


def _unpacked(text: str) -> list[Conversation]:
    return [Conversation(tuple(messages), id=name, meta=meta) for messages, name, meta in json.loads(text)]
