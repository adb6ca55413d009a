"""What the command line shows: progress while a study runs, a summary when it is done."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from persona_geometry.results import Study

#: Rows of the summary table: name in study.json -> what it is called.
ROWS = {
    "base": "base",
    "tuned": "fine-tuned",
    "benign": "benign control",
    "narrow": "narrow twin",
    "tuned_ablated": "fine-tuned, direction set back",
    "tuned_random_ablated": "   random directions instead",
    "tuned_random_steps": "   random steps of its size",
    "tuned_latents": "fine-tuned, latents clamped",
    "tuned_random_latents": "   random latents instead",
    "base_steered": "base, direction put in",
    "base_random_steered": "   random directions instead",
    "realigned": "fine-tuned, re-aligned",
}


def settle() -> None:
    """Quiet other packages' bars and notices, for this process only."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("WANDB_MODE", "disabled")
    warnings.filterwarnings("ignore", module=r"(transformers|peft|transformer_lens|sae_lens|umap|numba|torch)\b")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    warnings.showwarning = _said_once()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger().setLevel(logging.ERROR)


def _said_once() -> Callable[..., None]:
    """Print each warning in one line and once: Python forgets what it has said whenever a library changes a filter."""
    said: set[str] = set()

    def say(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            print(f"persona-geometry: {message}", file=sys.stderr)

    return say


class Stages:
    """Progress of a study: a bar over its stages on a terminal, a line a stage elsewhere."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.console: Console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn())
        self.bar = Progress(*columns, TimeElapsedColumn(), console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("starting", total=total)

    def __enter__(self) -> Stages:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, stage: str, what: str, /) -> None:
        """Show a stage that begins, is done, or was read from an earlier run."""
        if what == "begin":
            self.bar.update(self.task, description=stage.replace("-", " "))
        else:
            self.bar.advance(self.task)
        if not self.console.is_terminal and what != "begin":
            self.console.print(f"{stage}: {'from an earlier run' if what == 'read' else 'done'}", highlight=False)


class Bar:
    """Progress of one long job: a bar with the time left on a terminal, a line every tenth of the way elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console: Console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("starting", total=None)
        self.start, self.first, self.shown = 0.0, 0, 0

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, done: int, total: int, what: str, /) -> None:
        """Show how far the job is; what an earlier run did is not counted in its speed."""
        self.bar.update(self.task, completed=done, total=total or None, description=what)
        self.start, self.first = (self.start, self.first) if self.start else (time.monotonic(), done)
        if not self.console.is_terminal and total and 10 * done // total > self.shown:
            self.shown = 10 * done // total
            speed = (done - self.first) / max(1e-9, time.monotonic() - self.start)
            left = f", {(total - done) / speed:.0f} s left" if speed and done < total else ""
            self.console.print(f"{what}: {done} of {total}{left}", highlight=False)


def summary(study: Study) -> None:
    """Print the verdict, the table of rates, the cuts and where the report lies."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    found: Mapping[str, Any] = study.summary
    console.print(f"\n{found['verdict']['sentence']}\n", highlight=False)
    table = Table("", "misaligned, out of domain", "coherent", "misaligned, in domain", box=None, pad_edge=False)
    for name, label in ROWS.items():
        if name in found["rates"]:
            rate = found["rates"][name]
            away, here = rate.get("out_of_domain"), rate.get("in_domain")
            table.add_row(label, _share(away), _plain(away, "coherent"), _share(here))
    console.print(table)
    for name, cut in found.get("cut", {}).items():
        if cut["value"] is not None:
            console.print(
                f"cut, {name}: {cut['value']:.0%} [{_limit(cut['low'])}, {_limit(cut['high'])}]", highlight=False
            )
    for item in found.get("left_out", []):
        console.print(f"left out: {item['part']}: {item['why']}", highlight=False)
    console.print(f"\nreport: {study.folder / 'report.html'}", highlight=False, soft_wrap=True)


def _share(rate: Mapping[str, Any] | None) -> str:
    if not rate or rate["misaligned"] is None:
        return ""
    low, high = rate["ci"]
    return f"{rate['misaligned']:6.1%}  [{low:.1%}, {high:.1%}]"


def _plain(rate: Mapping[str, Any] | None, key: str) -> str:
    return f"{rate[key]:.1%}" if rate and rate[key] is not None else ""


def _limit(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
