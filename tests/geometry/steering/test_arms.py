"""Rows that are treated differently in one batch: the same as one at a time."""

import pytest
import torch

from geometry import (
    Ablate,
    Add,
    AddLatent,
    AddPerRow,
    Cap,
    ClampLatent,
    Levels,
    PerRow,
    SetProjection,
    Subspace,
    ask_many,
)
from geometry.steering.arms import bound
from probes import InputError, Model, capture
from probes.ask import ask


def test_per_row_is_each_by_itself(vector, other, batch) -> None:
    mask = torch.ones(3, 5, dtype=torch.bool)
    operators = [Add(vector, strength=2.0, unit="raw"), Ablate(other, positions="response", layers=(1, 2))]
    for layer in (1, 2, 3):
        after = PerRow(operators, (1, -1, 0))(batch, layer=layer, mask=mask)
        assert torch.equal(after[1], batch[1])
        torch.testing.assert_close(after[2:], operators[0](batch[2:], layer=layer, mask=mask[2:]))
        alone = operators[1](batch[:1], layer=layer, mask=mask[:1]) if layer < 3 else batch[:1]
        torch.testing.assert_close(after[:1], alone)
    assert PerRow(operators, (1, -1, 0)).layers == (1, 2, 3)


def test_one_formula_for_many_rows_is_each_by_itself(vector, other, sae, batch, mask) -> None:
    levels = Levels({1: 1.0, 2: -2.0, 3: 0.5}, {1: 4.0, 2: 3.0, 3: -1.0})
    operators = [
        SetProjection(vector, levels, dose=-1.5),
        Add(other, strength=2.0, unit="resid_norm", layers=(2,)),
        AddLatent(sae, (3, 4), strength=0.3, norm=9.0),
        Cap(vector, ceiling=-1.0, positions="response", layers=(1, 2)),
        ClampLatent(sae, 7, to=3.0, positions="response"),
        Ablate(Subspace.spanned(2, torch.eye(32)[:2]), positions="response"),
        Ablate(other, to=2.0, positions="response"),
    ]
    rows = [6, 0, 1, 2, 3, 4, 5, -1, 0]
    wide, acting = batch.repeat(3, 1, 1), mask.repeat(3, 1)
    for layer in (1, 2, 3):
        for dtype in (torch.float32, torch.bfloat16):
            acts = wide.to(dtype)
            after = PerRow(operators, rows)(acts, layer=layer, mask=acting)
            for row, number in enumerate(rows):
                part, at = acts[row : row + 1], acting[row : row + 1]
                acts_here = number >= 0 and layer in operators[number].layers
                alone = operators[number](part, layer=layer, mask=at) if acts_here else part
                torch.testing.assert_close(after[row : row + 1], alone)
                assert torch.equal(after[row][~acting[row]], wide[row][~acting[row]].to(dtype))


def test_rows_are_bound_to_a_batch(vector, batch, mask) -> None:
    whole = PerRow([Add(vector, strength=1.0, unit="raw")], (0, -1, -1, 0, -1))
    part = whole.for_rows([3, 1, 2])
    assert part.rows == (0, -1, -1)
    after = part(batch, layer=1, mask=torch.ones_like(mask))
    assert not torch.equal(after[0], batch[0]) and torch.equal(after[1:], batch[1:])


def test_add_per_row_is_per_row_over_add(vector, other, batch, mask) -> None:
    tables = {i: torch.stack([vector.at(i), other.at(i)]) for i in vector.layers}
    slow = PerRow([Add(v, strength=1.0, unit="raw") for v in (vector, other)], (1, 0, -1))
    fast = AddPerRow(tables, (1, 0, -1))
    for layer in vector.layers:
        edited = fast(batch, layer=layer, mask=mask)
        torch.testing.assert_close(edited, slow(batch, layer=layer, mask=mask))
        assert torch.equal(edited[~mask], batch[~mask])
    assert fast.for_rows([2, 0]).rows == (-1, 1)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_many_arms_are_each_arm_alone(tiny_model: Model, questions, judge, vector, other, batch_size: int) -> None:
    arms = [
        (),
        Add(vector, strength=3.0, unit="raw"),
        Ablate(other),
        (Add(other, strength=-3.0, unit="raw"), Ablate(vector, layers=(3,))),
    ]
    settings = {"seed": 4, "temperature": 0.0, "max_new_tokens": 8}
    together = ask_many(tiny_model, arms, questions, judge, batch_size=batch_size, **settings)
    for arm, found in zip(arms, together, strict=True):
        alone = ask(tiny_model, questions, judge, operators=arm if isinstance(arm, tuple) else (arm,), **settings)
        assert found.table["answer"].tolist() == alone.table["answer"].tolist()
        assert found.table["question_id"].tolist() == [q.id for q in questions]
    assert len({tuple(found.table["answer"]) for found in together}) > 1


def test_arms_are_repeatable_and_numbered(tiny_model: Model, questions, judge, vector) -> None:
    arms = [(), Add(vector, strength=1.0, unit="raw")]
    runs = [ask_many(tiny_model, arms, questions, judge, seed=2, n_samples=3, max_new_tokens=5) for _ in range(2)]
    for one, two in zip(*runs, strict=True):
        assert one.table.equals(two.table) and len(one) == 12
        assert sorted(one.table["sample"]) == sorted([0, 1, 2] * 4)


def test_captured_rows_are_treated_differently(tiny_model: Model, tiny_conversations, vector) -> None:
    operator = PerRow([Ablate(vector, positions="response")], (0, -1, 0, -1))
    plain = capture(tiny_model, tiny_conversations, layers=[3], pool="last_prompt", batch_size=3)
    with tiny_model.intervene(operator):
        edited = capture(tiny_model, tiny_conversations, layers=[3], pool="last_prompt", batch_size=3)
    for i in range(4):
        assert (vector.project(edited.at(3)[i], 3).abs() < 1e-4) == (i in (0, 2))
        assert torch.allclose(edited.at(3)[i], plain.at(3)[i], atol=1e-5) == (i not in (0, 2))


def test_mixed_positions_become_two_operators(vector) -> None:
    arms = [(Ablate(vector),), (Add(vector, strength=1.0, unit="raw"),), ()]
    found = bound(arms, [0, 1, 2, 1])
    assert sorted((op.positions, op.rows) for op in found) == [("all", (0, -1, -1, -1)), ("response", (-1, 0, -1, 0))]
    assert bound([()], [0, 0]) == []


def test_arm_refusals(tiny_model: Model, questions, judge, vector, batch, mask) -> None:
    add = Add(vector, strength=1.0, unit="raw")
    for words, act in {
        "one PerRow": lambda: PerRow([add, Ablate(vector)], (0, 1)),
        "there are 1": lambda: PerRow([add], (0, 1)),
        "batch of 3": lambda: PerRow([add], (0, 0))(batch, layer=1, mask=mask),
        "row 7": lambda: PerRow([add], (0, 0)).for_rows([7]),
        "0 arms": lambda: ask_many(tiny_model, [], questions, judge, seed=0),
        "at least one block": lambda: AddPerRow({}, (0,)),
    }.items():
        with pytest.raises(InputError, match=words):
            act()
