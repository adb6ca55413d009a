"""`persona-geometry compare`: two models on the same questions and seeds, pair by pair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from probes.outcomes import Outcomes


def compare(
    a: Annotated[Path, typer.Argument(help="What `ask` wrote of one model: its folder, a Parquet or a JSONL file.")],
    b: Annotated[Path, typer.Argument(help="The same of the other.")],
    kind: Annotated[str, typer.Option(help="misaligned, aligned, coherent, refusal or label:NAME.")] = "misaligned",
    figure: Annotated[Path | None, typer.Option(help="Write the differences by question to this HTML file.")] = None,
) -> None:
    """How much likelier are such answers of A than of B? Rate, interval, and two tests on the pairs."""
    from persona_geometry.commands.terminal import settle

    settle()
    from rich.console import Console
    from rich.table import Table

    from persona_geometry.commands.ask import cells
    from probes.outcomes import compare as compared

    one, two = _read(a), _read(b)
    found = compared(one, two, kind=kind)
    console, gap = Console(), found.difference
    table = Table("", "rate", "95 % interval", "n", box=None, pad_edge=False)
    for path, outcomes in ((a, one), (b, two)):
        table.add_row(str(path), *cells(outcomes.rate(kind)))
    console.print(table)
    console.print(
        f"difference {gap.value:+.1%} [{gap.low:+.1%}, {gap.high:+.1%}]: {found.verdict}\n"
        f"{found.only_a} pairs are {kind} in A alone, {found.only_b} in B alone: McNemar p = {found.mcnemar:.2g}; "
        f"sign test over questions p = {found.sign:.2g}",
        highlight=False,
        soft_wrap=True,
    )
    if figure is not None:
        found.figure().write_html(figure, include_plotlyjs=True)
        console.print(str(figure), highlight=False, soft_wrap=True)


def _read(path: Path) -> Outcomes:
    from probes.outcomes import Outcomes, outcomes_from_jsonl

    path = path / "outcomes.parquet" if path.is_dir() else path
    return outcomes_from_jsonl(path) if path.suffix == ".jsonl" else Outcomes.load(path)
