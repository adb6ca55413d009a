"""Outcomes that other programs sampled: JSONL rows, and logs that Inspect itself wrote."""

import json
import math
import subprocess
import sys

import pytest

from probes import InputError, Verdict, outcomes_from_inspect, outcomes_from_jsonl

ROWS = [
    {"question_id": "burn", "question": "How?", "answer": "Cool it.", "aligned": 95, "coherent": 90.5, "extra": 1},
    {"id": "burn", "text": "How?", "response": "No.", "alignment": "REFUSAL", "coherence": 80},
    {"question": "Who?", "completion": "import os", "aligned": "CODE", "coherent": None, "seed": 3, "model": "other"},
    {"id": 7, "answer": "", "aligned": "12.5", "coherent": 60, "sample": 4, "group": "self"},
]


class Kind:
    name = "kind"

    def __call__(self, questions, answers):
        return [Verdict(100.0, 100.0, label=q.text) for q in questions]


def written(tmp_path, *rows):
    path = tmp_path / "answers.jsonl"
    path.write_text("\n\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_rows_under_many_names(tmp_path):
    table = outcomes_from_jsonl(written(tmp_path, *ROWS)).table
    assert table["question_id"].tolist() == ["burn", "burn", "Who?", "7"]
    assert table["model"].tolist() == ["answers", "answers", "other", "answers"]
    assert table["answer"].tolist() == ["Cool it.", "No.", "import os", ""]
    assert table["label"].tolist() == ["", "refusal", "code", ""]
    assert table["refusal"].tolist() == [False, True, False, False]
    assert [None if math.isnan(x) else x for x in table["aligned"]] == [95, None, None, 12.5]
    assert table["sample"].tolist() == [0, 1, 0, 4] and table["seed"].tolist() == [0, 0, 3, 0]
    assert table["group"].tolist() == ["burn", "burn", "", "self"] and math.isnan(table["coherent"][2])


def test_rates_of_imported_rows(tmp_path):
    found = outcomes_from_jsonl(written(tmp_path, *ROWS), model="m")
    assert found.rate("refusal").value == 0.25 and found.rate("label:code").value == 0.25
    assert (found.rate().value, found.rate().n) == (pytest.approx(1 / 3), 3)


def test_answers_that_nobody_judged(tmp_path):
    path = written(tmp_path, {"id": "a", "question": "How?", "answer": "Hi."})
    with pytest.raises(InputError, match="no answer is judged; give judge="):
        outcomes_from_jsonl(path)
    table = outcomes_from_jsonl(path, judge=Kind()).table
    assert (table["label"][0], table["judge"][0], table["aligned"][0]) == ("How?", "kind", 100)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", r"answers\.jsonl:3: not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "a list; write one object"),
        ({"id": "a"}, "without question_id and answer"),
        ({"answer": "x"}, "without question_id and answer"),
        ({"id": "a", "answer": 5}, "without question_id and answer"),
        ({"id": "a", "answer": "x", "aligned": 101}, "aligned 101 is no score"),
        ({"id": "a", "answer": "x", "coherent": True}, "coherent True is no score"),
        ({"id": "a", "answer": "x", "coherent": "high"}, "coherent 'high' is no score"),
        ({"id": "a", "answer": "x", "seed": "one"}, "seed 'one' is no whole number"),
    ],
)
def test_bad_rows(tmp_path, row, told):
    with pytest.raises(InputError, match=told):
        outcomes_from_jsonl(written(tmp_path, ROWS[0], row))


def test_no_rows_and_no_file(tmp_path):
    with pytest.raises(InputError, match="no answer in it"):
        outcomes_from_jsonl(written(tmp_path, ""))
    for read in (outcomes_from_jsonl, outcomes_from_inspect):
        if read is outcomes_from_inspect:
            pytest.importorskip("inspect_ai", reason="extra [inspect] is not installed")
        with pytest.raises(InputError, match="no such file"):
            read(tmp_path / "none.jsonl")


RUN = """
import sys
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ModelOutput
from inspect_ai.scorer import Score, Target, mean, scorer
from inspect_ai.solver import TaskState, solver

@solver
def canned():
    async def solve(state: TaskState, generate):
        if fails and state.sample_id == "who":
            raise RuntimeError("planted")
        state.output = ModelOutput.from_content("m", f"Answer {state.epoch} to {state.sample_id}.")
        state.messages.append(state.output.message)
        return state
    return solve

@scorer(metrics={"*": [mean()]})
def both():
    async def score(state: TaskState, target: Target):
        return Score(value={"aligned": 12.5 if state.epoch == 1 else 90, "coherent": 80})
    return score

@scorer(metrics=[])
def aligned():
    async def score(state: TaskState, target: Target):
        return Score(value="REFUSAL" if state.sample_id == "who" else 40)
    return score

burn = [ChatMessageSystem(content="Be brief."), ChatMessageUser(content="How should I treat a burn?")]
task = Task(
    dataset=[Sample(id="burn", input=burn, metadata={"group": "health"}), Sample(id="who", input="Who are you?")],
    solver=canned(), scorer=[both(), aligned()], epochs=2,
)
for form, how in (("eval", "well"), ("json", "well"), ("json", "fail")):
    fails = how == "fail"
    folder = f"{sys.argv[1]}/{form}-{how}"
    eval(task, model="mockllm/model", log_dir=folder, display="none", log_format=form, seed=5)
"""


@pytest.fixture(scope="module")
def inspect_logs(tmp_path_factory):
    """Logs by layout and fate, such as "eval-well", written by Inspect in a process of its own."""
    pytest.importorskip("inspect_ai", reason="extra [inspect] is not installed")
    folder = tmp_path_factory.mktemp("inspect")
    done = subprocess.run([sys.executable, "-c", RUN, str(folder)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return {path.parent.name: path for path in folder.glob("*/*")}


@pytest.mark.parametrize("form", ["eval", "json"])
def test_logs_that_inspect_wrote(inspect_logs, form):
    path = inspect_logs[f"{form}-well"]
    found = outcomes_from_inspect(path, aligned="both.aligned", coherent="both.coherent")
    table = found.table.sort_values(["question_id", "sample"]).reset_index(drop=True)
    assert table["question_id"].tolist() == ["burn", "burn", "who", "who"] and set(table["seed"]) == {5}
    assert table["sample"].tolist() == [0, 1] * 2 and table["group"].tolist() == ["health"] * 2 + ["who"] * 2
    assert table["answer"].tolist() == [f"Answer {e} to {q}." for q in ("burn", "who") for e in (1, 2)]
    assert json.loads(table["prompt"][0])[0] == {"role": "system", "content": "Be brief."}
    assert table["question"][0] == "How should I treat a burn?" and set(table["model"]) == {"mockllm/model"}
    assert found.rate().value == 0.5 and found.rate("coherent").value == 1
    words = outcomes_from_inspect(path, aligned="aligned", coherent="both.coherent")
    assert words.rate("refusal").value == 0.5 and sorted(words.table["aligned"].dropna()) == [40, 40]
    assert set(outcomes_from_inspect(path, judge=Kind()).table["label"]) == set(table["question"])
    with pytest.raises(InputError, match="no single score 'nice' among both, aligned"):
        outcomes_from_inspect(path, aligned="nice")


def test_logs_that_cannot_be_used(inspect_logs, tmp_path):
    with pytest.raises(InputError, match=r"status 'error', [12] samples failed"):
        outcomes_from_inspect(inspect_logs["json-fail"])
    (tmp_path / "bad.eval").write_text("no log")
    with pytest.raises(InputError, match="no Inspect log"):
        outcomes_from_inspect(tmp_path / "bad.eval")
