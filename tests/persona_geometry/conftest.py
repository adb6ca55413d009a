"""A small study of the shipped organism, run once for all tests that look at one; the command line in this process."""

import os
import sys
import warnings
from collections.abc import Callable

import pytest
from filelock import FileLock

from persona_geometry.commands import main
from persona_geometry.organism.shipped import organism_inputs
from persona_geometry.results import Study
from persona_geometry.stages.inputs import Sizes
from persona_geometry.stages.run import run_study

SMALL = Sizes(
    out_of_domain=60, in_domain=42, selection=54, controls=2, control_answers=10, choice=6, again=1, screened=2,
    permutations=200, realign_steps=6, max_new_tokens=56,
)  # fmt: skip


@pytest.fixture(scope="session")
def small_sizes() -> Sizes:
    return SMALL


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One study for all test processes: the first one makes it, the others read its cells."""
    parallel = "PYTEST_XDIST_WORKER" in os.environ
    out = tmp_path_factory.getbasetemp().parent / "study" if parallel else tmp_path_factory.mktemp("study")
    with warnings.catch_warnings(), FileLock(f"{out}.lock"):
        warnings.simplefilter("ignore")  # noise of the libraries that the study drives; their own tests turn it on
        return run_study(organism_inputs(out, sizes=SMALL))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The function `command("probe", ...)`: runs the command line in this process and gives its exit status."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["persona-geometry", *map(str, words)])
        monkeypatch.setattr("persona_geometry.commands.terminal.settle", lambda: None)
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    return run
