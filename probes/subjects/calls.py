"""Many requests to an endpoint at a time: each paid for once, kept as soon as it is answered."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from probes.errors import InputError
from probes.progress import Progress, silent
from probes.subjects.connection import Connection, checked_url
from probes.subjects.http import post
from probes.subjects.ledger import Ledger, digest


def request_key(url: str, body: Mapping[str, Any]) -> str:
    """What a request and its answer are kept under."""
    return digest(checked_url(url), body)


def request_body(model: str, messages: Sequence[Mapping[str, str]], connection: Connection, **fields: Any) -> dict:
    """The JSON of a chat completion; the connection's own fields win, and None leaves a field out."""
    body = {"model": model, "messages": list(messages), **fields, **connection.body}
    return {name: value for name, value in body.items() if value is not None}


def call(
    url: str,
    bodies: Sequence[Mapping[str, Any]],
    connection: Connection,
    read: Callable[[Any], Any],
    ledger: Ledger | None = None,
    *,
    progress: Progress = silent,
) -> list[Any]:
    """What `read` makes of each request's reply, place by place; equal requests are sent once, kept ones not at all.

    Raises InputError at the first request that fails for good: those not yet begun are not sent, those that are
    answered meanwhile are kept.
    """
    target = checked_url(url) + "/chat/completions"
    keys = [request_key(url, body) for body in bodies]
    found = {key: ledger[key] for key in keys if ledger is not None and key in ledger}
    open_ = {key: body for key, body in zip(keys, bodies, strict=True) if key not in found}
    stop, total = threading.Event(), len(found) + len(open_)

    def fetch(key: str, body: Mapping[str, Any]) -> None:
        if stop.is_set():
            return
        try:
            found[key] = post(target, body, connection, read, stop)
        except InputError:
            stop.set()  # at once: what is not yet sent is not to be paid for
            raise
        if ledger is not None:
            ledger.put(key, found[key])

    workers = ThreadPoolExecutor(connection.workers)
    try:
        for future in as_completed([workers.submit(fetch, *item) for item in open_.items()]):
            future.result()
            progress(len(found), total, "replies")
    except InputError as error:
        kept = (
            "" if ledger is None else f"; what was answered is kept in {ledger.path}, the same call goes on from there"
        )
        raise InputError(f"{error}{kept}") from None
    finally:
        stop.set()
        workers.shutdown(wait=True, cancel_futures=True)
    return [found[key] for key in keys]
