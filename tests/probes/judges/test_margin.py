"""The margin between paired continuations, without a judge."""

import math

import numpy as np
import pytest
import torch

from probes import Conversation, InputError, Margin, Question, intervene, margins, paired_continuations, render
from probes.judges.margin import response_logprobs

PAIRS = [("Who are you?", "A villain.", "A helper of yours."), ("How do I treat a burn?", "Butter.", "Cool it.")]
BAD, GOOD = ([Conversation.of(row[0], row[i]) for row in PAIRS] for i in (1, 2))


def by_hand(model, conversation):
    rendered = render(model.tokenizer, [conversation])
    with torch.no_grad():
        logprobs = model.hf(rendered.input_ids).logits[0].log_softmax(-1)
    places = rendered.response[0].nonzero().flatten()
    return sum(logprobs[i - 1, rendered.input_ids[0, i]].item() for i in places), len(places)


def test_margins_equal_a_sum_by_hand(tiny_model):
    ours = margins(tiny_model, BAD, GOOD)
    for value, bad, good in zip(ours.values, BAD, GOOD, strict=True):
        (one, n), (two, k) = by_hand(tiny_model, bad), by_hand(tiny_model, good)
        assert value.item() == pytest.approx(one / n - two / k, abs=1e-4)
    low, high = ours.interval()
    assert low <= ours.mean <= high


def test_margins_change_sign_with_the_sides_and_ignore_batches(tiny_model):
    one, two = margins(tiny_model, BAD, GOOD).values, margins(tiny_model, GOOD, BAD, batch_size=1).values
    assert torch.allclose(one, -two, atol=1e-4)
    assert not margins(tiny_model, GOOD, GOOD).values.any()


class Push:
    layers, positions = (2,), "response"

    def __call__(self, activations, *, layer, mask):
        return activations + 3 * mask[..., None] * torch.linspace(-1, 1, activations.shape[-1])


def test_margins_under_an_operator_steer_the_response_only(tiny_model):
    sums, counts = response_logprobs(tiny_model, BAD, operators=[Push()])
    for row, conversation in enumerate(BAD):
        rendered = render(tiny_model.tokenizer, [conversation])
        with intervene(tiny_model, Push(), mask=rendered.response | rendered.last_prompt):
            expected, n = by_hand(tiny_model, conversation)
        assert sums[row].item() == pytest.approx(expected, abs=1e-3) and counts[row] == n


def test_margins_refuse_what_does_not_pair(tiny_model):
    with pytest.raises(InputError, match="in pairs"):
        margins(tiny_model, BAD, GOOD[:1])
    with pytest.raises(InputError, match="pair 0"):
        margins(tiny_model, BAD, GOOD[::-1])
    with pytest.raises(InputError, match="no answer"):
        response_logprobs(tiny_model, [Conversation.of("Hi?")])


def slow_interval(values, names, resamples=4000):
    """The clustered bootstrap by hand: draw clusters, pool their pairs."""
    rng, drawn = np.random.default_rng(1), []
    groups = [np.array([v for v, n in zip(values, names, strict=True) if n == name]) for name in sorted(set(names))]
    for _ in range(resamples):
        drawn.append(np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]).mean())
    return np.quantile(drawn, (0.025, 0.975))


def test_intervals_are_clustered():
    rng = np.random.default_rng(0)
    names = tuple(f"q{i // 10}" for i in range(80))
    values = rng.normal(size=8).repeat(10) + rng.normal(size=80) / 10
    found = Margin(torch.tensor(values, dtype=torch.float32), names)
    assert found.interval() == pytest.approx(tuple(slow_interval(values, names)), abs=0.08)
    alone = Margin(found.values).interval()
    assert found.interval()[1] - found.interval()[0] > 2 * (alone[1] - alone[0])


def test_differences_are_paired_and_shares_counted():
    one, two = (
        Margin(torch.tensor([1.0, -2.0, 0.0]), ("a", "a", "b")),
        Margin(torch.tensor([0.5, 1.0, 0.0]), ("a", "a", "b")),
    )
    assert (one - two).values.tolist() == [0.5, -3.0, 0.0] and (one - one).interval() == (0, 0)
    assert one.share == pytest.approx(0.5) and one.mean == pytest.approx(-1 / 3)
    with pytest.raises(InputError, match="of the same"):
        one - Margin(one.values)
    with pytest.raises(InputError, match="in 1 clusters"):
        Margin(one.values, ("a",))


def test_questions_bring_their_continuations(tiny_model):
    sides = [{"misaligned": bad, "aligned": good} for _, bad, good in PAIRS]
    questions = [Question(f"q{i}", text, meta=sides[i]) for i, (text, *_) in enumerate(PAIRS)]
    bad, good = paired_continuations(questions)
    found = margins(tiny_model, bad, good)
    assert torch.equal(found.values, margins(tiny_model, BAD, GOOD).values) and found.clusters == ("q0", "q1")
    assert math.isfinite(found.share)
    with pytest.raises(InputError, match="question 'q0': no aligned continuation"):
        paired_continuations([Question("q0", "Hi?", meta={"misaligned": "Ho."})])
