"""`persona-geometry quality`: what it writes and says; bad input is one line and status 2."""

import dataclasses
import json
import sys

import pandas as pd
import pytest

from persona_geometry.commands import main
from probes import ActivationStore, capture, save_conversations
from saes import HeldOut, quality, save_sae, spliced_loss
from tests.saes.conftest import make_sae


@pytest.fixture
def call(monkeypatch):
    """Run the command; give the exit status."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["persona-geometry", "quality", *map(str, words)])
        monkeypatch.setattr("persona_geometry.commands.terminal.settle", lambda: None)
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    return run


@pytest.fixture
def files(tmp_path, tiny_conversations):
    """Two SAEs of the tiny model's block 2 and conversations."""
    for seed, name in enumerate(("first", "second")):
        save_sae(dataclasses.replace(make_sae("topk", seed=seed), name=name), tmp_path / name)
    save_conversations(tiny_conversations, tmp_path / "rows.jsonl")
    return tmp_path


def test_a_model_and_two_saes(files, call, capsys, tiny_folder, tiny_model, tiny_conversations):
    out, rows = files / "out", files / "rows.jsonl"
    asked = ("--conversations", rows, "--out", out, "--also", files / "second", "--stability", "--skip-first", 1)
    assert call(files / "first", tiny_folder, *asked) == 0
    said, told = capsys.readouterr().out, json.loads((out / "quality.json").read_text())
    sae, acts = make_sae("topk"), capture(tiny_model, tiny_conversations, layers=[2], pool="tokens")
    wanted = quality(sae, acts, skip_first=1)
    loss = spliced_loss(sae, tiny_model, tiny_conversations, where="all", skip_first=1)
    assert told["first"]["fvu"]["value"] == pytest.approx(wanted.fvu, rel=1e-4)
    assert told["first"]["loss"]["spliced"]["value"] == pytest.approx(loss.spliced.value, rel=1e-4)
    assert len(told["stability"]) == 2 and "first in second: cosine" in said and str(out) in said
    table = pd.read_parquet(out / "quality.parquet")
    assert table["name"].tolist() == ["first", "second"] and table["ce_clean"].notna().all()
    page = (out / "quality.html").read_text()
    assert "width=device-width" in page and page.count("<h2>") == 2 and "active latents a row" in page


def test_a_store_and_what_a_training_held_out(files, call, tiny_model, tiny_conversations):
    store, out = ActivationStore.create(files / "store"), files / "out"
    capture(tiny_model, tiny_conversations * 5, layers=[2], pool="tokens", store=store)
    assert call(files / "first", store.path, "--out", out, "--held-out", 0.3, "--where", "response") == 0
    told = json.loads((out / "quality.json").read_text())["first"]
    wanted = quality(make_sae("topk"), store, where="response", keep=HeldOut(0.3))
    assert told["n"] == wanted.n < len(store) and "loss" not in told and "0.3 of the conversations" in told["rows"]
    assert told["fvu_of_random_directions"]["low"] <= told["fvu_of_random_directions"]["high"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--where", "nowhere"), "--where nowhere: use one of all, prompt, response"),
        (("--skip-first", "-1"), "--skip-first -1"),
        ((), "--conversations: give a JSONL file"),
        (("--model", "x"), "--model x: the source is no store"),
        (("--conversations", "rows.jsonl", "--stability"), "--stability: one SAE"),
    ],
)
def test_bad_input_is_one_line(files, call, capsys, tiny_folder, words, said):
    assert call(files / "first", tiny_folder, "--out", files / "out", *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line and not (files / "out").exists()
