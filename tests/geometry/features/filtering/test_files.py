"""A file filtered whole: its rows unchanged, kills survived, other work refused, bad rows named by line."""

import json

import pandas as pd
import pytest

from geometry.features import Loss, RandomScore, drop_rows, filter_file
from geometry.features.filtering import files
from geometry.features.filtering.files import truth_of
from probes import InputError


class Killed(Exception):
    """Stands for a kill."""


@pytest.fixture
def data(rows, tmp_path, monkeypatch):
    """The twelve rows as a file of odd spacing, with blank lines, scored three at a time."""
    monkeypatch.setattr(files, "CHUNK", 3)
    lines = [json.dumps({"bad": i % 2 == 0, "messages": list(row.messages)}) for i, row in enumerate(rows)]
    lines[4] = lines[4].replace(": ", " :  ")
    path = tmp_path / "data.jsonl"
    path.write_bytes(("\n\n".join(lines[:3]) + "\n" + "\n".join(lines[3:])).encode())
    return path


def run(data, model, *methods, out="out", **more):
    return filter_file(data, model, methods=methods or (Loss(), RandomScore(0)), out=data.parent / out, **more)


def test_rows_come_out_as_they_went_in(data, tiny_model):
    made = run(data, tiny_model, rule=lambda scores: drop_rows(scores, fraction=0.25))
    kept, dropped = ((made.folder / f"{name}.jsonl").read_text().splitlines() for name in ("kept", "dropped"))
    given = [line for line in data.read_text().splitlines() if line]
    assert len(dropped) == 3 and sorted([*kept, *dropped]) == sorted(given) and kept == [x for x in given if x in kept]
    table = pd.read_parquet(made.folder / "scores.parquet")
    assert table["line"].tolist() == [1, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    worst = table.nlargest(3, "loss")
    assert worst["dropped"].all() and worst["reason"].str.startswith("dropped: loss").all()
    assert {json.loads(line)["messages"][0]["content"] for line in dropped} == {
        json.loads(data.read_text().splitlines()[line - 1])["messages"][0]["content"] for line in worst["line"]
    }
    found = json.loads((made.folder / "filter.json").read_text())
    assert (found["kept"], found["dropped"], found["rule"]) == (9, 3, "highest 25%")
    assert found["scores"]["loss"]["correlation_with_length"]["n"] == 12 and found["agreement"][0]["b"] == "random"


def test_a_kill_loses_and_doubles_nothing(data, tiny_model):
    whole, seen = run(data, tiny_model), []

    class Fragile(Loss):
        def __call__(self, model, rows, /, *, batch_size=16):
            seen.append([row.messages[0]["content"] for row in rows])
            if len(seen) == 3:
                raise Killed
            return super().__call__(model, rows, batch_size=batch_size)

    with pytest.raises(Killed):
        run(data, tiny_model, Fragile(), RandomScore(0), out="again")
    assert len(list((data.parent / "again" / "scores").glob("*.parquet"))) == 2
    assert not (data.parent / "again" / "kept.jsonl").exists()
    again = run(data, tiny_model, Fragile(), RandomScore(0), out="again")
    assert len(seen) == 5 and seen[3] == seen[2] and seen[4] != seen[3]  # parts three and four, and no other
    assert again.table.equals(whole.table)
    assert (again.folder / "kept.jsonl").read_bytes() == (whole.folder / "kept.jsonl").read_bytes()
    other = run(data, tiny_model, Fragile(), RandomScore(0), out="again", rule=lambda s: drop_rows(s, fraction=0.75))
    assert len(seen) == 5 and len(other.split.dropped) == 9  # another rule needs no new scores


def test_other_work_is_refused(data, tiny_model, tiny_tuned):
    run(data, tiny_model)
    with pytest.raises(InputError, match="scores of another methods"):
        run(data, tiny_model, RandomScore(1))
    with pytest.raises(InputError, match="scores of another model"):
        run(data, tiny_tuned)
    data.write_text(data.read_text() + "\n" + data.read_text().splitlines()[0])
    with pytest.raises(InputError, match="scores of another file"):
        run(data, tiny_model)
    with pytest.raises(InputError, match="each name once"):
        run(data, tiny_model, Loss(), Loss())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "data.jsonl:15: not JSON"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "data.jsonl:15: the row has no answer"),
        ('{"text": "x"}', "data.jsonl:15: row without messages"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "robot", "content": "y"}]}', "data.jsonl:15: role"),
    ],
)
def test_a_bad_row_is_named_before_any_is_scored(line, said, data, tiny_model):
    data.write_text(data.read_text() + "\n" + line)
    with pytest.raises(InputError, match=said):
        run(data, tiny_model)
    assert not (data.parent / "out").exists()


def test_missing_and_empty_files(tmp_path, tiny_model):
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, said in (("none.jsonl", "no such file"), ("empty.jsonl", "no conversation")):
        with pytest.raises(InputError, match=said):
            run(tmp_path / name, tiny_model)


def test_the_truth_that_rows_tell(data):
    assert truth_of(data, "bad") == [True, False] * 6
    with pytest.raises(InputError, match=r"data.jsonl:1: 'evil' is None"):
        truth_of(data, "evil")
