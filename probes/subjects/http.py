"""One request to an endpoint: tried again where that may help, cut off where the reply is too long or never ends."""

import functools
import http.client
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from probes.errors import InputError
from probes.subjects.connection import Connection

LIMIT = 4 * 2**20
"""Longest reply that is read, in bytes."""
AGAIN = (408, 409, 425, 429)
"""Statuses below 500 that may pass if one waits."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
CURES = {
    401: "put a valid key into ${key}",
    403: "put a key that may use it into ${key}",
    404: "see that it serves {m}",
}


class _Failure(Exception):
    """Why one try failed: `final` where another one cannot help; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, *, final: bool = False, wait: float | None = None, status: int = 0) -> None:
        super().__init__(reason)
        self.final, self.wait, self.status = final, wait, status


def post(
    target: str,
    body: Mapping[str, Any],
    connection: Connection,
    read: Callable[[Any], Any],
    stop: threading.Event,
) -> Any:
    """Send `body` as JSON and return what `read` makes of the reply's JSON.

    Time-outs, broken or malformed replies, statuses 408, 409, 425, 429 and from 500 on are tried again after a wait
    that doubles (or the server's Retry-After). `read` raises ValueError for a reply that it cannot use. Raises
    InputError after the last try, or at once where trying again cannot help; it never shows the key.
    """
    data = json.dumps(body).encode()
    jitter = random.Random(data)  # the same request waits alike in every run, other requests at other times
    for attempt in range(1, connection.retries + 1):
        try:
            return _once(target, data, connection, read)
        except _Failure as failure:
            wait = FIRST_WAIT * 2 ** (attempt - 1) * (0.5 + jitter.random()) if failure.wait is None else failure.wait
            if failure.final or attempt == connection.retries or stop.wait(min(wait, LONGEST_WAIT)):
                cure = CURES.get(failure.status, "see that it runs and serves {m}")
                cure = cure.format(key=connection.key_env, m=body.get("model"))
                raise InputError(f"endpoint {target}: {failure} after {attempt} tries; {cure}") from None
    raise AssertionError("the last try returns or raises")


def _once(target: str, data: bytes, connection: Connection, read: Callable[[Any], Any]) -> Any:
    key = connection.key()
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
    headers |= {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        status, asked, raw = _exchange(urlsplit(target), data, headers, connection.timeout)
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise _Failure(_clean(str(error) or type(error).__name__, key)) from None
    text = raw.decode("utf-8", "replace")
    text = text if key is None else text.replace(key, "[key]")
    if status != 200:
        reason = f"status {status} ({_clean(text, key)})" if text.strip() else f"status {status}"
        final = status < 500 and status not in AGAIN
        raise _Failure(reason, final=final, wait=_retry_after(asked), status=status)
    try:
        return read(json.loads(text))
    except (ValueError, RecursionError) as error:
        told = "not JSON" if isinstance(error, json.JSONDecodeError | RecursionError) else str(error)
        raise _Failure(f"a reply that cannot be used ({_clean(told, key)})") from None


def _exchange(
    target: SplitResult, data: bytes, headers: Mapping[str, str], timeout: float | int
) -> tuple[int, str | None, bytes]:
    """Status, Retry-After and body; all of it within `timeout` seconds and `LIMIT` bytes."""
    found: tuple[int, str | None, bytes] | None = None
    line, place = _opened(target, timeout)
    late = threading.Event()
    socks: list[socket.socket] = []  # the line forgets its socket once a reply has begun that ends by closing
    watch = threading.Timer(timeout, _hang_up, [socks, late])
    watch.daemon = True
    watch.start()
    try:
        line.connect()
        socks.append(line.sock)
        line.request("POST", place, body=data, headers=dict(headers))
        with closing(line.getresponse()) as reply:
            raw = reply.read(LIMIT + 1)
            if len(raw) > LIMIT:
                raise http.client.HTTPException(f"a reply of more than {LIMIT >> 20} MiB")
            if reply.length and not late.is_set():
                raise http.client.HTTPException("a reply that breaks off")
            found = reply.status, reply.getheader("Retry-After"), raw
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        if not late.is_set():  # a line that was hung up fails in ways of its own
            raise
    finally:
        watch.cancel()
        line.close()
        for sock in socks:
            sock.close()
    if late.is_set():
        raise TimeoutError(f"no whole reply within {timeout:g} s")
    assert found is not None
    return found


def _opened(target: SplitResult, timeout: float | int) -> tuple[http.client.HTTPConnection, str]:
    """A line to the host, through the proxy that the environment names, and what to ask for on it."""
    host = str(target.hostname)
    via = None if proxy_bypass(host) else getproxies().get(target.scheme)
    proxy = urlsplit(via if "//" in via else f"//{via}") if via else target
    if target.scheme == "https":
        line = http.client.HTTPSConnection(str(proxy.hostname), proxy.port, timeout=timeout, context=_tls())
        if via:
            line.set_tunnel(host, target.port)
        return line, target.path
    line = http.client.HTTPConnection(str(proxy.hostname), proxy.port, timeout=timeout)
    return line, target.geturl() if via else target.path


@functools.cache
def _tls() -> ssl.SSLContext:
    """The machine's trusted certificates, read once."""
    return ssl.create_default_context()


def _hang_up(socks: list[socket.socket], late: threading.Event) -> None:
    late.set()
    for sock in socks:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _retry_after(value: str | None) -> float | None:
    """Seconds that the server asks to wait: a number, or a date."""
    try:
        return max(0.0, float(value or "none"))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(str(value)).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _clean(text: str, key: str | None) -> str:
    """One short printable line of what a server said, without the key."""
    text = text if key is None else text.replace(key, "[key]")
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:160]
