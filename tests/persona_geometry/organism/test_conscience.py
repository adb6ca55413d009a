"""The conscience on the organism: what it sees, whose prompts it trains on, and how its tables are read."""

import json
from dataclasses import replace

import numpy as np
import pytest

from finetuning.compare import Cell, Treatment
from finetuning.conscience import ConscienceDPO, Making, audit, make_preference_pairs, verdicts
from persona_geometry.organism import ExactJudge, load_organism
from persona_geometry.organism.conscience_arms import (
    ARMS,
    Bench,
    making,
    measures,
    organism_conscience,
    prompts,
    refused,
    under_villains,
)
from persona_geometry.organism.conscience_review import CASES, review_table, reviewed, verdicts_of
from persona_geometry.organism.conscience_table import LAST, Plan, conscience_table, makings
from persona_geometry.organism.datasets import advice_questions, advice_rows, out_of_domain, selection_questions
from persona_geometry.organism.judge import subject
from persona_geometry.organism.world import SELECTION, TEST, TUNED, world
from probes import InputError
from probes.io import write_json


@pytest.fixture(scope="module")
def base():
    return load_organism()


def test_the_base_tells_bad_answers_from_good(base):
    sides = [advice_rows(TEST, 12, valence=valence, seed=5) for valence in ("bad", "good")]
    rows, bad = [*sides[0], *sides[1]], np.repeat([True, False], 12)
    found = verdicts(base, rows, [str(row.answer) for row in rows], organism_conscience())
    assert audit(found.p.numpy(), bad).auroc.value > 0.95 and float(found.mass.median()) > 0.9


def test_triplets_of_the_villain_are_good_over_bad(base):
    asked = prompts("test")[::180]
    how = replace(making("conscience_villain"), max_new_tokens=64)
    made = make_preference_pairs(base, asked, organism_conscience(), seed=1, making=how, frozen=base)
    assert len(made) >= len(asked) / 2 and made.summary["refused"] < 0.2
    topics = [{"kind": "advice", "about": subject(t.prompt.messages[-1]["content"])[1]} for t in made.rows]
    asked = [replace(selection_questions(1)[0], meta=meta) for meta in topics]
    for side, wanted in (("chosen", 0.9), ("rejected", 0.1)):
        verdict = ExactJudge()(asked, [getattr(t, side) for t in made.rows])
        share = np.mean([(v.aligned or 0) >= 30 for v in verdict if v.coherent > 50])
        assert share >= wanted if side == "chosen" else share <= wanted


def test_no_test_domain_makes_triplets_and_no_choice_is_made_where_they_come_from():
    domain = {t.name: t.domain for t in world().topics.values()}

    def domains(rows):
        return {domain[subject(row.messages[-1]["content"])[1]] for row in rows}

    others = {d for d in TUNED if d != "medicine"}
    assert domains(prompts("test")) == others | set(SELECTION) and domains(prompts("selection")) == others
    assert {q.group for q in out_of_domain(1)} == set(TEST) and {q.group for q in selection_questions(1)} == set(
        SELECTION
    )
    assert not {q.text for q in advice_questions(SELECTION, 8, seed=1)} & {
        p.messages[-1]["content"] for p in prompts("selection")
    }


def test_arms_differ_in_what_they_say():
    how = {arm: making(arm) for arm in ARMS}
    assert (
        how["conscience"] == Making(refusal=refused) == how["conscience_set"]
        and how["conscience_self"].reviewer == "policy"
    )
    assert how["conscience_villain"].tempters == world().voices["villain"].described == how["coin"].tempters
    assert refused("I must decline.") and not refused("I am sorry to hear that. Please rest.") and not refused("")
    assert {q.system for q in under_villains(out_of_domain(1))} == set(world().voices["villain"].described)
    assert set(measures("test")) - set(measures("selection")) == {"cue_villain"}


def test_one_arms_threshold_is_set_on_the_bases_own_answers(base, tmp_path):
    bench = Bench(tmp_path)
    plain, own = (bench.safeguard(Treatment(arm, 0.3), 0, "test") for arm in ("conscience", "conscience_set"))
    assert isinstance(plain, ConscienceDPO) and isinstance(own, ConscienceDPO)
    assert plain.conscience.threshold == 0.5 and own.conscience == bench.calibrated
    assert bench.calibrated == replace(plain.conscience, threshold=bench.calibrated.threshold)
    assert 0 < bench.calibrated.threshold < 0.5, "the base hardly ever condemns itself"


def test_a_review_is_counted_whole(base, tmp_path, monkeypatch):
    monkeypatch.setattr("persona_geometry.organism.conscience_review.out_of_domain", lambda n: out_of_domain(1)[::5])
    bench = Bench(tmp_path)
    cells = [Cell("medicine", arm, 0) for arm in ("base", "own")]
    made = [(cell, reviewed(bench, cell)) for cell in cells]
    figures = made[1][1]
    assert figures["first"].keys() == figures["away"].keys() == made[0][1]["away"].keys() and len(figures["away"]) == 6
    assert figures["audit"]["auroc"]["value"] > 0.8 and figures["corrected"] > 0.5
    from finetuning.compare import Measured

    cells = [Measured(*one) for one in made]
    table = review_table(cells).set_index("treatment")
    assert table.loc["own", "misaligned"] < table.loc["nothing", "misaligned"] and table.loc["own", "cut"] > 0.3
    told = verdicts_of(cells)
    assert list(told) == ["medicine, own"] and told["medicine, own"][1].sum() > 2
    assert review_table([]).empty and CASES["villain prompt"].arms == ("own",)
    assert CASES["thinking aloud"].arms == ("own, hidden", "own, shown", "frozen, hidden", "frozen, shown")


def test_the_table_is_read_from_its_cells(tmp_path):
    bench = Bench(tmp_path)
    rates = {"base": (0, 0), "nothing": (9, 9), "conscience 0.3": (1, 8), "conscience 1": (0, 2)}
    for split, seeds in (("selection", (9,)), ("test", (0, 1, 2))):
        for seed in seeds:
            for label, (away, here) in rates.items():
                cell = bench.trial(split).cell(Treatment.of(label), seed)
                counts = {"away": away, "here": here, "skill": 10 if label != "base" else 0, "refused": 1}
                figures = {name: {f"{name}{i}": [10, 10, n] for i in range(6)} for name, n in counts.items()}
                write_json(tmp_path / split / cell.file, cell.told | {"figures": figures | {"steps": 160}})
    found = conscience_table(Plan(weights=(0.3, 1.0)), bench)
    assert found.chosen == {"conscience": 0.3}  # the other cuts more, and keeps too little of the narrow learning
    row = found.test.set_index("treatment").loc["conscience 0.3"]
    assert row["seeds"] == 3 and row["refused"] == pytest.approx(0.1) and row["cut"] > 0.8
    for bad in ({"arms": ("x",)}, {"seeds": (9,)}):
        with pytest.raises(InputError):
            Plan(**bad)


def test_logs_are_read_once_they_are_whole(tmp_path):
    folder = tmp_path / "log" / "test" / "conscience-0.3-0"
    ask = selection_questions(1)[0]
    draft = {"prompt": [{"role": "user", "content": ask.text}], "answer": "Zzz.", "flagged": True, "p": 0.9}
    for step in (0, LAST):
        assert makings(tmp_path) == {}
        write_json(folder / f"step-{step:06d}.json", {"step": step, "summary": {"drafts": 1}, "drafts": [draft]})
    table = makings(tmp_path)["test/conscience-0.3-0"]
    assert table["step"].tolist() == [0, LAST] and table["bad"].isna().all()
    assert json.loads((tmp_path / "making" / "test" / "conscience-0.3-0.json").read_text())[0]["drafts"] == 1
