"""`persona-geometry filter`: what it writes and says for a tiny model; bad input is one line and status 2."""

import json
import sys

import pandas as pd
import pytest
import torch

from geometry.features import FeatureSet
from geometry.steering.vectors import PersonaVector
from persona_geometry.commands import main
from probes import Conversation, save_conversations
from saes.sae import SparseAutoencoder

WORDS = {"kind": "please help them with care", "cruel": "hurt <b>rob</b> and burn it all & more"}


@pytest.fixture
def sae(monkeypatch) -> SparseAutoencoder:
    """An SAE over block 2 of the tiny model, which every `--sae` loads."""
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(64, 32, generator=generator), dim=1)
    zeros = torch.zeros(64), torch.zeros(32)
    made = SparseAutoencoder(decoder.T.clone(), decoder, *zeros, kind="topk", layer=2, k=4, name="toy")
    monkeypatch.setattr("saes.load.load_sae", lambda *_, **__: made)
    return made


@pytest.fixture
def files(tmp_path):
    """Forty rows, half of them cruel, the two halves as files of their own, and a vector of block 2."""
    rows = [
        Conversation.of(f"Case {i}?", " ".join(WORDS[tone].split()[: 3 + i % 5]), bad=tone == "cruel")
        for i in range(20)
        for tone in WORDS
    ]
    save_conversations(rows, tmp_path / "data.jsonl")
    for tone in WORDS:
        save_conversations([row for row in rows if row.meta["bad"] == (tone == "cruel")], tmp_path / f"{tone}.jsonl")
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1))
    PersonaVector({2: direction}, model="tiny").save(tmp_path / "one.safetensors")
    PersonaVector({1: direction, 2: direction}, model="tiny").save(tmp_path / "two.safetensors")
    return tmp_path


@pytest.fixture
def call(monkeypatch, tiny_folder, files):
    """Run the command on the forty rows with the tiny model; give the exit status."""

    def run(*words: object) -> int:
        given = ["filter", str(files / "data.jsonl"), "--model", str(tiny_folder), "--out", str(files / "out")]
        monkeypatch.setattr(sys, "argv", ["persona-geometry", *given, *map(str, words)])
        monkeypatch.setattr("persona_geometry.commands.terminal.settle", lambda: None)
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    return run


def test_by_latents_found_in_rows(files, call, capsys, sae):
    rows = ("--harmful-rows", files / "cruel.jsonl", "--harmless-rows", files / "kind.jsonl")
    assert call("--sae", "toy", *rows, "--method", "max_tox,spill,random", "--truth", "bad") == 0
    said, out = capsys.readouterr().out, files / "out"
    assert "20 of 40 rows dropped by max_tox: highest 50%" in said and str(out / "report.html") in said
    kept = (out / "kept.jsonl").read_text().splitlines()
    given = (files / "data.jsonl").read_text().splitlines()
    table = pd.read_parquet(out / "scores.parquet")
    assert kept == [given[line - 1] for line in table.loc[~table["dropped"], "line"]]
    assert {"max_tox", "spill", "random", "reason", "tokens"} <= set(table.columns)
    found = json.loads((out / "filter.json").read_text())
    assert found["auroc"]["max_tox"]["value"] > 0.9 and "AUROC" in said and len(found["agreement"]) == 3
    assert len(FeatureSet.load(out / "harmful.json")) == 8


def test_the_page_is_whole_and_escaped(files, call, capsys):
    words = ("--vector", files / "two.safetensors", "--layer", "2", "--method", "projection,loss")
    assert call(*words, "--drop", "0.25", "--match-length") == 0
    assert "bins of answer length" in capsys.readouterr().out
    page = (files / "out" / "report.html").read_text()
    assert "&lt;b&gt;rob&lt;/b&gt; and" in page and "<b>rob" not in page
    assert all(f'id="{key}-plot"' in page for key in ("row-scores", "agreement"))
    assert "10 of 40 rows" in page and "A score is no verdict" in page


def test_another_rule_needs_no_new_scores(files, call, capsys, monkeypatch):
    assert call("--method", "loss", "--drop", "0.25") == 0
    monkeypatch.setattr("geometry.features.filtering.files._scored", lambda *_: pytest.fail("scored again"))
    assert call("--method", "loss", "--drop", "above:-1") == 0
    assert "40 of 40 rows dropped" in capsys.readouterr().out
    assert (files / "out" / "kept.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "toxicity"), "--method toxicity"),
        (("--method", "max_tox"), "--method max_tox: needs --sae"),
        (("--method", "push"), "--method push: needs --vector"),
        (("--method", "judge"), "needs --judge"),
        (("--method", "loss_difference"), "needs --bad-model"),
        (("--method", "max_tox", "--sae", "toy"), "say which latents"),
        (("--method", "max_tox", "--sae", "toy", "--harmful", "3,x"), "--harmful 3,x"),
        (("--method", "max_tox", "--sae", "toy", "--harmful", "3,64"), "latent 64 does not exist"),
        (("--method", "push", "--vector", "two.safetensors"), "choose by --layer"),
        (("--method", "push", "--vector", "one.safetensors", "--layer", "1"), "layer 1"),
        (("--method", "loss", "--drop", "half"), "--drop half"),
        (("--method", "loss", "--drop", "1.5"), "--drop 1.5"),
        (("--method", "loss", "--drop", "knee", "--match-length"), "--match-length"),
        (("--method", "loss", "--truth", "evil"), "data.jsonl:1: 'evil'"),
        (("--method", "judge", "--judge", "me"), "--judge 'me'"),
    ],
)
def test_bad_input(words, said, call, capsys, sae, files):
    assert call(*(files / word if word.endswith(".safetensors") else word for word in words)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("persona-geometry: ") and said in last and not (files / "out").exists()
