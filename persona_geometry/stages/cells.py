"""Resumable cells: each long result of a study is written once, and read when the same study runs again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from geometry.steering.vectors import PersonaVector
from probes.errors import InputError
from probes.io import atomic_file, read_json, write_json
from probes.outcomes import Outcomes


@runtime_checkable
class Say(Protocol):
    """Receives what the study is doing: a stage's name and a phrase."""

    def __call__(self, stage: str, what: str, /) -> None:
        """Report."""
        ...


def quiet(stage: str, what: str, /) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Cells:
    """A folder of finished results. The key says which study they belong to."""

    folder: Path
    say: Say = quiet

    @classmethod
    def open(cls, out: Path, key: Mapping[str, Any], say: Say = quiet) -> Cells:
        """Open or create the cells of a study.

        Raises:
            InputError: The folder holds the cells of another study, or is no folder that can be written.
        """
        folder = out / "cells"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error.strerror}); give another folder") from error
        path = folder / "key.json"
        if path.exists():
            found = read_json(path)
            differing = sorted(k for k in {*found, *key} if found.get(k) != key.get(k))
            if differing:
                raise InputError(
                    f"--out {out}: holds another study (it differs in {', '.join(differing)}); give an empty folder"
                )
        else:
            write_json(path, dict(key))
        return cls(folder, say)

    def outcomes(self, name: str, make: Callable[[], Outcomes]) -> Outcomes:
        """Judged answers."""
        return self._cell(name, ".parquet", make, lambda o, path: o.save(path), Outcomes.load)

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table."""
        return self._cell(name, ".table.parquet", make, _save_table, pd.read_parquet)

    def json(self, name: str, make: Callable[[], Any]) -> Any:
        """Plain data; also on the first run what is returned is what a later run would read."""
        self._cell(name, ".json", make, lambda value, path: write_json(path, value), read_json)
        return read_json(self.folder / f"{name}.json")

    def vector(self, name: str, make: Callable[[], PersonaVector]) -> PersonaVector:
        """A persona vector."""
        return self._cell(name, ".safetensors", make, lambda v, path: v.save(path), PersonaVector.load)

    def seconds(self) -> dict[str, float]:
        """Seconds that each cell took, when it was made."""
        path = self.folder / "seconds.json"
        return read_json(path) if path.exists() else {}

    def _cell(
        self,
        name: str,
        suffix: str,
        make: Callable[[], Any],
        save: Callable[[Any, Path], Any],
        load: Callable[[Path], Any],
    ) -> Any:
        path = self.folder / f"{name}{suffix}"
        if path.exists():
            self.say(name, "read")
            return load(path)
        self.say(name, "begin")
        began = time.perf_counter()
        value = make()
        save(value, path)
        write_json(self.folder / "seconds.json", self.seconds() | {name: round(time.perf_counter() - began, 3)})
        self.say(name, "done")
        return load(path)


def _save_table(table: pd.DataFrame, path: Path) -> None:
    with atomic_file(path) as scratch:
        table.to_parquet(scratch, index=False)
