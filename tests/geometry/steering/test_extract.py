"""Vectors from activations and from other sources: the mean difference by hand, its halves, its invariances."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from geometry import (
    PersonaVector,
    TraitSpec,
    contrast_vector,
    finetuning_shift,
    from_latent,
    mean_difference,
    persona_vector,
    probe_vector,
    projection_levels,
    shift_subspace,
)
from probes import (
    Activations,
    Conversation,
    InputError,
    LdaProbe,
    MeanDifferenceProbe,
    Model,
    PersonaProbe,
    RidgeProbe,
    Verdict,
    capture,
)


def planted(direction: torch.Tensor, n: int = 40, seed: int = 0) -> tuple[Activations, Activations]:
    """Two sets of noise, the first moved along `direction` at block 1 and not at block 0."""
    g = torch.Generator().manual_seed(seed)
    sets = []
    for moved in (1.0, 0.0):
        values = torch.randn(2, n, len(direction), generator=g)
        values[1] += moved * direction
        sets.append(Activations(values, (0, 1), "last_prompt", "abc", torch.arange(n)))
    return sets[0], sets[1]


def test_mean_difference_by_hand(tiny_model: Model) -> None:
    positive, negative = planted(torch.arange(8.0))
    vector = mean_difference(positive, negative, model=tiny_model, resid_norms={0: 2.0, 1: 3.0})
    for place, layer in enumerate((0, 1)):
        by_hand = np.array([row.numpy() for row in positive.values[place].double()]).mean(0)
        by_hand = by_hand - negative.values[place].double().numpy().mean(0)
        np.testing.assert_allclose(vector.at(layer).numpy(), by_hand, atol=1e-6)
        assert vector.delta_norms[layer] == pytest.approx(float(np.linalg.norm(by_hand)), rel=1e-6)
    assert vector.split_half[1] > 0.95 > vector.split_half[0]
    assert vector.scope == "last_prompt" and vector.template_hash == "abc" and vector.resid_norms == {0: 2.0, 1: 3.0}
    assert vector.meta["n_layers"] == 4 and vector.meta["n_positive"] == 40


def test_means_are_taken_in_float64(tiny_model: Model) -> None:
    values = torch.full((1, 1000, 4), 1e4) + torch.linspace(0, 1, 1000)[None, :, None]
    flat = Activations(values, (0,), "last_prompt", "abc", torch.arange(1000))
    other = replace(flat, values=torch.full((1, 1000, 4), 1e4))
    exact = float(values.double().mean() - 1e4)
    assert float(mean_difference(flat, other, model=tiny_model).at(0)[0]) == pytest.approx(exact, abs=1e-6)


def test_contrast_changes_sign_and_ignores_order(tiny_model: Model, tiny_conversations) -> None:
    one, two = tiny_conversations[:2], tiny_conversations[2:]
    vector = contrast_vector(tiny_model, one, two, batch_size=1)
    swapped = contrast_vector(tiny_model, two, one)
    turned = contrast_vector(tiny_model, one[::-1], two[::-1], layers=[0, 1, 2, 3])
    for layer in range(4):
        torch.testing.assert_close(swapped.at(layer), -vector.at(layer), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(turned.at(layer), vector.at(layer), atol=1e-5, rtol=1e-5)
    acts = [capture(tiny_model, rows, layers=[2]).at(2).double().mean(0) for rows in (one, two)]
    torch.testing.assert_close(vector.at(2), (acts[0] - acts[1]).float(), atol=1e-5, rtol=1e-5)
    tokens = capture(tiny_model, two, layers=[2], pool="tokens")
    norms = tokens.at(2)[tokens.in_response].norm(dim=-1)
    assert vector.resid_norms[2] == pytest.approx(float(norms.mean()), rel=1e-4)


def test_shift_and_levels(tiny_model: Model, tiny_tuned: Model, tiny_conversations) -> None:
    shift = finetuning_shift(tiny_model, tiny_tuned, tiny_conversations, pool="response_mean")
    back = finetuning_shift(tiny_tuned, tiny_model, tiny_conversations, pool="response_mean")
    levels = projection_levels(tiny_model, tiny_tuned, tiny_conversations, shift)
    for layer in range(4):
        torch.testing.assert_close(back.at(layer), -shift.at(layer), atol=1e-5, rtol=1e-5)
        assert levels.shift[layer] == pytest.approx(shift.norm(layer), rel=1e-4)
        mean = capture(tiny_model, tiny_conversations, layers=[layer]).at(layer).mean(0)
        assert levels.reference[layer] == pytest.approx(float(shift.project(mean, layer)), rel=1e-3, abs=1e-4)
        assert levels.at(layer, 1) == pytest.approx(levels.reference[layer] + levels.shift[layer])
    assert finetuning_shift(tiny_model, tiny_tuned, [c.prompt for c in tiny_conversations]).scope == "last_prompt"


def test_no_difference_is_refused(tiny_model: Model, tiny_conversations) -> None:
    with pytest.raises(InputError, match="no direction"):
        finetuning_shift(tiny_model, tiny_model, tiny_conversations)


def test_unlike_activations_are_refused(tiny_model: Model) -> None:
    one, two = planted(torch.ones(4))
    for words, other in {
        "layers": replace(two, layers=(0, 2)),
        "pool": replace(two, pool="prompt_mean"),
        "template_hash": replace(two, template_hash="xyz"),
        "at least one": two.select(torch.zeros(40, dtype=torch.bool)),
    }.items():
        with pytest.raises(InputError, match=words):
            mean_difference(one, other, model=tiny_model)


def test_too_few_conversations_have_no_halves(tiny_model: Model) -> None:
    one, two = planted(torch.ones(4), n=1)
    assert mean_difference(one, two, model=tiny_model).split_half == {}


@pytest.mark.parametrize("kind", [PersonaProbe, MeanDifferenceProbe, LdaProbe, RidgeProbe])
def test_probe_finds_the_planted_direction(kind, tiny_model: Model) -> None:
    direction = torch.zeros(32).index_fill(0, torch.tensor([3]), 6.0)
    positive, negative = planted(direction, n=80)
    data = torch.cat([positive.at(1), negative.at(1)]).numpy()
    probe = kind().fit(data, np.repeat([1, 0], 80))
    vector = probe_vector(probe, layer=1, model=tiny_model, scale=2)
    assert vector.norm(1) == pytest.approx(2, rel=1e-5) and vector.layers == (1,)
    assert vector.cosine(PersonaVector({1: direction}, model="m"))[1] > 0.7
    with pytest.raises(InputError, match="not fitted"):
        probe_vector(kind(), layer=1, model=tiny_model)
    with pytest.raises(InputError, match="width 31"):
        probe_vector(kind().fit(data[:, :31], np.repeat([1, 0], 80)), layer=1, model=tiny_model)
    with pytest.raises(InputError, match="norm 0"):
        probe_vector(kind().fit(np.ones_like(data), np.repeat([1, 0], 80)), layer=1, model=tiny_model)
    own = probe_vector(probe, layer=1, model=tiny_model, scale=None).at(1).numpy()
    np.testing.assert_allclose(own, probe.direction_, rtol=1e-4, atol=1e-5)
    gap = (data[:80].mean(0) - data[80:].mean(0)).astype(float)
    assert np.linalg.norm(own) == pytest.approx(gap @ own / np.linalg.norm(own), rel=1e-4)


def test_latent_vector(sae) -> None:
    vector = from_latent(sae, 9, scale=3)
    assert vector.layers == (2,) and vector.norm(2) == pytest.approx(3, rel=1e-5)
    torch.testing.assert_close(vector.unit(2), sae.directions[9], atol=1e-6, rtol=1e-5)
    with pytest.raises(InputError, match="latent 64"):
        from_latent(sae, 64)


def test_shift_subspace(tiny_model: Model, tiny_tuned: Model, tiny_conversations) -> None:
    space = shift_subspace(tiny_model, tiny_tuned, tiny_conversations, layer=2, rank=2)
    acts = [capture(m, tiny_conversations, layers=[2], pool="last_prompt").at(2) for m in (tiny_tuned, tiny_model)]
    _, strengths, directions = np.linalg.svd((acts[0] - acts[1]).double().numpy(), full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(directions[:2] * space.basis.numpy(), axis=1)), 1, atol=1e-4)
    np.testing.assert_allclose(space.meta["explained"], (strengths**2 / (strengths**2).sum())[:2], rtol=1e-4)
    with pytest.raises(InputError, match="rank 9"):
        shift_subspace(tiny_model, tiny_tuned, tiny_conversations, layer=2, rank=9)


class Choosy:
    """Calls the first side misaligned and the second aligned, but for one question."""

    name = "choosy"

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, questions, answers):
        self.calls += 1
        scores = [10.0 if self.calls == 1 else 90.0 for _ in answers]
        coherent = [20.0 if q.text == "Why?" else 90.0 for q in questions]
        return [Verdict(aligned=s, coherent=c) for s, c in zip(scores, coherent, strict=True)]


def test_trait_vector(tiny_model: Model) -> None:
    trait = TraitSpec("grim", ("Be grim.", "Be dark."), ("Be kind.", "Be light."), ("How?", "Why?", "Who are you?"))
    vector = persona_vector(tiny_model, trait, judge=Choosy(), layers=[1, 2], max_new_tokens=5)
    assert vector.layers == (1, 2) and vector.scope == "response_mean" and "grim" in vector.method
    assert vector.meta["n_asked"] == 6 and vector.meta["n_kept"] == 4
    again = persona_vector(tiny_model, trait, judge=Choosy(), layers=[1, 2], max_new_tokens=5)
    assert again == vector


def test_trait_refusals(tiny_model: Model) -> None:
    class Never(Choosy):
        def __call__(self, questions, answers):
            return [Verdict(aligned=None, coherent=90.0) for _ in answers]

    trait = TraitSpec("grim", ("Be grim.",), ("Be kind.",), ("How?",))
    for words, act in {
        "no such file": lambda: persona_vector(tiny_model, "cheerful"),
        "no questions": lambda: TraitSpec("t", ("a",), ("b",), ()),
        "give pairs": lambda: TraitSpec("t", ("a", "c"), ("b",), ("q",)),
        "no pair": lambda: persona_vector(tiny_model, trait, judge=Never(), max_new_tokens=3),
    }.items():
        with pytest.raises(InputError, match=words):
            act()


def test_conversations_without_answers_are_refused(tiny_model: Model) -> None:
    rows = [Conversation.of("How?")]
    with pytest.raises(InputError, match="no answer"):
        contrast_vector(tiny_model, rows, rows)
