"""The notebooks run from top to bottom, and are kept without outputs."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra [notebooks]")
nbclient = pytest.importorskip("nbclient", reason="needs the extra [notebooks]")

FOLDER = Path(__file__).resolve().parents[2] / "examples"
BOOKS = sorted(FOLDER.glob("*.ipynb"))
ASSETS = "PERSONA_GEOMETRY_ASSETS"


def test_there_are_notebooks_and_flat_files_only():
    assert len(BOOKS) >= 3 and not [p for p in FOLDER.iterdir() if p.is_dir() and p.name != ".ipynb_checkpoints"]


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_outputs_are_stripped(path: Path):
    cells = nbformat.read(path, as_version=4).cells
    code = [c for c in cells if c.cell_type == "code"]
    assert code and all(not c.outputs and c.execution_count is None for c in code)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PLOTLY_RENDERER", "json")
    if ASSETS in path.read_text(encoding="utf-8"):
        if ASSETS not in os.environ:
            pytest.skip(f"needs a model and data under ${ASSETS}")
        monkeypatch.setenv(ASSETS, str((FOLDER.parent / os.environ[ASSETS]).resolve()))
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(book, timeout=420, resources={"metadata": {"path": str(tmp_path)}}).execute()
