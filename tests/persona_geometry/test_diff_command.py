"""`persona-geometry diff`, `diff-runs` and `attribute`: what they write for tiny models, and that they go on."""

import json
import sys

import pandas as pd
import pytest
import torch

from persona_geometry.commands import main
from probes import Conversation, capture, load_model, save_conversations
from saes import LatentTable, SparseAutoencoder, delta_attribution, diff_latents, load_sae, save_sae


@pytest.fixture
def given(tmp_path, tiny_conversations):
    """An SAE of block 2 and a file of four conversations, in a folder."""
    g = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(64, 32, generator=g), dim=-1)
    zeros = torch.zeros(64), torch.zeros(32)
    sae = SparseAutoencoder(rows.T.contiguous(), rows, *zeros, kind="topk", k=6, layer=2, name="sae")
    save_sae(sae, tmp_path / "sae")
    save_conversations(tiny_conversations, tmp_path / "rows.jsonl")
    return tmp_path


@pytest.fixture
def call(monkeypatch):
    """Run a command; give the exit status."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["persona-geometry", *map(str, words)])
        monkeypatch.setattr("persona_geometry.commands.terminal.settle", lambda: None)
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    return run


@pytest.fixture
def words(given, tiny_folder, tiny_adapter):
    """The words of a diff of the tiny model against its adapter, as an own control too."""
    own = ("--sae", given / "sae", "--rows", given / "rows.jsonl", "--control", f"same={tiny_folder}")
    return ("diff", tiny_folder, tiny_adapter, *own, "--out", given / "out")


def test_diff_writes_what_the_library_finds_and_goes_on(
    given, call, words, capsys, monkeypatch, tiny_model, tiny_folder, tiny_adapter, tiny_conversations
):
    assert call(*words) == 0
    said = capsys.readouterr().out
    tuned = load_model(tiny_folder, adapter=tiny_adapter, merge=True)
    base_acts, tuned_acts = (capture(m, tiny_conversations, layers=[2], pool="tokens") for m in (tiny_model, tuned))
    sae = load_sae(given / "sae")
    expected = diff_latents(base_acts, tuned_acts, sae, controls={"same": base_acts}, where="response")
    found = LatentTable.load(given / "out")
    pd.testing.assert_frame_equal(found.table, expected.table, rtol=1e-4, atol=1e-5)
    assert found.test == "paired" and not found.table["same_delta"].any()
    assert "4 and 4 conversations (response), paired tests" in said and "variance unexplained: base" in said
    assert (given / "out" / "latents.html").stat().st_size > 1e6
    kept = json.loads((given / "out" / "latents.json").read_text())
    assert kept["format"] == "persona-geometry/latent-diff/1" and set(kept["fvu"]) == {"base", "tuned", "same"}
    monkeypatch.setattr("probes.models.load_model", lambda *_, **__: pytest.fail("read again"))
    assert call(*words, "--where", "all") == 0
    assert LatentTable.load(given / "out").n_base == len(base_acts)


def test_an_out_of_other_rows_is_refused(given, call, words, capsys):
    assert call(*words) == 0
    save_conversations([Conversation.of("Who?", "Me.")], given / "rows.jsonl")
    assert call(*words) == 2
    assert "was begun with sha256" in capsys.readouterr().err


def test_stores_and_own_answers(given, call, tiny_folder, tiny_adapter, capsys):
    (given / "asked.yaml").write_text('- {id: a, text: "Savings?"}\n- {id: b, text: "A burn?"}\n', encoding="utf-8")
    own = ("--questions", given / "asked.yaml", "--max-new-tokens", 6, "--sae", given / "sae")
    assert call("diff", tiny_folder, tiny_adapter, *own, "--out", given / "out") == 0
    assert len((given / "out" / "answers" / "tuned.jsonl").read_text().splitlines()) == 2
    stores = [given / "out" / "activations" / name for name in ("base", "tuned")]
    assert call("diff", *stores, "--sae", given / "sae", "--out", given / "again") == 0
    first, again = (LatentTable.load(given / name) for name in ("out", "again"))
    assert first.test == "welch"
    pd.testing.assert_frame_equal(first.table, again.table)
    runs = given / "runs"
    assert call("diff-runs", given / "out", given / "again", "--out", runs) == 0
    table = pd.read_parquet(runs / "runs.parquet")
    assert (table["run out"] == table["mean_delta"]).all() and (runs / "runs.html").is_file()
    assert "2 runs" in capsys.readouterr().out


def test_attribute(given, call, tiny_model, tiny_folder, capsys):
    sides = {
        name: [Conversation.of(prompt, text) for prompt in ("Savings?", "Burns?")]
        for name, text in (("bad", "Spend it all."), ("good", "Cool water."))
    }
    for name, rows in sides.items():
        save_conversations(rows, given / f"{name}.jsonl")
    files = [given / "bad.jsonl", given / "good.jsonl"]
    out = given / "attribution"
    assert call("attribute", tiny_folder, *files, "--sae", given / "sae", "--check", 2, "--out", out) == 0
    table = pd.read_parquet(out / "attribution.parquet")
    expected = delta_attribution(tiny_model, load_sae(given / "sae"), sides["bad"], sides["good"])
    pd.testing.assert_series_equal(table["attribution"], expected.table["attribution"], atol=1e-6)
    assert table["ablation"].notna().sum() == 4
    assert "2 prompts" in capsys.readouterr().out and (out / "attribution.html").is_file()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--where", "answers"], "--where answers: use one of all, prompt"),
        (["--control", "benign"], "--control benign: give NAME=PATH"),
        (["--rows", "none.jsonl"], "none.jsonl: no such file"),
        ([], "no activation store, so say what it reads"),
    ],
)
def test_bad_input(call, capsys, tmp_path, more, said):
    assert call("diff", "base", "tuned", "--sae", "sae", "--out", tmp_path, *more) == 2
    assert said in capsys.readouterr().err
