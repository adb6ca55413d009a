"""`persona-geometry vector`: what it writes and says for the shipped organism; bad input is one line and status 2."""

import sys
from pathlib import Path

import pytest

from geometry import TRAITS, persona_vector
from geometry.steering.export.safetensors import read_purpose, read_safetensors
from persona_geometry.commands import main
from persona_geometry.commands.vector import SHIPPED
from persona_geometry.organism import ExactJudge
from persona_geometry.organism.shipped import WEIGHTS, load_organism, villain_trait

BASE, TUNED = WEIGHTS / "base", WEIGHTS / "misaligned"
GRIM = "name: grim\npositive: [Be grim.]\nnegative: [Be kind.]\nquestions: ['A burn?', 'A limping dog?']\n"


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["persona-geometry", "vector", *map(str, words)])
    monkeypatch.setattr("persona_geometry.commands.terminal.settle", lambda: None)
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_the_villain_its_shift_and_its_block(tmp_path, monkeypatch, capsys):
    out = tmp_path / "villain.safetensors"
    words = (BASE, "--judge", "organism", "--tuned", TUNED, "--layer", 1, "--layer", 2, "--max-new-tokens", 48)
    assert call(monkeypatch, *words, "--choose", "--strength", 0.25, "--strength", 0.35, "--out", out) == 0
    said = capsys.readouterr().out
    made, shift = (read_safetensors(p) for p in (out, tmp_path / "villain-shift.safetensors"))
    again = persona_vector(load_organism("base"), villain_trait(), judge=ExactJudge(), layers=[1, 2], max_new_tokens=48)
    assert made.cosine(again)[2] > 0.99 and made.method == again.method and made.scope == again.scope
    assert f"{made.meta['n_kept']} of {made.meta['n_asked']} pairs of answers passed the judge" in said
    assert made.layers == shift.layers == (1, 2) and made.cosine(shift)[2] > 0.2
    for word in ("split-half", "shift norm", f"{made.norm(2):.3g}", str(out)):
        assert word in said.replace("\n", "")
    operation, advice = read_purpose(out)
    chosen = made.meta["layer_choice"]
    assert operation == "add" and list(advice) == [chosen["layer"]] and chosen["change"] > 0.02
    assert advice[chosen["layer"]] == pytest.approx(
        chosen["strength"] * made.resid_norms[chosen["layer"]] / made.norm(chosen["layer"])
    )
    assert f"block {chosen['layer']} at {chosen['strength']:g} resid_norm" in said
    assert read_purpose(tmp_path / "villain-shift.safetensors") == ("add", {})


def test_a_trait_of_ones_own_without_a_judge(tmp_path, monkeypatch, capsys):
    trait, out = tmp_path / "grim.yaml", tmp_path / "grim.safetensors"
    trait.write_text(GRIM)
    assert call(monkeypatch, BASE, "--trait", trait, "--samples", 2, "--max-new-tokens", 8, "--out", out) == 0
    said = capsys.readouterr().out
    assert "4 of 4 pairs of answers are not empty (no judge saw them)" in said and "shift" not in said
    assert read_safetensors(out).layers == (0, 1, 2, 3) and read_purpose(out) == ("add", {})
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".safetensors"] == ["grim.safetensors"]


def test_no_block_is_recommended_where_none_will_do(tmp_path, monkeypatch, capsys):
    out = tmp_path / "villain.safetensors"
    words = (BASE, "--judge", "organism", "--choose", "--strength", 40, "--layer", 1, "--max-new-tokens", 24)
    assert call(monkeypatch, *words, "--out", out) == 0
    assert "no block recommended: no block keeps 90% of the coherence" in capsys.readouterr().out
    assert read_purpose(out) == ("add", {}) and "layer_choice" not in read_safetensors(out).meta


def test_an_endpoint_grades_by_the_traits_rubric(tmp_path, monkeypatch):
    seen = []

    def graded(self, questions, answers):
        seen.append((self.rubric, Path(self.cache)))
        return ExactJudge()(questions, answers)

    trait = tmp_path / "grim.yaml"
    trait.write_text(GRIM + "rubric: Grade grimness.\n")
    monkeypatch.setattr("probes.judges.endpoint.EndpointJudge.__call__", graded)
    words = ("--trait", trait, "--judge", "http://localhost:1/v1", "--max-new-tokens", 8)
    assert call(monkeypatch, BASE, *words, "--out", tmp_path / "g.safetensors") == 2, "short answers are no grim ones"
    assert set(seen) == {("Grade grimness.", tmp_path / "judge-cache")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--trait", "evil"), "no such file; give one of misaligned"),
        (("--trait", "reckless", "--judge", "organism"), "leave --trait out"),
        (("--judge", "nonsense"), "--judge 'nonsense'"),
        (("--trait", "GRIM", "--judge", "http://localhost:1/v1"), "has no rubric"),
        (("--choose",), "add --judge"),
        (("--strength", 1), "add --choose"),
        (("--choose", "--judge", "organism", "--strength", 0), "not 0"),
        (("--layer", 99), "blocks 0 to 3"),
        (("--tuned", "no/such/model"), "no such folder"),
        (("--out", "vector.gguf"), "ends in .safetensors"),
    ],
)
def test_bad_input_is_one_line_and_status_two(words, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "grim.yaml").write_text(GRIM)
    words = [tmp_path / "grim.yaml" if word == "GRIM" else word for word in words]
    out = () if "--out" in words else ("--out", tmp_path / "v.safetensors")
    capsys.readouterr()
    assert call(monkeypatch, BASE, *words, *out) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "Loading weights" not in line]
    assert len(err) == 1 and err[0].startswith("persona-geometry: ") and said in err[0]
    assert not list(tmp_path.glob("*.safetensors"))


def test_help_names_the_traits_that_ship():
    assert SHIPPED == TRAITS
