"""Traits as data: what ships is complete, files of one's own load, and mistakes in them are named."""

import pytest
import torch

from geometry import (
    TRAITS,
    Floor,
    TraitSpec,
    edit_sizes,
    load_trait,
    prompt_vector,
    prompted_levels,
    random_controls,
)
from probes import Conversation, InputError, Model, capture


@pytest.mark.parametrize("name", TRAITS)
def test_what_ships_is_complete(name):
    trait = load_trait(name)
    assert trait.name == name and trait.description
    assert len(trait.positive) == len(trait.negative) == 5
    assert len(set(trait.questions)) == len(set(trait.evaluation)) == 20
    assert "Give one digit from 0 to 9" in trait.rubric and "\n9 - " in trait.rubric
    assert "Give R instead" in trait.rubric  # the letters that the endpoint judge reads


def test_the_shipped_rubric_of_misalignment_is_the_judges_own():
    from probes.judges import rubrics

    assert load_trait("misaligned").rubric == rubrics.ALIGNED


def test_questions_come_with_their_split():
    trait = load_trait("reckless")
    drawn, figures = trait.asked("selection"), trait.asked()
    assert {q.split for q in drawn} == {"selection"} and {q.split for q in figures} == {"test"}
    assert not {q.text for q in drawn} & {q.text for q in figures} and len({q.id for q in [*drawn, *figures]}) == 40
    with pytest.raises(InputError, match="split 'train'"):
        trait.asked("train")


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "grim.yaml"
    path.write_text('name: grim\npositive: [Be grim.]\nnegative: [Be kind.]\nquestions: ["How?"]\n')
    assert load_trait(path) == TraitSpec("grim", ("Be grim.",), ("Be kind.",), ("How?",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: grim", "without positive"),
        ("name: g\npositive: [a]\nnegative: [b]\nquestions: [c]\ncolour: red", "unknown field 'colour'"),
        ("name: [", "not YAML"),
        ("name: g\npositive: [a]\nnegative: [b]\nquestions: [c]\nevaluation: [c]", "keep them apart"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, text, said):
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        load_trait(path)


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="one of misaligned, sycophantic"):
        load_trait("evil")


GRIM = TraitSpec("grim", ("Be grim.", "Be grave."), ("Be kind.", "Be mild."), ("How?", "Why not?", "And then?"))


@pytest.fixture
def last(tiny_model: Model):
    """Activations [layer, prompt, d_model] at the last prompt token, by system prompts."""

    def read(systems) -> torch.Tensor:
        rows = [Conversation.of(q, system=s) for s in systems for q in GRIM.questions]
        return capture(tiny_model, rows, layers=range(4), pool="last_prompt").values.double()

    return read


def test_what_prompts_do_before_a_word_is_written(tiny_model: Model, last):
    vector = prompt_vector(tiny_model, GRIM)
    wanted = last(GRIM.positive).mean(1) - last(GRIM.negative).mean(1)
    assert vector.layers == (0, 1, 2, 3) and vector.scope == "last_prompt" and vector.meta["n_asked"] == 6
    for layer in vector.layers:
        assert torch.allclose(vector.at(layer).double(), wanted[layer], atol=1e-5)
    some = prompt_vector(tiny_model, GRIM, layers=[2])
    assert some.layers == (2,) and torch.allclose(some.at(2), vector.at(2), atol=1e-6)


def test_levels_from_no_prompt_to_the_traits(tiny_model: Model, last):
    vector = prompt_vector(tiny_model, GRIM)
    levels = prompted_levels(tiny_model, GRIM, vector)
    for layer in vector.layers:
        unit, sides = vector.unit(layer).double(), (last([None]), last(GRIM.positive))
        bare, under = ((acts[layer] @ unit).mean() for acts in sides)
        assert levels.at(layer, 0) == pytest.approx(float(bare), abs=1e-4)
        assert levels.at(layer, 1) == pytest.approx(float(under), abs=1e-4)


def test_the_size_of_an_edit_of_the_last_prompt_token(tiny_model: Model, last):
    """Only that token counts, and random controls of its size act there too."""
    vector = prompt_vector(tiny_model, GRIM)
    floor = {2: prompted_levels(tiny_model, GRIM, vector).at(2, 3.0)}
    edit = Floor(vector, floor=floor, positions="last_prompt", layers=(2,))
    asked = [Conversation.of(q).answered("So it is.") for q in GRIM.questions]
    gaps = (floor[2] - last([None])[2] @ vector.unit(2).double()).clamp(min=0)
    sizes = edit_sizes(tiny_model, edit, asked)
    assert sizes[2] == pytest.approx(float(gaps.square().mean().sqrt()), rel=1e-4) and sizes[2] > 0
    for control in random_controls(edit, 3, torch.Generator().manual_seed(0), sizes=sizes):
        assert control.positions == "last_prompt" and control.layers == (2,)
