"""`persona-geometry verify`: are activations of this very model read and steered rightly? Status 1 if not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from probes.conversations import Conversation
    from probes.models import Model
    from probes.verify import Check

DTYPES = ("float32", "bfloat16", "float16", "float64")
#: How many conversations of a file are read.
FEW = 8
STYLES = {
    "prompt": "dim",
    "last_prompt": "bold reverse blue",
    "reasoning": "italic dark_orange3",
    "response": "green",
    "beyond": "dim strike",
}


def verify(
    model: Annotated[str, typer.Argument(help="A hub id or a folder.")],
    adapter: Annotated[str | None, typer.Option(help="A PEFT adapter over MODEL.")] = None,
    rows: Annotated[
        Path | None, typer.Option(help=f"JSONL of your own conversations; the first {FEW} are read.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write what was found as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write what was found as a page, with tokens in colours.")] = None,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, mps.")] = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(DTYPES)} (default: float32 on the CPU, else as stored).")
    ] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Path of the list of decoder blocks, where it cannot be found.")
    ] = None,
) -> None:
    """Check that activations are read and steered rightly on a model; status 1 where a check fails."""
    from persona_geometry.commands.terminal import settle

    _check(dtype, json, html)
    settle()
    conversations = _conversations(rows)
    subject, checks = _tested(model, adapter, conversations, {"device": device, "dtype": dtype, "blocks": blocks})
    found = _found(subject, checks, conversations)
    _show(found)
    if json is not None:
        from probes.io import write_json

        write_json(json, found)
        print(json)
    if html is not None:
        from persona_geometry.report.verified import write_verified

        print(write_verified(html, found))
    raise typer.Exit(0 if found["passed"] else 1)


def _check(dtype: str | None, *paths: Path | None) -> None:
    """What can be known to be wrong before anything heavy is imported."""
    from probes.errors import InputError

    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: use one of {', '.join(DTYPES)}")
    for path in paths:
        if path is not None and path.is_dir():
            raise InputError(f"{path}: is a folder; give the name of a file to write")


def _conversations(path: Path | None) -> list[Conversation]:
    from itertools import islice

    from probes.conversations import iter_conversations
    from probes.verify import SAMPLES

    return list(SAMPLES if path is None else islice(iter_conversations(path), FEW))


def _tested(
    source: str, adapter: str | None, conversations: list[Conversation], settings: dict[str, Any]
) -> tuple[Model, list[Check]]:
    """The model and its checks; under an adapter the base is read first, and forgotten before the second is loaded."""
    import warnings

    import torch

    from probes.conversations import NoChatTemplate
    from probes.models import load_model
    from probes.verify import activations_of, self_test

    given: dict[str, Any] = settings | {"dtype": getattr(torch, settings["dtype"]) if settings["dtype"] else None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoChatTemplate)  # said in the summary
        base = None if adapter is None else activations_of(load_model(source, **given), conversations)
        subject = load_model(source, adapter=adapter, **given)
        return subject, self_test(subject, conversations, base=base)


def _found(subject: Model, checks: list[Check], conversations: list[Conversation]) -> dict[str, Any]:
    """What JSON and page hold."""
    import warnings
    from dataclasses import asdict

    from probes.conversations import NoChatTemplate, has_template, render
    from probes.verify import segments

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoChatTemplate)
        rendered = render(subject.tokenizer, conversations)
    failed = [check.name for check in checks if not check.passed]
    said = f"{len(checks) - len(failed)} of {len(checks)} checks passed" + (
        f"; failed: {', '.join(failed)}" if failed else ""
    )
    words = "" if has_template(subject.tokenizer) else "; no chat template: turns are written as User: and Assistant:"
    return {
        "model": subject.name,
        "sentence": f"{subject!r}: {said}{words}.",
        "passed": not failed,
        "template_hash": rendered.template_hash,
        "checks": [asdict(check) for check in checks],
        "rows": [segments(subject.tokenizer, rendered, row) for row in range(len(conversations))],
    }


def _show(found: dict[str, Any]) -> None:
    """The conversations in colours, the table, the sentence."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from persona_geometry.report.html import clean

    console = Console()
    legend = (Text(kind.replace("_", " "), style) for kind, style in STYLES.items())
    console.print(Text("masks: ").append(Text(", ").join(legend)), "\n")
    for row in found["rows"]:
        console.print(Text().join(Text(clean(text), STYLES[kind]) for kind, text in row), soft_wrap=True)
    heads = (Column("check", no_wrap=True), Column("figure", justify="right"), Column("limit", justify="right"))
    table = Table(*heads, "", Column("guards against", overflow="fold"), box=None, pad_edge=False)
    for check in found["checks"]:
        mark = Text("passed", "green") if check["passed"] else Text(f"FAILED {clean(check['detail'])}", "bold red")
        table.add_row(check["name"], f"{check['figure']:.3g}", f"{check['limit']:.3g}", mark, check["guards"])
    console.print("", table, "")
    console.print(found["sentence"], highlight=False, markup=False, soft_wrap=True)
