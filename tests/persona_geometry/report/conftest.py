"""Fixtures: a synthetic study folder, and its report."""

from __future__ import annotations

from pathlib import Path

import pytest

from persona_geometry.results import Study
from tests.persona_geometry.report.synthetic_study import build_study


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete study folder; copy it before changing it."""
    return build_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def study(study_folder: Path) -> Study:
    """The complete study."""
    return Study.load(study_folder)


@pytest.fixture(scope="session")
def page(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report."""
    return study.report(tmp_path_factory.mktemp("report") / "report.html")
