"""`persona-geometry report`: draw the report of a finished study again."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="The output folder of a study.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the page (default: report.html in the folder).")
    ] = None,
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Leave out all text that models wrote, for sharing.")
    ] = False,
) -> None:
    """Draw report.html from a study's folder."""
    from persona_geometry.results import Study

    print(Study.load(folder).report(out, no_text=no_text))
