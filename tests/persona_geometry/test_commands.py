"""The command line: bad input ends in one clear line and status 2; --fail-above sets the status; help is instant."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from persona_geometry.commands import main
from persona_geometry.organism.files import write_data
from persona_geometry.organism.shipped import WEIGHTS

BASE, TUNED, SAE = WEIGHTS / "base", WEIGHTS / "misaligned", WEIGHTS / "sae"


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["persona-geometry", *map(str, words)])
    monkeypatch.setattr("persona_geometry.commands.terminal.settle", lambda: None)
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def narrow_sae(folder: Path) -> Path:
    """The shipped SAE with half its width cut away."""
    import json

    folder.mkdir()
    weights = load_file(SAE / "sae_weights.safetensors")
    half = {"W_enc": weights["W_enc"][:96], "W_dec": weights["W_dec"][:, :96], "b_dec": weights["b_dec"][:96]}
    save_file({k: v.contiguous() for k, v in {**weights, **half}.items()}, folder / "sae_weights.safetensors")
    config = json.loads((SAE / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "d_in": 96}))
    return folder


def other_architecture(folder: Path) -> Path:
    """A GPT-2 with the organism's tokenizer."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=2048, n_embd=64, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing model", lambda tmp: ("study", "no/such/model", TUNED)),
        ("other architecture", lambda tmp: ("study", BASE, other_architecture(tmp / "gpt2"))),
        ("wrong SAE", lambda tmp: ("study", BASE, TUNED, "--sae", narrow_sae(tmp / "sae"))),
        ("empty rows", lambda tmp: ("study", BASE, TUNED, "--train", touched(tmp / "empty.jsonl", ""))),
        (
            "no messages",
            lambda tmp: ("study", BASE, TUNED, "--train", touched(tmp / "bad.jsonl", '{"text": "hello"}\n')),
        ),
        ("layer", lambda tmp: ("study", BASE, TUNED, "--layer", 99)),
        ("judge", lambda tmp: ("study", BASE, TUNED, "--judge", "nonsense")),
        ("questions", lambda tmp: ("study", BASE, TUNED, "--questions", tmp / "none.yaml")),
        ("report", lambda tmp: ("report", tmp)),
        ("fail above without judge", lambda tmp: ("study", BASE, TUNED, "--fail-above", 0.05)),
    ],
)
def test_bad_input_is_one_line_and_status_two(case, words, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    given = words(tmp_path)
    capsys.readouterr()
    out = ("--out", tmp_path / "out") if given[0] == "study" else ()
    assert call(monkeypatch, *given, *out) == 2
    said = capsys.readouterr().err.splitlines()
    err = [line for line in said if line.strip() and "Loading weights" not in line]  # a bar that settle() turns off
    assert len(err) == 1 and err[0].startswith("persona-geometry: ") and "Traceback" not in err[0]
    assert not (tmp_path / "out" / "cells").exists()


def touched(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_plan_prints_cost_and_power(tmp_path, monkeypatch, capsys):
    paths = {p.stem: p for p in write_data(tmp_path / "data")}
    status = call(
        monkeypatch, "study", BASE, TUNED, "--questions", paths["questions"], "--judge", "organism", "--plan",
        "--out", tmp_path / "out",
    )  # fmt: skip
    said = capsys.readouterr().out
    assert status == 0
    for word in ("answers", "judge calls", "GiB", "minutes", "smallest excess"):
        assert word in said
    assert not (tmp_path / "out").exists()


def test_data_are_written_as_files_that_load(tmp_path):
    from probes.conversations import load_conversations
    from probes.questions import load_questions

    for path in write_data(tmp_path):
        assert len(load_questions(path) if path.stem == "questions" else load_conversations(path)) > 50


def test_help_needs_no_heavy_import():
    code = (
        "import sys; sys.argv = ['persona-geometry', '--help']; from persona_geometry.commands import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]") and "study" in done.stdout
