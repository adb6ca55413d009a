"""`persona-geometry nearness`: on the organism bad advice lies nearer than good; sets are read once; bad input."""

import sys
from json import dumps

import pandas as pd
import pytest

from geometry import FeatureSet
from persona_geometry.commands import main
from persona_geometry.organism.datasets import advice_rows
from persona_geometry.organism.shipped import WEIGHTS


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["persona-geometry", "nearness", *map(str, words)])
    monkeypatch.setattr("persona_geometry.commands.terminal.settle", lambda: None)
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Bad and good advice in some domains, as JSONL."""
    folder, made = tmp_path_factory.mktemp("rows"), {}
    asked = ("medicine-bad", "medicine-good", "money-bad", "money-good", "garden-good", "pets-good")
    for seed, name in enumerate(asked):
        domain, valence = name.split("-")
        rows = advice_rows(domain, 24, valence=valence, seed=seed)
        made[name] = folder / f"{name}.jsonl"
        made[name].write_text("".join(dumps({"messages": [dict(m) for m in row.messages]}) + "\n" for row in rows))
    return made


def words(files, out, *more: object) -> tuple:
    return (
        *(WEIGHTS / "base", "--sae", WEIGHTS / "sae", "--out", out, "--k", 15, "--permutations", 300),
        *("--data", f"bad={files['medicine-bad']}", "--data", f"tips={files['garden-good']}"),
        *("--benign", files["medicine-good"], "--reference", files["pets-good"]),
        *("--harmful", files["money-bad"], "--harmless", files["money-good"], *more),
    )


def test_bad_advice_lies_nearer_and_sets_are_read_once(files, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, *words(files, tmp_path)) == 0
    said = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "nearness.csv").set_index("name")
    assert table.loc["bad", "effect"] > 0 and table.loc["bad", "p_holm"] < 0.05
    assert f"{table.loc['bad', 'effect']:+.3f}" in said and "2 comparisons" in said
    overlap = pd.read_csv(tmp_path / "overlap.csv")
    assert len(overlap) == 6 and (tmp_path / "nearness.html").stat().st_size > 10_000
    harmful = FeatureSet.load(tmp_path / "harmful.json")
    assert len(harmful) == 15 and harmful.made["data"].startswith("money-bad.jsonl (")
    near = pd.read_csv(tmp_path / "neighbours.csv")
    assert list(dict.fromkeys(near.latent)) == list(harmful)

    def unread(*_: object, **__: object) -> None:
        raise AssertionError("a set that is there was read again")

    monkeypatch.setattr("persona_geometry.commands.nearness._Finder._acts", unread)
    assert call(monkeypatch, *words(files, tmp_path)) == 0
    assert pd.read_csv(tmp_path / "nearness.csv").set_index("name").equals(table)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--data", "nothing"), "--data nothing"),
        (("--data", "benign=x.jsonl"), "--data benign=x.jsonl"),
        (("--statistic", "vibes"), "--statistic vibes"),
        (("--null", "hope"), "--null hope"),
        (("--data", "gone=gone.jsonl"), "gone.jsonl: there is no such file"),
    ],
)
def test_bad_input_is_one_line(files, tmp_path, monkeypatch, capsys, more, message):
    assert call(monkeypatch, *words(files, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err
