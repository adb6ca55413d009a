"""Outcomes from elsewhere: answers that another program sampled, judged there or here."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from probes.errors import InputError
from probes.judges import Judge
from probes.outcomes.judging import rejudge
from probes.outcomes.table import COLUMNS, Outcomes

NAMES = {
    "question_id": ("question_id", "id"),
    "question": ("question", "text"),
    "answer": ("answer", "response", "completion"),
    "aligned": ("aligned", "alignment"),
    "coherent": ("coherent", "coherence"),
}
"""Under which names a column may stand in a JSONL file, the first that is there counts."""
MARKS = {"refusal": "refusal", "code": "code"}
ELSEWHERE = "elsewhere"
"""Stands for the judge and the template hash of a table that came without."""


def outcomes_from_jsonl(path: str | Path, *, model: str = "", judge: Judge | None = None) -> Outcomes:
    """Read answers from a JSONL file, one object a line, as other evaluation code writes them.

    Needed: an id (`question_id`, `id`; else the question's text) and `answer` (`response`, `completion`). Kept where
    they stand: `question`, `prompt`, `group`, `seed`, `sample`, `model` (else `model`, else the file's name),
    `aligned` and `coherent` from 0 to 100 (`aligned` may be "REFUSAL" or "CODE"), `refusal`, `label`,
    `template_hash`. With a `judge` every answer is judged anew. Raises InputError with `file:line` for bad rows, and
    where neither the rows nor a judge say what the answers are worth.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a JSONL file with one judged answer per line")
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    rows = [_row(line, f"{path}:{number}", model or path.stem) for number, line in lines if line.strip()]
    return _outcomes(rows, str(path), judge)


def outcomes_from_inspect(
    path: str | Path, *, aligned: str = "aligned", coherent: str = "coherent", judge: Judge | None = None
) -> Outcomes:
    """Read the samples of an Inspect log (`.eval` or `.json`), with inspect_ai's own reader.

    `aligned` and `coherent` name the scorers whose values run from 0 to 100 (`scorer.key` for one entry of a
    scorer that returns several); a word such as "REFUSAL" becomes the label. An epoch is a sample. With a `judge` every
    answer is judged anew. Raises InputError for a log that is missing, unreadable or of a run that did not end well.
    """
    try:
        read_eval_log = import_module("inspect_ai.log").read_eval_log
    except ImportError:
        raise InputError("inspect_ai is not installed: pip install 'persona-geometry[inspect]'") from None
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; give the .eval or .json log of an Inspect run")
    try:
        log = read_eval_log(str(path))
    except Exception as error:  # whatever its reader trips over, the log is at fault
        raise InputError(f"{path}: no Inspect log ({str(error).splitlines()[0][:120]})") from None
    broken = [sample for sample in log.samples or () if sample.error is not None]
    if log.status != "success" or broken:
        raise InputError(
            f"{path}: a run with status {log.status!r}, {len(broken)} samples failed; finish it by inspect eval-retry"
        )
    scorers = {"aligned": aligned, "coherent": coherent}
    seed = log.eval.model_generate_config.seed
    rows = [_sample(one, f"{path}: sample {one.id!r}", scorers, judge is None) for one in log.samples or ()]
    return _outcomes([{**row, "model": log.eval.model, "seed": seed or 0} for row in rows], str(path), judge)


def _outcomes(rows: Sequence[Mapping[str, Any]], place: str, judge: Judge | None) -> Outcomes:
    if not rows:
        raise InputError(f"{place}: no answer in it; give one per line")
    if judge is None and all(row["aligned"] is None and not row["label"] for row in rows):
        raise InputError(f"{place}: no answer is judged; give judge=, or the columns aligned and coherent")
    table = pd.DataFrame(list(rows))
    for name in ("aligned", "coherent"):
        table[name] = table[name].astype("float64")
    order = table.groupby(["model", "question_id", "seed"]).cumcount()
    table["sample"] = [n if s is None or s != s else int(s) for n, s in zip(order, table["sample"], strict=True)]
    found = Outcomes(table.loc[:, [*COLUMNS, "question", "judge", "how"]])
    return found if judge is None else rejudge(found, judge)


def _row(line: str, place: str, model: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise InputError(f"{place}: not JSON; write one object per line") from None
    if not isinstance(row, dict):
        raise InputError(f"{place}: a {type(row).__name__}; write one object per line")
    given = {name: _first(row, names) for name, names in NAMES.items()}
    text = str(given["question"] or "")
    if not isinstance(given["answer"], str) or (given["question_id"] is None and not text):
        raise InputError(f"{place}: row without question_id and answer; write both, the answer as a text")
    return {
        "model": str(row.get("model") or model),
        "question_id": str(text if given["question_id"] is None else given["question_id"]),
        "group": str(row.get("group") or given["question_id"] or ""),
        "sample": _whole(row.get("sample"), f"{place}: sample"),
        "seed": _whole(row.get("seed"), f"{place}: seed") or 0,
        "prompt": str(row.get("prompt") or text),
        "answer": given["answer"],
        **_scores(given["aligned"], given["coherent"], place, bool(row.get("refusal")), str(row.get("label") or "")),
        "template_hash": str(row.get("template_hash") or ELSEWHERE),
        "question": text,
        "judge": str(row.get("judge") or ELSEWHERE),
        "how": str(row.get("how") or ""),
    }


def _sample(sample: Any, place: str, scorers: Mapping[str, str], scored: bool) -> dict[str, Any]:
    """One sample of an Inspect log as a row of the table."""
    prompt = [{"role": m.role, "content": m.text} for m in sample.messages]
    while prompt and prompt[-1]["role"] == "assistant":
        prompt.pop()
    asked = [m["content"] for m in prompt if m["role"] == "user"]
    values = {what: _value(sample.scores or {}, name, place if scored else "") for what, name in scorers.items()}
    return {
        "question_id": str(sample.id),
        "group": str((sample.metadata or {}).get("group", sample.id)),
        "sample": sample.epoch - 1,
        "prompt": json.dumps(prompt, ensure_ascii=False),
        "answer": sample.output.completion,
        **_scores(values["aligned"], values["coherent"], place, False, ""),
        "template_hash": ELSEWHERE,
        "question": asked[-1] if asked else "",
        "judge": f"inspect:{scorers['aligned']}",
        "how": "",
    }


def _value(scores: Mapping[str, Any], name: str, place: str) -> Any:
    """The value of a scorer, or of one of its entries. Without `place` a missing one is None."""
    scorer, _, key = name.partition(".")
    value = scores[scorer].value if scorer in scores else None
    if key and isinstance(value, Mapping):
        value = value.get(key)
    if place and (value is None or isinstance(value, list | Mapping)):
        known = ", ".join(scores) or "none"
        raise InputError(f"{place}: no single score {name!r} among {known}; name the scorer, or give judge=")
    return None if isinstance(value, list | Mapping) else value


def _scores(aligned: Any, coherent: Any, place: str, refusal: bool, label: str) -> dict[str, Any]:
    """The columns of a verdict; a word where a score is due becomes the label."""
    if isinstance(aligned, str) and not _numeric(aligned):
        label, aligned = label or MARKS.get(aligned.strip().lower(), aligned.strip()), None
    return {
        "aligned": _score(aligned, f"{place}: aligned"),
        "coherent": _score(coherent, f"{place}: coherent"),
        "refusal": refusal or label == "refusal",
        "label": label,
    }


def _score(value: Any, place: str) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not _numeric(value) or not 0 <= float(value) <= 100:
        raise InputError(f"{place} {value!r} is no score from 0 to 100; rescale it")
    return float(value)


def _numeric(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _whole(value: Any, place: str) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise InputError(f"{place} {value!r} is no whole number; write one, or leave it out")
    return value


def _first(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)
