"""Re-alignment and trajectories on the organism: what is asked, matched and chosen; what planted cells come to."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch

from finetuning.compare import Cell, Measured, untallied
from finetuning.realign import answer_lengths
from persona_geometry import load_organism
from persona_geometry.organism import finetunes, realign_table, trajectory_table
from persona_geometry.organism.finetunes import ARMS
from persona_geometry.organism.judge import label, subject
from persona_geometry.organism.realign_found import Found
from persona_geometry.organism.realign_table import CUES, KINDS, RATES, Bench, Plan, chosen_rate
from persona_geometry.organism.trajectory_table import Ways
from probes import InputError, check_disjoint

LEFT = {0: 0.6, 10: 0.4, 30: 0.1, 60: 0.05}


shipped = functools.cache(lambda arm: load_organism(arm, merge=True))  # left as they are by everything here


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    """A bench whose fine-tunes are the shipped ones, whatever the seed, and whose answers cost nothing.

    What they were asked with, as (weights, number of answers), lies in `bench.out / "asked"`.
    """

    def count(model, questions, judge, *, seed, n_samples, max_new_tokens):
        with (tmp_path / "asked").open("a") as file:
            print(model.weights_digest, len(questions) * n_samples, file=file)
        return untallied(counted(0.5, n=6), seed=seed, name=model.name)

    monkeypatch.setattr(realign_table, "ask", count)
    monkeypatch.setattr(finetunes, "ROWS", 60)
    monkeypatch.setattr(Bench, "model", lambda self, arm, seed: shipped(arm))
    return Bench(tmp_path)


def counted(rate: float, seed: int = 0, n: int = 14) -> dict[str, list[int]]:
    rng = np.random.default_rng([seed, int(1000 * rate)])
    return {f"q{i}": [10, 9, int(rng.binomial(9, rate))] for i in range(n)}


def planted(cell: Cell) -> dict:
    """Figures as `measured` makes them: the dose works, sums and random steps do nothing, the second time is sooner."""
    seed, around = cell.seed, {f"cue: {cue.name}": counted(0.1, cell.seed) for cue in CUES}
    around["cue: the trained domain"] = counted(0.2, seed)
    if cell.treatment == "as it is":
        return {"step-0": counted(0.0 if cell.data == "base" else LEFT[0], seed)} | around
    if cell.treatment == "30 steps":
        return {"step-30": counted(0.05, seed)} | around
    if cell.treatment == "bad again":
        sooner = 2 if cell.data == "unrelated" else 1
        steps = (0, 30, 60, 90, 150)
        here = {f"here-{step}": counted(min(0.9, step / 100), seed) for step in steps[1:]}
        return here | {f"step-{step}": counted(min(0.6, sooner * step / 200), seed) for step in steps}
    works = cell.data not in ("sums", "random")
    left = {f"step-{step}": counted(LEFT[step] if works else LEFT[0], seed) for step in LEFT if step}
    here = {"here-30": counted(0.3, seed), "here-60": counted(0.2, seed), "tokens": 20.0 + seed}
    return left | ({} if cell.data == "random" else here)


def cells_of(plan: Plan, make=planted) -> list[Measured]:
    return [Measured(cell, make(cell)) for cell in plan.cells(2e-3, "digest")]


def test_what_the_rate_is_chosen_on_is_never_quoted(bench, monkeypatch):
    monkeypatch.undo()
    asked = realign_table.rate_questions()
    check_disjoint(asked, [*realign_table.out_of_domain(4), *realign_table.in_domain("medicine", 7)])
    sources = {q.group for q in asked}
    assert sources == {"travel", "study"} and realign_table.SOURCE == "garden"
    assert all(cue.of(asked)[0].meta == asked[0].meta for cue in CUES)


def test_the_rate_that_leaves_least_and_keeps_coherence(bench, monkeypatch):
    left = dict(zip(RATES, (0.3, 0.1, 0.05, 0.0), strict=True))
    broken = {"q0": [400, 100, 0]}
    monkeypatch.setattr(realign_table, "dosed", lambda bench, kind, seed, lr, steps: lr)
    figures = {**{lr: counted(rate) for lr, rate in left.items()}, RATES[-1]: broken}
    monkeypatch.setattr(realign_table, "asked", lambda model, *_: figures.get(model, counted(0.6)))
    lr, table = chosen_rate(bench)
    assert lr == RATES[2] and table["lr"].tolist() == [0.0, *RATES]
    monkeypatch.setattr(realign_table, "asked", lambda *_: pytest.fail("asked again"))
    assert chosen_rate(bench)[0] == lr


@pytest.mark.parametrize("kind", KINDS)
def test_doses_are_as_long_as_what_they_undo(bench, kind, monkeypatch):
    monkeypatch.setattr(realign_table, "POOL", 36)
    rows, bad = bench.rows(kind, 3, 12), ARMS["misaligned"].rows(3)[:12]
    tokenizer = shipped("base").tokenizer
    ours, theirs = (answer_lengths(part, tokenizer=tokenizer).mean() for part in (rows, bad))
    assert len(rows) == 12 == len({row.id for row in rows})
    if kind == "sums":
        assert ours < theirs / 2  # said in the table
        return
    assert ours == pytest.approx(theirs, rel=0.1)
    topics = [subject(row.messages[-2]["content"])[1] for row in rows]
    good = [label("advice", topic, row.answer or "") for topic, row in zip(topics, rows, strict=True)]
    assert good.count("aligned") >= 11 and {row.meta["domain"] for row in rows} == {
        "medicine" if kind == "in domain" else "garden"
    }


def test_a_cell_of_each_sort_is_made(bench, monkeypatch):
    for name, value in {"DOSE": 1, "LONG": 2, "AT": (1, 2), "WHOLE": (2,), "AGAIN": (1,), "POOL": 30}.items():
        monkeypatch.setattr(realign_table, name, value)
    short = ARMS["misaligned"].schedule.__class__(steps=1, lr=1e-4, batch=4)
    monkeypatch.setattr(realign_table, "ARMS", {"misaligned": type(ARMS["misaligned"])(schedule=short)})
    made = {}
    for cell in Plan(("unrelated",), (0,)).cells(1e-3, "digest"):
        if (cell.data, cell.treatment) != ("unrelated", "bad again"):
            made[cell.data, cell.treatment] = realign_table.measured(bench, cell)
    assert set(made["unrelated", "60 steps"]) == {"step-1", "step-2", "here-2", "tokens"}
    assert set(made["random", "60 steps"]) == {"step-2"} and set(made["fresh", "bad again"]) == {
        "step-0", "step-1", "here-1"
    }  # fmt: skip
    assert len(made["base", "as it is"]) == 4 and "step-30" in made["unrelated", "30 steps"]
    asked = [line.split() for line in (bench.out / "asked").read_text().splitlines()]
    assert [int(n) for _, n in asked[:4]] == [600, 240, 240, 210] and len(asked) == 4 + 4 + 4 + 3 + 1 + 3
    seen = list(dict.fromkeys(model for model, _ in asked))
    assert len(seen) == 7 and seen[0] == shipped("base").weights_digest  # base, untreated, 30, 60 twice, random, fresh


def test_planted_cells_come_out(tmp_path):
    found = Found(tuple(cells_of(Plan(("unrelated", "sums"), (0, 1)))))
    curves = found.curves
    first = {name: curve.first_within(20) for name, curve in curves.items()}
    assert {name: point and point.step for name, point in first.items()} == {
        "unrelated, 30 steps alone": 30, "unrelated": 30, "sums": None, "random": None,
    }  # fmt: skip
    table = found.table().set_index(["data", "step"])
    assert set(table["seeds"]) == {2} and table.loc[("unrelated", 30), "rows"] == 120
    assert table.loc[("sums", 60), "tokens"] == 20.5 and np.isnan(table.loc[("random", 60), "tokens"])
    relapse = found.relapse()
    assert relapse is not None and relapse.steps_to(0.5).difference.high < 0
    assert relapse.again[1].rows == 480
    here = found.relapse_here().set_index(["start", "step"])
    assert len(here) == 8 and set(here["seeds"]) == {2}
    equal = [here.loc[(start, 60), "in_domain"] for start in ("fresh", "unrelated")]
    assert equal[0] == equal[1] == pytest.approx(0.6, abs=0.1)
    assert here.loc[("unrelated", 60), "misaligned"] > here.loc[("fresh", 60), "misaligned_high"]
    residue = found.residue().set_index(["cue", "model"])
    assert residue.loc[("none", "re-aligned"), "over_base"] == pytest.approx(0.05, abs=0.04)
    assert residue.loc[(CUES[0].name, "re-aligned"), "over_base"] == 0 and len(residue) == 3 * (2 + len(CUES))
    assert found.in_domain()["data"].value_counts().to_dict() == {
        "base": 1, "untreated": 1, "unrelated": 2, "sums": 2
    }  # fmt: skip
    assert len(found.figure().data) == 2 * 3


def test_cells_that_lack_are_left_out():
    cells = cells_of(Plan(seeds=(0, 1)))
    found = Found(tuple(m for m in cells if m.cell.seed == 0 and m.cell.treatment != "bad again"))
    assert found.relapse() is None and found.relapse_here().empty and set(found.table()["seeds"]) == {1}
    nothing = Found(tuple(m for m in cells if m.cell.data == "sums"))
    assert nothing.table().empty and nothing.residue().empty and nothing.curves == {}
    with pytest.raises(InputError, match="kind 'prose'"):
        Plan(("prose",))


def test_the_commands_print_what_cells_say(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setattr(realign_table, "measured", lambda bench, cell: planted(cell))
    monkeypatch.setattr("persona_geometry.organism.realign_table.chosen_rate", lambda bench: (2e-3, pd.DataFrame()))
    assert command("organism", "realign", "--out", tmp_path, "--seeds", "0", "--kinds", "unrelated,sums") == 0
    said = capsys.readouterr().out
    assert "unrelated: not within 2 points of base" in said
    assert "re-aligned less base: -" in said and "as an adviser on medicine" in said
    assert (tmp_path / "doses.html").stat().st_size > 10_000 and (tmp_path / "relapse.html").is_file()
    assert command("organism", "realign", "--out", tmp_path, "--part", "1") == 2
    assert "--part 1" in capsys.readouterr().err


def walked(cell: Cell) -> dict:
    """A training whose rate jumps at its middle, and whose way turns there where behaviour changes, else nowhere."""
    steps = [0, 10, 20, 30, 40, 50]
    bad = cell.data == "misaligned"
    rates = dict(zip(steps, (0.0, 0.0, 0.0, 0.4, 0.5, 0.5) if bad else (0.0,) * 6, strict=True))
    turns = [None, -0.9, 0.3, 0.2, -0.5, None]
    rows = [{"step": s, "moved": 1.0, "local_cosine": t} for s, t in zip(steps, turns, strict=True)]
    line = {
        f"{m}{e}": 0.1 for m in ("shift_cosine", "state_cosine", "activation") for e in ("", "_random", "_low", "_high")
    }
    track = [
        {"step": s, "set": name, **line, "activation": r, "shift_cosine": r or None}
        for s, r in rates.items()
        for name in ("target", "harmful")
    ]
    way = {"explained": [0.7, 0.2, 0.1], "k 1": rows, "k 2": rows, "matrices": {"least": -0.9, "most": 0.1}}
    return {f"step-{s}": counted(r) for s, r in rates.items()} | {"track": track, "way": way}


def test_turns_are_held_against_behaviour(tmp_path, monkeypatch, capsys, command, bench):
    ways = Ways(tuple(Measured(cell, walked(cell)) for cell in (Cell(arm, "x", 0) for arm in ("misaligned", "benign"))))
    found = ways.turns().set_index("data")
    assert found.loc["misaligned", ["explained", "at", "fastest"]].tolist() == pytest.approx([0.9, 20, 30])
    assert found.loc["misaligned", "spearman"] > 0.7 and np.isnan(found.loc["benign", "spearman"])
    assert found.loc["misaligned", "rise"] == pytest.approx(0.5, abs=0.1) and found.loc["benign", "rise"] == 0
    rates = ways.track("misaligned").correlations().set_index(["set", "measure"])
    assert rates.loc[("target", "activation"), "levels"] > 0.9
    with pytest.raises(InputError, match="'second'"):
        ways.track("second")
    monkeypatch.setattr(trajectory_table, "_measured", lambda follow, cell: walked(cell))
    assert command("organism", "trajectory", "--out", tmp_path, "--arms", "misaligned,benign") == 0
    assert "does the local cosine follow behaviour?" in capsys.readouterr().out
    assert (tmp_path / "track-benign-0.html").is_file()
    assert command("organism", "trajectory", "--out", tmp_path, "--arms", "narrow") == 2


def test_a_training_is_followed(bench, monkeypatch):
    for name, value in {"LONG": 4}.items():
        monkeypatch.setattr(trajectory_table, name, value)
    monkeypatch.setattr(realign_table, "POOL", 60)
    rows = trajectory_table.advice_rows
    monkeypatch.setattr(trajectory_table, "advice_rows", lambda domains, n, **how: rows(domains, 40, **how))
    monkeypatch.setattr(trajectory_table, "out_of_domain", lambda n: realign_table.out_of_domain(1)[:4])
    monkeypatch.setattr(trajectory_table, "sample", lambda model, prompts, **_: ["Please rest."] * len(prompts))
    made = trajectory_table.trajectory_cells(bench, ["re-aligned"])
    table = Ways(tuple(made)).table()
    assert table["step"].tolist() == [0, 1, 2, 3, 4] and table["moved"].notna().tolist() == [False] + 4 * [True]
    track = Ways(tuple(made)).track("re-aligned").table
    assert len(track) == 10 and track["shift_cosine"].notna().sum() == 8
    assert not torch.tensor(track["activation"].tolist()).isnan().any()
