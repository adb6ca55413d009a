"""Which strength of each treatment is taken: on selection questions and a selection seed, by one stated rule."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from finetuning.compare.criteria import Bounds
from probes.errors import InputError


@dataclass(frozen=True)
class Treatment:
    """A treatment of training by name, and how strong; its label is what cells and tables call it."""

    name: str
    strength: float | int | None = None

    @property
    def label(self) -> str:
        """ "kl 0.1", or the name alone."""
        return self.name if self.strength is None else f"{self.name} {self.strength:g}"

    @classmethod
    def of(cls, label: str) -> Treatment:
        """A treatment from its label. Raises InputError for an empty one."""
        if not label.strip():
            raise InputError("a treatment without a name: write for instance `kl 0.1`")
        found = re.fullmatch(r"(.+?)[ =]([-+]?\d+\.?\d*(?:[eE][-+]?\d+)?)", label.strip())
        return cls(found[1], float(found[2])) if found else cls(label.strip())


def choose_strengths(table: pd.DataFrame, *, bounds: Bounds = Bounds()) -> dict[str, str]:  # noqa: B008 - frozen
    """Treatment -> label of its strength, from the table (`four_criteria`) of a selection seed on selection questions.

    The one that cuts most among those that keep the bounds' share of narrow learning, skill and coherence; where none
    does, among those that keep enough narrow learning; where none does either, the one that keeps most of it. A figure
    that is undefined (nothing was learnt untreated) counts as the lowest; of equals the first is taken.
    """
    chosen: dict[str, str] = {}
    for name, rows in _families(table).items():
        narrow = [row for row in rows if row["narrow_kept"] >= bounds.narrow]
        whole = [row for row in narrow if _keeps(row, bounds)]
        best = max(whole or narrow, key=lambda row: _known(row["cut"]), default=None)
        chosen[name] = (best or max(rows, key=lambda row: _known(row["narrow_kept"])))["treatment"]
    return chosen


def _families(table: pd.DataFrame) -> Mapping[str, Sequence[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    rows = table.to_dict("records") if {"narrow_kept", "cut"} <= set(table.columns) else []
    for row in rows:
        made = Treatment.of(str(row["treatment"]))
        if made.strength is not None and made.name != "stop":
            found.setdefault(made.name, []).append({str(key): value for key, value in row.items()})
    return found


def _keeps(row: Mapping[str, Any], bounds: Bounds) -> bool:
    return row.get("skill_kept", 1.0) >= bounds.skill and row["coherent_kept"] >= bounds.coherent


def _known(value: float) -> float:
    return value if value == value else -math.inf
