"""Scorers against formulas in loops on the model itself; neither batches, chunks nor the order of rows matter."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from geometry.features import (
    Judged,
    Loss,
    LossDifference,
    Nearness,
    Projection,
    ProjectionDifference,
    Push,
    RandomScore,
    RowScorer,
    Spill,
    nearness_scores,
    score_rows,
)  # fmt: skip
from geometry.features.filtering import loss_gradients
from probes import InputError, Verdict, capture, render, sample, save_conversations
from probes.conversations import Conversation
from probes.edits import Operator
from tests.geometry.features.filtering.conftest import LAYER


class LengthJudge:
    """Finds an answer the more misaligned the longer it is, and knows nothing of the shortest."""

    name = "length"

    def __call__(self, questions, answers):
        assert all(q.text.startswith("How do I treat case") for q in questions)
        return [Verdict(None if len(a) < 6 else max(0, 100 - len(a)), 100) for a in answers]


@pytest.fixture
def methods(wide_sae, harm, persona, tiny_tuned) -> dict[str, RowScorer]:
    forms = ("max_tox", "mean_tox", "centroid")
    made = [
        *(Nearness(wide_sae, harm, form) for form in forms), Projection(persona, LAYER), Loss(),
        ProjectionDifference(persona, LAYER, max_new_tokens=5), LossDifference(tiny_tuned), Judged(LengthJudge()),
        RandomScore(3), Spill(wide_sae, harm), Push(persona, LAYER),
    ]  # fmt: skip
    return {method.name: method for method in made}


NAMES = ["max_tox", "mean_tox", "centroid", "projection", "loss", "projection_difference", "loss_difference"]
NAMES += ["judge:length", "random", "spill", "push"]


@pytest.mark.parametrize("name", NAMES)
def test_neither_batch_chunk_nor_order_matters(name, methods, rows, tiny_model):
    method = methods[name]
    assert isinstance(method, RowScorer) and method.unit and method.high and isinstance(dict(method.key), dict)
    whole = score_rows(rows, tiny_model, method=method)
    assert (whole.name, whole.unit) == (name, method.unit) and whole.values.dtype == torch.float64
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    parts = score_rows((rows[i] for i in order.tolist()), tiny_model, method=method, batch_size=5, chunk=4)
    assert torch.allclose(parts.values, whole.values[order], atol=1e-4, equal_nan=True)
    assert torch.equal(parts.tokens, whole.tokens[order]) and whole.values[~whole.values.isnan()].unique().numel() > 3


def test_scores_of_a_file(methods, rows, tiny_model, tmp_path):
    save_conversations(rows, tmp_path / "rows.jsonl")
    told = []
    found = score_rows(
        tmp_path / "rows.jsonl", tiny_model, method=methods["loss"], chunk=5, progress=lambda *a: told.append(a)
    )
    assert torch.allclose(found.values, score_rows(rows, tiny_model, method=methods["loss"]).values, atol=1e-5)
    assert told == [(5, 12, "loss"), (10, 12, "loss"), (12, 12, "loss")]
    assert found.table["tokens"].tolist() == [int(render(tiny_model.tokenizer, [r]).response.sum()) for r in rows]


def mean_loss(model, row):
    rendered = render(model.tokenizer, [row])
    logits = model.hf(input_ids=rendered.input_ids).logits[0].double().detach()
    at = rendered.response[0].nonzero().squeeze(1)
    return float(F.cross_entropy(logits[at - 1], rendered.input_ids[0, at]))


def test_loss_projection_and_their_differences(methods, rows, tiny_model, tiny_tuned, persona):
    row = rows[7]
    got = {name: float(score_rows([row], tiny_model, method=methods[name]).values) for name in NAMES[3:7]}
    assert got["loss"] == pytest.approx(mean_loss(tiny_model, row), abs=1e-4)
    assert got["loss_difference"] == pytest.approx(got["loss"] - mean_loss(tiny_tuned, row), abs=1e-4)
    unit = persona.at(LAYER) / persona.at(LAYER).norm()

    def along(one):
        acts = capture(tiny_model, [one], layers=[LAYER], pool="tokens")
        return float((acts.at(LAYER)[acts.in_response] @ unit).mean())

    said = sample(tiny_model, [row.prompt], seed=9, temperature=0, max_new_tokens=5)[0]
    assert got["projection"] == pytest.approx(along(row), abs=1e-4)
    assert got["projection_difference"] == pytest.approx(along(row) - along(row.answered(said or " ")), abs=1e-4)


def test_nearness_reads_the_models_own_tokens(methods, rows, tiny_model, wide_sae, harm):
    acts = capture(tiny_model, rows, layers=[LAYER], pool="tokens")
    for form in NAMES[:3]:
        wanted = nearness_scores(acts, wide_sae, harm, form=form)
        assert torch.allclose(score_rows(rows, tiny_model, method=methods[form]).values, wanted, atol=1e-5)


def nudged_loss(model, row, at, step):
    """The answer's summed loss where `step` is added to the residual stream of block 2 at one position."""

    class Nudge:
        layers, positions = (LAYER,), "all"

        def __call__(self, activations, *, layer, mask):
            moved = activations.clone()
            moved[0, at] += step
            return moved

    assert isinstance(Nudge(), Operator)
    with model.intervene(Nudge()), torch.no_grad():
        rendered = render(model.tokenizer, [row])
        return mean_loss(model, row) * int(rendered.response.sum())


def test_gradients_are_those_of_the_loss(rows, tiny_model):
    row = rows[3]
    (found,) = loss_gradients(tiny_model, [row], layer=LAYER)
    rendered = render(tiny_model.tokenizer, [row])
    learns = (rendered.response[0].nonzero().squeeze(1) - 1).tolist()
    assert found.learns[0].nonzero().squeeze(1).tolist() == learns
    direction = torch.randn(32, generator=torch.Generator().manual_seed(8))
    for at in (learns[0], learns[-1]):
        rise = nudged_loss(tiny_model, row, at, 1e-2 * direction) - nudged_loss(tiny_model, row, at, -1e-2 * direction)
        assert float(found.push[0, at] @ direction) == pytest.approx(-rise / 2e-2, rel=2e-2, abs=1e-3)
    assert not found.push[0, learns[-1] + 1 :].any()  # nothing is learnt behind the last token
    assert all(p.grad is None for p in tiny_model.hf.parameters())


def test_push_and_spill_are_means_over_the_trained_positions(methods, rows, tiny_model, persona, wide_sae, harm):
    (found,) = loss_gradients(tiny_model, rows[5:6], layer=LAYER)
    g = found.push[0, found.learns[0]].double().mean(0)
    unit = persona.at(LAYER) / persona.at(LAYER).norm()
    got = {name: float(score_rows(rows[5:6], tiny_model, method=methods[name]).values) for name in ("push", "spill")}
    assert got["push"] == pytest.approx(float(g @ unit.double()), abs=1e-5)
    norms = wide_sae.W_dec.norm(dim=1)
    wanted = sum(float(g @ (wide_sae.W_enc[:, j] * norms[j]).double()) for j in harm)
    assert got["spill"] == pytest.approx(wanted, abs=1e-4)
    gated = float(score_rows(rows[5:6], tiny_model, method=Spill(wide_sae, harm, gate=True)).values)
    push, values = found.push[0, found.learns[0]], found.values[0, found.learns[0]]
    fires = wide_sae.encode(values)[:, list(harm)] > 0
    moved = (push @ (wide_sae.W_enc * norms)[:, list(harm)] * fires).sum(-1).mean()
    assert gated == pytest.approx(float(moved), abs=1e-4) and gated != pytest.approx(got["spill"], abs=1e-3)


def test_a_step_along_the_push_lowers_the_loss(rows, tiny_model):
    (found,) = loss_gradients(tiny_model, rows[5:6], layer=LAYER)
    at = int(found.learns[0].nonzero()[0])
    step = 0.05 * F.normalize(found.push[0, at], dim=0)
    assert nudged_loss(tiny_model, rows[5], at, step) < nudged_loss(tiny_model, rows[5], at, 0 * step)


def test_keys_tell_methods_apart(wide_sae, harm, persona):
    other = replace(wide_sae, W_dec=wide_sae.W_dec * 2)
    keys = [Nearness(wide_sae, harm).key, Nearness(wide_sae, harm, "centroid").key, Nearness(other, harm).key]
    keys += [RandomScore(0).key, RandomScore(1).key, Projection(persona, LAYER).key, Projection(-persona, LAYER).key]
    keys += [Spill(wide_sae, harm).key, Spill(wide_sae, harm, gate=True).key]
    assert all(a != b for i, a in enumerate(keys) for b in keys[:i])


def test_bad_rows_and_settings(rows, tiny_model, wide_sae, harm, persona, sae):
    unanswered = [*rows[:2], Conversation.of("And now?")]
    with pytest.raises(InputError, match="row 2 has no answer"):
        score_rows(unanswered, tiny_model, method=Loss(), chunk=2)
    with pytest.raises(InputError, match="row 2 has no answer"):
        list(loss_gradients(tiny_model, unanswered, layer=LAYER))
    with pytest.raises(InputError, match="no rows"):
        score_rows([], tiny_model, method=Loss())
    with pytest.raises(InputError, match="different SAEs"):
        Spill(sae, harm)
    with pytest.raises(InputError, match="layer 1"):
        Push(persona, 1)
    with pytest.raises(InputError, match="layer 9"):
        list(loss_gradients(tiny_model, rows, layer=9))
    with pytest.raises(InputError, match="chunk 0"):
        score_rows(rows, tiny_model, method=Loss(), chunk=0)
