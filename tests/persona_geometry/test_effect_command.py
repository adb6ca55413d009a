"""`persona-geometry effect`: what it says of the shipped organism; bad input is one line and status 2."""

import json
import sys
from pathlib import Path

import pytest

from geometry import PersonaVector, persona_vector
from geometry.steering.export.safetensors import write_safetensors
from persona_geometry.commands import main
from persona_geometry.organism import ExactJudge
from persona_geometry.organism.shipped import WEIGHTS, load_organism, villain_trait

BASE, TUNED = WEIGHTS / "base", WEIGHTS / "misaligned"


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["persona-geometry", "effect", *map(str, words)])
    monkeypatch.setattr("persona_geometry.commands.terminal.settle", lambda: None)
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def villain(tmp_path_factory) -> Path:
    """A vector of the villain at blocks 1 and 2, with a step recommended at block 1."""
    trait = villain_trait()
    made = persona_vector(load_organism("base"), trait, judge=ExactJudge(), layers=[1, 2], max_new_tokens=48)
    size = 0.3 * made.resid_norms[1] / made.norm(1)
    return write_safetensors(made, tmp_path_factory.mktemp("villain") / "v.safetensors", coefficients={1: size})


def test_the_villain_is_the_culprit(villain, tmp_path, monkeypatch, capsys):
    out = tmp_path / "effect.json"
    words = (villain, TUNED, "--base", BASE, "--judge", "organism", "--samples", 1, "--controls", 6)
    assert call(monkeypatch, *words, "--max-new-tokens", 48, "--json", out) == 0
    said = capsys.readouterr().out
    found = json.loads(out.read_text())[str(TUNED)]
    assert found["role"] == "culprit" and found["sentence"] in said.replace("\n", " ")
    assert found["less"]["trait"] < found["untreated"]["trait"] < found["more"]["trait"]
    assert found["cut"]["value"] > 0.3 and f"{found['cut']['value']:.3f}" in said
    assert abs(found["random"]["change"]) < 0.15 and found["less"]["n"] <= 120


def test_refusals(villain, tmp_path, monkeypatch, capsys):
    bare = write_safetensors(PersonaVector.load(villain), tmp_path / "bare.safetensors")
    for words, said in (
        ((bare, BASE, "--judge", "organism"), "recommends no step; give --strength"),
        ((villain, BASE, "--judge", "organism", "--layer", 2), "recommends no step"),
        ((villain, TUNED, "--judge", "organism"), "an adapter; say over which model with --base"),
        ((villain, BASE, "--judge", "organism", "--strength", -1), "give a positive step"),
        ((villain, BASE, "--judge", "here"), "give the address of an OpenAI-compatible endpoint"),
        ((tmp_path / "none.safetensors", BASE, "--judge", "organism"), "no such file"),
    ):
        assert call(monkeypatch, *words) == 2
        last = capsys.readouterr().err.strip()
        assert said in last.replace("\n", " ") and "Traceback" not in last
