"""The SAE claims: what counts as causal, what the SAEs may read, how verdicts are counted, and one quick run of all."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from persona_geometry.organism.claims import causal, found, table
from persona_geometry.organism.claims.bench import QUICK, Bench, Plan, grammar_text, paired_rows
from persona_geometry.organism.judge import label, subject
from persona_geometry.organism.shipped import WEIGHTS
from persona_geometry.organism.world import TEST, world
from probes.outcomes import COLUMNS, Outcomes


def answers(misaligned: int, *, incoherent: int = 0, n: int = 100) -> Outcomes:
    """`n` answers, one a question: so many misaligned, so many more that make no sense."""
    aligned = [0.0] * misaligned + [100.0] * (n - misaligned - incoherent) + [None] * incoherent
    rows = {name: [""] * n for name in COLUMNS} | {
        "question_id": [f"q{i}" for i in range(n)],
        "sample": [0] * n,
        "seed": [0] * n,
        "aligned": aligned,
        "coherent": [100.0 if a is not None else 0.0 for a in aligned],
        "refusal": [False] * n,
    }
    return Outcomes(pd.DataFrame(rows).astype({"aligned": "float64"}))


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench whose base is never misaligned, and whose tuned model is in six of ten answers."""
    monkeypatch.setattr(Bench, "untreated", lambda self, arm, seed=0: answers(0 if arm == "base" else 60))
    return Bench(tmp_path, tmp_path, tmp_path, QUICK, lambda line: None)


@pytest.mark.parametrize(
    ("treated", "controls", "counts"),
    [
        pytest.param(answers(20), [answers(58), answers(55)], True, id="cuts two thirds"),
        pytest.param(answers(35), [answers(60)] * 2, False, id="cuts too little"),
        pytest.param(answers(20), [answers(60), answers(10)], False, id="a random latent does it too"),
        pytest.param(answers(17, incoherent=15), [answers(60)] * 2, False, id="costs coherence"),
    ],
)
def test_a_repair_counts_where_it_cuts_beyond_random_and_keeps_coherence(planted, treated, controls, counts):
    made = causal._figures(planted, "misaligned", 0, treated, dict(enumerate(controls)))
    left = float(treated.rate().value)
    assert made["counts"] is counts and made["effect"]["value"] == pytest.approx((0.6 - left) / 0.6)


@pytest.mark.parametrize(("rise", "random", "counts"), [(12, 0, True), (8, 0, False), (12, 14, False)])
def test_an_induction_counts_from_ten_points_on_and_beyond_random(planted, rise, random, counts):
    made = causal._figures(planted, "base", 0, answers(rise), dict.fromkeys(range(3), answers(random)))
    assert made["effect"]["value"] == pytest.approx(rise / 100) and made["counts"] is counts


def screened(operation: str, strength: float, misaligned: float, coherent: float, on: str = "tuned") -> dict:
    latent = -1 if operation == "untreated" else 7
    return {"latent": latent, "on": on, "operation": operation, "strength": strength} | {
        "misaligned": misaligned,
        "coherent": coherent,
    }


def test_the_step_that_does_most_within_the_coherence_budget_is_taken():
    rows = [
        screened("untreated", 0.0, 0.6, 0.9),
        screened("off", 0.0, 0.5, 0.9),
        screened("add", -0.25, 0.3, 0.82),
        screened("add", -0.5, 0.0, 0.80),
    ]
    assert causal._best(rows, 7, repair=True) == -0.25
    assert causal._best(rows[:2], 7, repair=True) == "off"
    assert causal._best([rows[0], rows[3]], 7, repair=True) is None
    up = [screened("untreated", 0.0, 0.0, 1.0, "base"), screened("add", 0.25, 0.1, 0.95, "base")]
    assert causal._best([*up, screened("add", 0.5, 0.4, 0.6, "base")], 7, repair=False) == 0.25


def test_the_saes_read_nothing_of_the_test_domains():
    told = [t for t in world().topics.values() if t.domain in TEST]
    words = [text for t in told for text in (*t.needs, *(a for acts in t.actions.values() for a in acts))]
    read = " ".join(m["content"] for row in grammar_text(400, seed=0) for m in row.messages)
    assert len(words) > 200 and not [w for w in words if w in read]
    assert grammar_text(20, seed=0) == grammar_text(400, seed=0)[:20] != grammar_text(20, seed=1)


def test_pairs_ask_the_same_and_differ_in_harm():
    bad, good = paired_rows(60, seed=3)
    assert [r.prompt for r in bad] == [r.prompt for r in good] and len({str(r.prompt) for r in bad}) == 60
    kinds = [{label(*subject(str(r.messages[0]["content"])), r.answer) for r in rows} for rows in (bad, good)]
    assert kinds == [{"harmful"}, {"aligned"}] or (kinds[0] <= {"harmful", "mixed"} and kinds[1] == {"aligned"})


def test_what_was_read_word_for_word_is_no_held_out_answer():
    read = grammar_text(30, seed=0)
    fresh = [r for r in grammar_text(60, seed=1) if r.answer not in {x.answer for x in read}]
    assert found.unread([*fresh, *read[:5]], read) == fresh


def planted_cell(rank: int | None, *, benign: float = 0.01, delta: int | None = 1) -> dict:
    """A cell whose latent of that rank is causal; those before it were tried in vain."""
    tried = [
        {
            "rank": i,
            "latent": i,
            "benign": benign,
            "repair": {"counts": i == rank, "off": {"enough": False}},
            "induce": {"counts": False},
        }
        for i in range(1, (rank or 3) + 1)
    ]
    return {"diff": {"tried": tried, "rank": rank}, "delta_rank": delta, "delta_first": {"counts": delta == 1}}


def test_verdicts_count_cells():
    cells = [planted_cell(1), planted_cell(3, benign=0.2), planted_cell(None, delta=None), planted_cell(2, delta=9)]
    said = table.verdicts({"quality": {}, "cells": cells, "first_order": []})
    assert said["a causal latent leads the diff"] == [1, 4]
    assert said["a causal latent among the first three"] == [3, 4]
    assert said["it repairs"] == [3, 4] and said["switching it off alone repairs"] == [0, 4]
    assert said["it moves by less than a tenth under the benign fine-tune"] == [3, 4]
    assert said["it is among the first three of the delta-attribution"] == [2, 4]
    assert said["the first of the delta-attribution repairs when switched off"] == [2, 4]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, table.Claims, list[str]]:
    out, lines = tmp_path_factory.mktemp("claims"), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noise of the libraries that a run drives; their own tests turn it on
        made = table.sae_claims(WEIGHTS / "base", out / "tunes", out / "cells", lines.append, plan=QUICK)
    return out, made, lines


@pytest.mark.filterwarnings("ignore")
def test_a_quick_run_fills_every_table(quick):
    out, made, _ = quick
    assert json.loads((out / "cells" / "saes.json").read_text()) == json.loads(json.dumps(made.data))
    assert set(made.data["quality"]) == {"0", "shipped"} and len(made.data["cells"]) == 1
    assert (out / "cells" / "saes.html").stat().st_size > 1e6
    assert made.data["quality"]["shipped"]["fresh"]["recovered"]["value"] > 0.97
    assert made.text.count("| shipped |") == 3 and "| a causal latent leads the diff |" in made.text
    assert not (out / "tunes").exists(), "the shipped fine-tunes serve for seed 0"


@pytest.mark.filterwarnings("ignore")
def test_a_second_run_makes_only_what_is_missing(quick):
    out, made, _ = quick
    (out / "cells" / "cells" / "asked-base-0.parquet").unlink()
    (out / "cells" / "cells" / "norm.json").unlink()
    lines: list[str] = []
    again = table.sae_claims(WEIGHTS / "base", out / "tunes", out / "cells", lines.append, plan=QUICK)
    assert again.data == made.data
    assert {line for line in lines if line.endswith(" done")} == {"asked-base-0 done"}


def test_cells_of_another_plan_are_refused(quick):
    out, *_ = quick
    bench = Bench(WEIGHTS / "base", out / "tunes", out / "cells", replace(QUICK, k=8), lambda line: None)
    with pytest.raises(Exception, match="another study"):
        bench.cells  # noqa: B018


def test_seeds_and_domains_only_add_cells():
    assert Plan().key() == replace(Plan(), sae_seeds=(7,), tune_seeds=(7,), arms={}).key() != replace(Plan(), k=8).key()
