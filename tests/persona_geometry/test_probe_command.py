"""`persona-geometry probe`: what it writes and says for a tiny model; bad input is one line and status 2."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from persona_geometry.commands import main
from probes import Conversation, LdaProbe, capture, load_probe, save_conversations

WORDS = {"kind": "please help them with care", "cruel": "hurt rob and burn it all"}


@pytest.fixture
def files(tmp_path):
    """Twenty prompts, each answered kindly and cruelly, as two files and as one with labels."""
    rng, rows = np.random.default_rng(0), []
    for number in range(20):
        for tone, words in WORDS.items():
            answer = " ".join(rng.permutation(words.split()))
            rows.append(Conversation.of(f"Case {number}?", answer, tone=tone, domain=f"d{number % 5}"))
    for tone in WORDS:
        save_conversations([row for row in rows if row.meta["tone"] == tone], tmp_path / f"{tone}.jsonl")
    save_conversations(rows, tmp_path / "both.jsonl")
    return tmp_path


@pytest.fixture
def call(monkeypatch, tiny_folder):
    """Run the command on the tiny model; give the exit status."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["persona-geometry", "probe", str(tiny_folder), *map(str, words)])
        monkeypatch.setattr("persona_geometry.commands.terminal.settle", lambda: None)
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    return run


def test_two_files(files, call, capsys, tiny_model):
    out = files / "out"
    assert call(files / "cruel.jsonl", files / "kind.jsonl", "--estimator", "lda", "--layers", "1-2", "--out", out) == 0
    said = capsys.readouterr().out
    table = pd.read_parquet(out / "layers.parquet")
    assert table["layer"].tolist() == [1, 2] and table["groups"].tolist() == [16, 16]  # four prompts of 20 put aside
    placed = load_probe(out / "probe")
    assert placed.positive == "cruel" and placed.meta["negative"] == "kind" and isinstance(placed.probe, LdaProbe)
    figures = placed.meta["unseen_groups"]
    assert figures["auroc"]["n"] == 8 and f"AUROC {figures['auroc']['value']:.3f}" in said and str(out) in said
    rows = [Conversation.of("Case 99?", words) for words in WORDS.values()]
    kind, cruel = placed.scores(capture(tiny_model, rows, layers=[placed.layer]).at(placed.layer))
    assert cruel > kind and placed.layer in (1, 2)
    page = (out / "tokens.html").read_text()
    assert "orange: cruel" in page and "&lt;|assistant|&gt;" in page and "<|" not in page
    assert "plotly" in (out / "layers.html").read_text().lower()
    card = json.loads((out / "probe" / "probe.json").read_text())
    assert card["classes"] == [False, True] and card["estimator"]["name"] == "lda"


def test_one_file_with_labels(files, call, capsys):
    out, words = files / "out", ("--label", "tone", "--estimator", "mean-difference", "--layers", "2")
    assert call(files / "both.jsonl", *words, "--groups", "domain", "--calibrate", "--out", out) == 0
    placed = load_probe(out / "probe")
    assert placed.positive == "kind" and "calibration error" in capsys.readouterr().out
    assert placed.meta["unseen_groups"]["auroc"]["n"] == 8 and "brier" in placed.meta["unseen_groups"]
    assert pd.read_parquet(out / "layers.parquet")["groups"].tolist() == [4]
    assert call(files / "both.jsonl", *words, "--positive", "cruel", "--out", out) == 0
    again = load_probe(out / "probe")
    assert again.positive == "cruel" and again.probe.coef_[0] @ placed.probe.coef_[0] < 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("both.jsonl",), "--label KEY"),
        (("kind.jsonl", "cruel.jsonl", "both.jsonl"), "3 files"),
        (("kind.jsonl", "cruel.jsonl", "--label", "tone"), "--label: two files"),
        (("both.jsonl", "--label", "mood"), "row 1 has no 'mood'"),
        (("both.jsonl", "--label", "domain"), "'domain' holds 5 labels"),
        (("both.jsonl", "--label", "tone", "--positive", "evil"), "--positive evil"),
        (("both.jsonl", "--label", "tone", "--groups", "city"), "no 'city'"),
        (("both.jsonl", "--label", "tone", "--estimator", "mlp"), "--estimator mlp"),
        (("both.jsonl", "--label", "tone", "--pool", "tokens"), "--pool tokens"),
        (("both.jsonl", "--label", "tone", "--site", "middle"), "--site middle"),
        (("both.jsonl", "--label", "tone", "--layers", "2-7"), "blocks 0 to 3"),
        (("both.jsonl", "--label", "tone", "--layers", "two"), "--layers two"),
        (("both.jsonl", "--label", "tone", "--groups", "tone"), "each needs two"),
        (("none.jsonl", "kind.jsonl"), "no such file"),
    ],
)
def test_bad_input(words, said, files, call, capsys):
    given = [files / word if str(word).endswith(".jsonl") else word for word in words]
    assert call(*given, "--out", files / "out") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("persona-geometry: ") and said in last and not (files / "out").exists()
