"""The Study as a folder: round trip, errors, and how it shows itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from persona_geometry.results import FORMAT, Study
from probes.errors import InputError


def test_a_folder_round_trips(study: Study, tmp_path: Path) -> None:
    copy = Study(summary=study.summary, tables=study.tables, folder=tmp_path / "copy")
    again = Study.load(copy.save())
    assert again.summary == study.summary
    assert set(again.tables) == set(study.tables)
    for name, table in study.tables.items():
        pd.testing.assert_frame_equal(again.table(name), table)
    assert not list((tmp_path / "copy").rglob(".*"))


def test_no_study_here(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no study\.json here; give the output folder"):
        Study.load(tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"format": "other/1"}'])
def test_another_format(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(InputError, match="this version reads"):
        Study.load(tmp_path)


def test_a_broken_table(study_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(study_folder, tmp_path / "broken")
    path = tmp_path / "broken" / "tables" / "dose.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"dose\.parquet: not a readable Parquet table"):
        Study.load(tmp_path / "broken")


def test_an_unknown_table(study: Study) -> None:
    with pytest.raises(InputError, match=r"no table 'nope' .* it has distances, dose"):
        study.table("nope")


def test_the_report_lies_in_the_folder(study_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(study_folder, tmp_path / "study")
    path = Study.load(tmp_path / "study").report()
    assert path == tmp_path / "study" / "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_it_shows_itself(study: Study, tmp_path: Path) -> None:
    assert "misaligned, 13 tables" in repr(study)
    html = study._repr_html_()
    assert "Broadly misaligned" in html
    assert "<script" not in html
    assert "Out of domain" in study.figure().layout.title.text
    bare = Study(
        summary={"format": FORMAT, "verdict": {"answer": "<b>", "sentence": "<i>"}}, tables={}, folder=tmp_path
    )
    assert "<b>" not in bare._repr_html_()


def test_figures_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        Study(summary={"rates": {"base": float("nan")}}, tables={}, folder=tmp_path).save()
    assert not (tmp_path / "study.json").exists()


def test_the_summary_on_disk_names_its_format(tmp_path: Path) -> None:
    Study(summary={}, tables={}, folder=tmp_path).save()
    assert json.loads((tmp_path / "study.json").read_text())["format"] == FORMAT
