"""How an endpoint is called: address, key, patience. The key is read where it is sent and stays nowhere."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from probes.errors import InputError

KEY = "PERSONA_GEOMETRY_API_KEY"


@dataclass(frozen=True)
class Connection:
    """How an endpoint is called: `workers` requests at a time, each tried `retries` times for `timeout` seconds.

    `timeout` bounds a whole exchange, a reply that never ends included. The key is the value of the environment
    variable `key_env` (none is sent where it is unset). `body` holds further fields of every request, such as
    `{"reasoning_effort": "low"}`; a field set to None is left out.
    """

    workers: int = 8
    retries: int = 5
    timeout: float | int = 60
    key_env: str = KEY
    body: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.workers < 1 or self.retries < 1 or self.timeout <= 0:
            raise InputError(f"{self}: give at least one worker, one try and a timeout above 0")
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", self.key_env):
            # Not shown: somebody may have put the key itself here.
            raise InputError("key_env: not the name of an environment variable; give a name such as OPENAI_API_KEY")

    def key(self) -> str | None:
        """The key, or None. Raises InputError, without showing it, where it cannot stand in a header."""
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            return None
        if not re.fullmatch(r"[!-~]+", key):
            raise InputError(f"${self.key_env}: holds characters that no key has; set it again")
        return key


def checked_url(url: str) -> str:
    """The address without a final slash. Raises InputError for none of http(s), and for one with a password in it."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        parts, whole = urlsplit(""), False
    if parts.username or parts.password or parts.query:
        raise InputError("endpoint: its address holds a user or a query; give the plain address and the key by key_env")
    if not whole or re.search(r"[\s\x00-\x1f\x7f-\U0010ffff]", url):
        raise InputError(f"endpoint {url!r}: not an address; give one such as http://localhost:8000/v1")
    return url.rstrip("/")
