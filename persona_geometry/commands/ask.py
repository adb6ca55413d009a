"""`persona-geometry ask`: put questions to a model or an endpoint, have the answers judged, print the rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from probes.ask import Subject
    from probes.judges import EndpointJudge, Judge
    from probes.outcomes import Outcomes
    from probes.questions import Question

KEY = "PERSONA_GEOMETRY_API_KEY"
ADDRESS = ("http://", "https://")


def ask(
    model: Annotated[str, typer.Argument(help="A hub id, a folder, or the address of an OpenAI-compatible endpoint.")],
    questions: Annotated[Path, typer.Argument(help="YAML or JSONL of questions.")],
    judge: Annotated[
        str,
        typer.Option(
            help="An endpoint's address; model:NAME for a local model; `organism` for its exact judge; `margin` to "
            "compare the continuations that the questions bring, without a judge."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for outcomes, rates and all that was paid for.")],
    served: Annotated[str, typer.Option(help="Which model of the endpoint to ask.")] = "default",
    judge_model: Annotated[str, typer.Option(help="Which model of the judging endpoint to use.")] = "default",
    adapter: Annotated[str | None, typer.Option(help="A PEFT adapter over MODEL.")] = None,
    prompts: Annotated[
        str, typer.Option(help="Judge prompts: `ours`; `question` for those of the file; `verbatim`: without fences.")
    ] = "ours",
    samples: Annotated[int | None, typer.Option(help="Answers to each question (default: the file's, or 1).")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed of the draws; give it again for more.")] = None,
    temperature: Annotated[float, typer.Option(help="Of the sampling; 0: the likeliest answer.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 200,
    batch_size: Annotated[int, typer.Option(help="Answers written at a time by a local model.")] = 32,
    workers: Annotated[int, typer.Option(help="Requests to an endpoint at a time.")] = 8,
    retries: Annotated[int, typer.Option(help="Tries of each request.")] = 5,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 120.0,
    key_env: Annotated[str, typer.Option(help="Environment variable with the key of the endpoint asked.")] = KEY,
    judge_key_env: Annotated[str, typer.Option(help="Environment variable with the key of the judge.")] = KEY,
    device: Annotated[str, typer.Option(help="Where local models run: cpu, cuda, mps.")] = "cpu",
    plan: Annotated[bool, typer.Option("--plan", help="Only print how many answers and judge calls it takes.")] = False,
) -> None:
    """Sample answers, judge them, print the rates; nothing that was sampled or judged is done twice."""
    lines = {"workers": workers, "retries": retries, "timeout": timeout}
    settings = {"temperature": temperature, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    run = _Run(questions, samples, tuple(dict.fromkeys(seed or [0])), out, settings, device, lines, key_env)
    _start(run, (model, served, adapter), (judge, judge_model, prompts, judge_key_env), plan=plan)


@dataclass(frozen=True)
class _Run:
    """What is asked, how, and where everything goes."""

    questions: Path
    samples: int | None
    seeds: tuple[int, ...]
    out: Path
    settings: dict[str, Any]
    device: str
    lines: dict[str, Any]
    key_env: str


def _start(run: _Run, subject: tuple[str, str, str | None], judge: tuple[str, str, str, str], *, plan: bool) -> None:
    from persona_geometry.commands.terminal import settle

    settle()
    from probes.ask import repeated
    from probes.questions import load_questions

    given = load_questions(run.questions)
    if judge[0] == "margin":
        _margin(lambda: _subject(run, *subject), given, run.out)
        return
    rows, judging = repeated(given, run.samples), _judge(run, *judge)
    _say_plan(run, rows, judging)
    if not plan:
        found = _asked(run, rows, _subject(run, *subject), judging)
        found.save(run.out / "outcomes.parquet")
        show(found, run.out)


def _subject(run: _Run, model: str, served: str, adapter: str | None) -> Subject:
    from probes.errors import InputError
    from probes.models import load_model
    from probes.subjects import Connection, Endpoint

    if not model.startswith(ADDRESS):
        return load_model(model, adapter=adapter, device=run.device)
    if adapter is not None:
        raise InputError(f"--adapter {adapter}: an endpoint serves what it serves; name it by --served")
    connection = Connection(key_env=run.key_env, **run.lines)
    return Endpoint(model, served, cache=run.out / "answers", connection=connection)


def _judge(run: _Run, value: str, model: str, prompts: Any, key_env: str) -> Judge:
    from persona_geometry.stages.given import judge_of
    from probes.errors import InputError
    from probes.judges import EndpointJudge, ModelJudge
    from probes.models import load_model
    from probes.subjects import Connection

    if prompts not in ("ours", "question", "verbatim"):
        raise InputError(f"--prompts {prompts}: use ours, question or verbatim")
    if value.startswith(ADDRESS):
        connection = Connection(key_env=key_env, **run.lines)
        return EndpointJudge(value, model, cache=run.out / "judge-cache", prompts=prompts, connection=connection)
    if value.startswith("model:"):
        return ModelJudge(load_model(value.removeprefix("model:"), device=run.device), prompts=prompts)
    if value != "organism":
        raise InputError(f"--judge {value!r}: give an endpoint's address, model:NAME, `organism` or `margin`")
    found = judge_of(value, run.out)
    assert found is not None
    return found


def _say_plan(run: _Run, rows: Sequence[Question], judge: Judge) -> None:
    from probes.judges import EndpointJudge, ModelJudge

    n = len(run.seeds)
    print(f"{len(rows) * n} answers: {len(rows)} to {len({q.id for q in rows})} questions with each of {n} seeds")
    if isinstance(judge, EndpointJudge | ModelJudge):
        from probes.judges.grading import jobs_of

        jobs = jobs_of(rows, [""] * len(rows), judge.rubric, judge.prompts)
        print(f"at most {sum(map(len, jobs)) * n} judge calls, by {judge.name}")


def _asked(run: _Run, rows: Sequence[Question], subject: Subject, judge: Judge) -> Outcomes:
    """All answers of all seeds first, so that the judge's bill is known before it is run up."""
    from probes.ask import judge_answers, sample
    from probes.judges import EndpointJudge
    from probes.outcomes import pool
    from probes.subjects import Endpoint

    talks = [question.conversation for question in rows]
    how: dict[str, Any] = run.settings | ({} if isinstance(subject, Endpoint) else {"cache": run.out / "answers"})
    with _bar() as say:
        answers = {seed: sample(subject, talks, seed=seed, progress=say, **how) for seed in run.seeds}
    if isinstance(judge, EndpointJudge):
        _say_bill(judge, rows, answers)
    return pool([judge_answers(subject, rows, said, judge, seed=seed) for seed, said in answers.items()])


def _say_bill(judge: EndpointJudge, rows: Sequence[Question], answers: dict[int, list[str]]) -> None:
    bill = judge.estimate([*rows] * len(answers), [text for said in answers.values() for text in said])
    print(f"{bill.calls} judge calls of {bill.characters:,} characters; {bill.kept} are kept from an earlier run")


def _bar() -> Any:
    """A context that gives a progress function: a bar on a terminal, nothing elsewhere."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def shown():
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("answers", total=None)
            yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)

    return shown()


def show(found: Outcomes, out: Path) -> None:
    """Print the rates, and write them as JSON beside the outcomes."""
    from rich.console import Console
    from rich.table import Table

    from probes.io import write_json

    console, rates = Console(), rates_of(found)
    table = Table("", "rate", "95 % interval", "n", box=None, pad_edge=False)
    for name, rate in rates.items():
        table.add_row(name, *cells(rate))
    console.print(table)
    groups = list(dict.fromkeys(found.table["group"]))
    if 1 < len(groups) <= 60:
        table = Table("misaligned of coherent, by group", "rate", "95 % interval", "n", box=None, pad_edge=False)
        for group in groups:
            table.add_row(str(group), *cells(found.of(group=group).rate()))
        console.print(table)
    texts = found.table["how"].tolist().count("text")
    if texts:
        console.print(f"{texts} scores are bare numbers: the judge told no usable log-probabilities", highlight=False)
    write_json(out / "rates.json", {name: rate.as_dict() for name, rate in rates.items()})
    console.print(f"\n{out / 'outcomes.parquet'}", highlight=False, soft_wrap=True)


def rates_of(found: Outcomes) -> dict[str, Any]:
    """The rates that papers quote, by what they are called: three denominators, coherence, refusals, every label."""
    named = {f"misaligned of {over}": rate for over, rate in found.denominators().items()}
    named |= {kind: found.rate(kind) for kind in ("coherent", "refusal")}
    labels = sorted({label for label in found.table["label"] if label})
    return named | {f"label {label}": found.rate(f"label:{label}") for label in labels[:20]}


def cells(rate: Any) -> tuple[str, str, str]:
    """A rate, its interval and its number of answers, as text; a rate that is undefined is left out."""
    if rate.value != rate.value:
        return "-", "", str(rate.n)
    limits = "" if rate.low != rate.low else f"{rate.low:.1%} to {rate.high:.1%}"
    return f"{rate.value:.1%}", limits, str(rate.n)


def _margin(load: Callable[[], Any], questions: Sequence[Question], out: Path) -> None:
    """Which continuation the model finds likelier, question by question."""
    from probes.errors import InputError
    from probes.io import write_json
    from probes.judges import margins, paired_continuations
    from probes.subjects import Endpoint

    pairs = paired_continuations(questions)
    subject = load()
    if isinstance(subject, Endpoint):
        raise InputError(f"--judge margin: {subject.url} tells no log-probabilities of given texts; load the model")
    found = margins(subject, *pairs)
    low, high = found.interval()
    print(f"margin {found.mean:+.3f} nats a token [{low:+.3f}, {high:+.3f}] over {len(questions)} pairs")
    print(f"{found.share:.1%} of the misaligned continuations are the likelier ones")
    values = [{"question_id": q.id, "margin": float(v)} for q, v in zip(questions, found.values, strict=True)]
    write_json(out / "margins.json", {"mean": found.mean, "low": low, "high": high, "share": found.share, "by": values})
