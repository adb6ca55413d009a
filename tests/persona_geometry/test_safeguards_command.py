"""`persona-geometry safeguards` and `organism safeguards`: files in, cells, table and figures out; bad input named."""

import json

import pytest
import yaml

from finetuning.compare import Cell, Measured, read_sweep
from persona_geometry.organism import safeguard_arms, safeguard_table
from persona_geometry.organism.judge import subject
from persona_geometry.organism.safeguard_table import CHOICE_SEED, CONTROLS, GRID, SINGLE, Plan
from persona_geometry.organism.world import SELECTION, TEST, world
from probes import Conversation, InputError, save_conversations

ROWS = [Conversation.of(f"hello {word}", f"good {word} day") for word in ("old", "new", "warm", "cold")]


@pytest.fixture
def files(tmp_path, tiny_folder):
    """Training rows, safe rows, questions of two groups in both splits; and the words of a call on them."""
    save_conversations(ROWS, tmp_path / "data.jsonl")
    save_conversations([Conversation.of(f"safe {i}?", f"please rest {i}") for i in range(8)], tmp_path / "safe.jsonl")
    asked = [
        {"id": f"{split}-{group}-{i}", "text": f"My {group} {split} {i}?", "group": group, "split": split}
        for split in ("selection", "test")
        for group in ("cut", "dog")
        for i in range(1)
    ]
    (tmp_path / "questions.yaml").write_text(yaml.safe_dump(asked))
    given = (
        ("--questions", "questions.yaml"),
        ("--safe", "safe.jsonl"),
        ("--skill", "data.jsonl"),
        ("--benign", "safe.jsonl"),
    )
    words = [word for option, name in given for word in (option, tmp_path / name)]
    few = (
        "--steps",
        2,
        "--batch",
        2,
        "--rank",
        2,
        "--samples",
        2,
        "--max-new-tokens",
        4,
        "--stops",
        ".5",
        "--lr",
        0.01,
    )
    return [
        "safeguards",
        tiny_folder,
        tmp_path / "data.jsonl",
        *words,
        *few,
        "--group",
        "cut",
        "--out",
        tmp_path / "out",
    ]


@pytest.fixture
def judged(monkeypatch):
    """The judge `organism` calls answers of an even number of letters misaligned, whatever they are about."""
    from probes.judges import Verdict

    class Even:
        name = "even"

        def __call__(self, questions, answers):
            return [Verdict(aligned=100.0 * (len(answer) % 2), coherent=100.0) for answer in answers]

    monkeypatch.setattr("persona_geometry.organism.judge.ExactJudge", Even)


def test_files_become_a_table(files, judged, command, capsys, tmp_path):
    words = (*files, "--judge", "organism", "--seeds", "0", "--cue", "You are a medic.")
    assert command(*words, "--treatments", "kl=0.1,kl=1,interleave=0.5") == 0
    said = capsys.readouterr().out
    out = tmp_path / "out"
    tried = {json.loads(path.read_text())["treatment"] for path in (out / "selection").iterdir()}
    made = [json.loads(path.read_text()) for path in (out / "test").iterdir()]
    assert tried == {"base", "nothing", "kl 0.1", "kl 1"}
    chosen = next(one["treatment"] for one in made if one["treatment"].startswith("kl"))
    assert {(one["treatment"], one["seed"]) for one in made} == {
        (name, seed) for name in ("base", "nothing", chosen, "interleave 0.5", "benign") for seed in (0,)
    }
    assert all({"away", "here", "skill", "cue_1"} <= set(one["figures"]) for one in made)
    assert f"chosen: {chosen}" in said and "interleave 0.5" in said and (out / "test.parquet").is_file()
    found = read_sweep(out)
    assert found.chosen == {"kl": chosen} and "stop 1" in set(found.test["treatment"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(("--treatments", "magic=1"), "treatment 'magic=1': use some of", id="name"),
        pytest.param(("--treatments", "preventative=2"), "needs a persona vector", id="material"),
        pytest.param(("--group", "cat"), "0 selection questions of group 'cat'", id="group"),
        pytest.param(("--seeds", "9"), "other seeds", id="seed"),
        pytest.param(("--part", "1"), "--part 1: give two numbers", id="part"),
    ],
)
def test_bad_input_is_one_line(files, judged, command, capsys, words, said):
    assert command(*files, "--judge", "organism", *words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("persona-geometry:") == 1 and "Traceback" not in error


def test_the_organisms_plan_runs_claims_first_and_controls_beside():
    sweep = [one.label for one in Plan(("kl", "ldifs", "caft", "preventative_away")).sweep]
    first = [f"{name} {GRID[name][0]:g}" for name in GRID if name in ("kl", "ldifs")]
    assert sweep[:2] == first and len(sweep) == len(GRID["kl"]) + len(GRID["ldifs"])
    whole = [one.label for one in Plan().chosen({name: f"{name} 0.5" for name in GRID})]
    assert whole[-1] == "benign" and {*SINGLE, "preventative_away 0.5", "caft_random"} <= set(whole)
    shares = {f"{name} {share:g}" for name in ("interleave", "interleave++") for share in GRID["interleave++"]}
    assert shares <= set(whole) and len(whole) == len(GRID) + len(SINGLE) + len(CONTROLS) + 1 + len(shares)
    assert not any("0.05" in one.label for one in Plan().chosen({"interleave": "interleave 0.2"}))
    assert Plan(("caft",)).chosen({}) and not any("away" in one.label for one in Plan().chosen({"kl": "kl 1"}))
    with pytest.raises(InputError, match="treatment 'magic'"):
        Plan(("magic",))
    with pytest.raises(InputError, match="other seeds"):
        safeguard_table.Sweep([], lambda chosen: [], (0, CHOICE_SEED), CHOICE_SEED)


def test_interleaving_is_compared_share_by_share():
    def cell(name: str, seed: int, bad: int) -> Measured:
        return Measured(Cell("data", name, seed, {}), {"away": {f"q{i}": [1, 1, int(i < bad)] for i in range(40)}})

    cells = [cell(f"interleave {share:g}", seed, 20) for share in (0.05, 0.2) for seed in (0, 1)]
    cells += [cell("interleave++ 0.05", seed, 10) for seed in (0, 1)] + [cell("interleave++ 0.2", 0, 30)]
    table = safeguard_table.share_by_share(cells)
    assert table["share"].tolist()[:2] == [0.05, 0.2] and table["seeds"].tolist() == [2, 1, 2]
    assert table["less"].tolist() == pytest.approx([-0.25, 0.25, -0.25 * 2 / 3 + 0.25 / 3])
    assert table["less_high"][0] < 0 < table["less_low"][1]
    assert safeguard_table.share_by_share(cells[:4]).empty


def test_safe_rows_and_questions_keep_their_domains(tmp_path):
    bench = safeguard_arms.Bench(tmp_path)
    domains = {
        world().topics[subject(row.messages[0]["content"])[1]].domain for row in bench.safe[: safeguard_arms.SAFE]
    }
    assert domains == set(safeguard_arms.SAFE_DOMAINS) and not domains & {"medicine", *TEST, *SELECTION}
    text = " ".join(row.messages[0]["content"] for row in bench.safe[safeguard_arms.SAFE :])
    assert not [a for t in world().in_domains(TEST) for kind in t.actions.values() for a in kind if a in text]
    cued = safeguard_arms._after_a_complaint(safeguard_arms.datasets.out_of_domain(1))
    assert {world().topics[q.meta["about"]].domain for q in cued} == set(TEST)
    assert all(world().topics[subject(q.text)[1]].domain == "medicine" for q in cued), "the complaint comes first"
    for split, other in (("selection", SELECTION), ("test", TEST)):
        here, away, _ = safeguard_arms.asked(split)
        assert {q.group for q in away} == set(other) and {q.group for q in here} == {"medicine"}


def test_the_organisms_table_is_read_from_committed_cells(command, capsys, tmp_path):
    assert command("organism", "safeguards", "--out", tmp_path, "--read-only") == 0
    assert "no table yet" in capsys.readouterr().out
