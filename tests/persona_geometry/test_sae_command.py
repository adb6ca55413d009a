"""`persona-geometry sae`: what it says of an SAE, what it checks and writes; what docs/saes_loading.md shows."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from persona_geometry.commands import main
from persona_geometry.organism.shipped import WEIGHTS
from persona_geometry.stages.front import _sae
from probes import InputError
from saes import load_sae, save_sae
from saes.formats.layouts import LAYOUTS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "saes_loading.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.DOTALL)
SAE = str(WEIGHTS / "sae")


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command; give exit status and what it said."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("persona_geometry.commands.terminal.settle", lambda: None)
        monkeypatch.setattr(sys, "argv", ["persona-geometry", "sae", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out + said.err

    return run


def test_it_says_what_the_sae_is_and_that_it_fits(call, tmp_path):
    status, said = call(SAE, "--fits", WEIGHTS / "base", "--out", tmp_path / "copy")
    sae = load_sae(SAE)
    assert status == 0
    for words in ("output of block 2", "topk, k = 16", "192 to 1,024 latents", "as it is", "block 2 of 0 to"):
        assert words in said, words
    assert torch.equal(load_sae(tmp_path / "copy").W_dec, sae.W_dec)


def test_thresholds_and_foldings_are_told(call, tmp_path):
    g = np.random.default_rng(0)
    shapes = {"W_enc": (192, 8), "W_dec": (8, 192), "b_enc": 8, "b_dec": 192}
    arrays = {name: g.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_1" / "width_16k" / "l0"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", threshold=np.full(8, 0.25, np.float32), **arrays)
    status, said = call(tmp_path, "--layer", 1, "--format", "gemma-scope")
    assert status == 0 and "0.25 (median; 0.25 to 0.25)" in said and "google/gemma-2-2b" in said
    assert "not taken off the input" in said


def test_mistakes_are_one_line(call, tmp_path):
    for words, says in (
        ((SAE, "--layer", 3), "reads the output of block 2"),
        ((SAE, "--format", "zip"), "format='zip': use one of"),
        ((SAE, "--site", "heads"), "site 'heads': use one of"),
        ((tmp_path / "nowhere",), "no SAE folder at"),
    ):
        status, said = call(*words)
        assert (status, said.count("\n")) == (2, 1) and says in said


def test_a_study_takes_the_sae_of_its_one_block(tmp_path):
    sae = load_sae(SAE)
    for layer in (1, 2):
        save_sae(replace(sae, layer=layer, hook="", name=""), tmp_path / f"resid_post_layer_{layer}")
    chosen = _sae(tmp_path, (1,))
    assert chosen is not None and chosen.layer == 1
    with pytest.raises(InputError, match="holds 2 SAEs: pass layer="):
        _sae(tmp_path, (1, 2))
    one = _sae(tmp_path / "resid_post_layer_2", (1,))  # another block may be steered than the SAE reads
    assert one is not None and one.layer == 2 and _sae(one, ()) is one


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "python"])
def test_the_pages_python_runs(text, tmp_path, capsys):
    for old, new in (
        ('"andyrdt/saes-qwen2.5-7b-instruct", layer=15', f"{SAE!r}, layer=2"),
        ('"Qwen/Qwen2.5-7B-Instruct"', repr(str(WEIGHTS / "base"))),
        ('"runs/copy"', repr(str(tmp_path / "copy"))),
    ):
        assert old in text, old
        text = text.replace(old, new)
    exec(compile(text, "saes_loading.md", "exec"), {})
    assert (tmp_path / "copy" / "cfg.json").is_file()
    assert "output of block 2" in capsys.readouterr().out


def test_the_page_tells_every_layout_and_file():
    for name, layout in LAYOUTS.items():
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{name}`"))
        assert all(f"`{file}`" in row for file in layout.files)
