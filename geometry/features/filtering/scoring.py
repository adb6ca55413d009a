"""Scores of a data set's rows: how they are made, row by row in bounded memory, and the value that holds them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from geometry.features.filtering.scorers import RowScorer
from probes.capture import total_of
from probes.conversations import Conversation, iter_conversations, render
from probes.errors import InputError
from probes.models import Model
from probes.outcomes import Rate
from probes.progress import Progress, silent

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from geometry.features.filtering.dropping import RowSplit

CHUNK = 512  # rows scored at a time


@dataclass(frozen=True, eq=False)
class RowScores:
    """One score a row, float64 `values` `[sample]`, in the rows' order; the higher, the sooner the row is dropped.

    NaN: the row has no score, and no filter drops it. `tokens` counts the answer's tokens, its end token included.
    """

    values: Float[Tensor, " sample"]
    tokens: Int[Tensor, " sample"]
    name: str
    unit: str
    high: str

    def __post_init__(self) -> None:
        if self.values.isinf().any():
            raise InputError(f"score {self.name}: row {int(self.values.isinf().nonzero()[0])} is infinite; check it")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def scored(self) -> Int[Tensor, " scored"]:
        """Numbers of the rows that have a score, ascending."""
        return (~self.values.isnan()).nonzero().squeeze(1)

    @property
    def worst_first(self) -> Int[Tensor, " scored"]:
        """Numbers of the scored rows, highest score first; of equal scores the earlier row comes first."""
        rows = self.scored
        return rows[torch.argsort(self.values[rows], descending=True, stable=True)]

    def with_length(self, *, seed: int = 0) -> Rate:
        """Spearman correlation of the score with the answer's length, with its 95 % interval."""
        from geometry.features.filtering.checks import spearman

        rows = self.scored
        return spearman(self.values[rows], self.tokens[rows], seed=seed)

    def auroc(self, truth: Sequence[bool], *, groups: Sequence[str] | None = None, seed: int = 0) -> Rate:
        """How well the score tells the rows that are truly bad: see `row_auroc`."""
        from geometry.features.filtering.checks import row_auroc

        return row_auroc(self, truth, groups=groups, seed=seed)

    @property
    def table(self) -> pd.DataFrame:
        """Columns row, score, tokens, in the rows' order."""
        return pd.DataFrame({"row": range(len(self)), "score": self.values.tolist(), "tokens": self.tokens.tolist()})

    def figure(self, split: "RowSplit | None" = None) -> "go.Figure":
        """How the scores are spread, and where a split cuts."""
        from geometry.features.filtering.figures import row_scores_figure

        return row_scores_figure(self, split)


def score_rows(
    rows: Sequence[Conversation] | Iterable[Conversation] | str | Path,
    model: Model,
    *,
    method: RowScorer,
    batch_size: int = 16,
    chunk: int = CHUNK,
    progress: Progress = silent,
) -> RowScores:
    """Score rows that end in an answer; `model` is the one that is to be trained, before any training.

    Rows may be the path of a JSONL file or any iterable: only `chunk` of them are held at a time, `batch_size` go
    through the model together, and neither changes a score but for rounding. Raises InputError for no rows and for a
    row without an answer, by number.
    """
    values, tokens, done, total = list[Tensor](), list[Tensor](), 0, total_of(rows)
    for part in chunked(iter_conversations(rows) if isinstance(rows, str | Path) else rows, chunk):
        tokens.append(answer_tokens(model, part, [f"row {done + i}" for i in range(len(part))]))
        values.append(scores_of(method, model, part, batch_size=batch_size))
        done += len(part)
        progress(done, total, method.name)
    if not values:
        raise InputError("no rows to score: give at least one answered conversation")
    return RowScores(torch.cat(values), torch.cat(tokens), method.name, method.unit, method.high)


def chunked(rows: Iterable[Conversation], size: int) -> Iterator[list[Conversation]]:
    """Runs of at most `size` rows."""
    if size < 1:
        raise InputError(f"chunk {size}: give 1 row or more")
    source = iter(rows)
    while part := list(islice(source, size)):
        yield part


def answer_tokens(model: Model, rows: Sequence[Conversation], places: Sequence[str]) -> Int[Tensor, " sample"]:
    """Tokens of each row's answer, its end token included. A row that cannot be read is named by its place."""
    counts = []
    for place, row in zip(places, rows, strict=True):
        if not row.answer:
            raise InputError(f"{place} has no answer to score; give it one or drop it")
        try:
            counts.append(int(render(model.tokenizer, [row]).response.sum()))
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
    return torch.tensor(counts)


def scores_of(
    method: RowScorer, model: Model, rows: Sequence[Conversation], *, batch_size: int
) -> Float[Tensor, " sample"]:
    """The method's scores on the CPU in float64. Raises InputError where there is not one for each row."""
    values = method(model, rows, batch_size=batch_size).detach().cpu().double()
    if values.shape != (len(rows),):
        raise InputError(f"score {method.name}: {tuple(values.shape)} scores for {len(rows)} rows; return one for each")
    return values
