"""A small study of the shipped organism, run once for all tests that look at one."""

import warnings
from pathlib import Path

import pytest

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
    out: Path = tmp_path_factory.mktemp("study")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noise of the libraries that the study drives; their own tests turn it on
        return run_study(organism_inputs(out, sizes=SMALL))
