"""Questions: what a model is asked, in groups, each marked for selection or for test."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probes.conversations import Conversation
from probes.errors import InputError

SPLITS = ("test", "selection")


@dataclass(frozen=True)
class Question:
    """One question. Wordings of the same question share its `id`, which is the cluster of every bootstrap.

    `group` is its domain; `split` says whether choices may be made on it ("selection") or figures quoted ("test").
    """

    id: str
    text: str
    group: str = ""
    split: str = "test"
    system: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError(f"question {self.id!r} has no text: write one")
        if self.split not in SPLITS:
            raise InputError(f"question {self.id!r}: split {self.split!r} is unknown; use 'test' or 'selection'")

    @property
    def samples(self) -> int:
        """How many answers the question's file asks for (`samples_per_paraphrase`, 1 where it says nothing)."""
        asked = self.meta.get("samples_per_paraphrase", 1)
        if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
            raise InputError(f"question {self.id!r}: samples_per_paraphrase {asked!r}; give 1 or more")
        return asked

    @property
    def conversation(self) -> Conversation:
        """The question as a conversation that awaits an answer."""
        return Conversation.of(self.text, system=self.system, id=self.id)


def load_questions(path: str | Path) -> list[Question]:
    """Read questions from YAML (a list) or JSONL.

    Each row has `id` and `text`, or `paraphrases`: a list of wordings, which become questions of one id. Optional:
    `group` (default: the id), `split`, `system`; other keys such as `samples_per_paraphrase` are kept in `meta`. Rows
    without an id are numbered. Raises InputError for a missing, empty or bad file and for a text that occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a YAML or JSONL file of questions")
    rows = _jsonl(path) if path.suffix == ".jsonl" else _yaml(path)
    questions = [question for number, row in enumerate(rows, 1) for question in _questions(row, f"{path}:{number}")]
    if not questions:
        raise InputError(f"{path}: no question in it; write a list of {{id, text}}")
    seen: set[tuple[str | None, str]] = set()
    for question in questions:
        if (question.system, question.text) in seen:
            raise InputError(f"{path}: question {question.id!r} occurs twice ({question.text[:40]!r}); remove one")
        seen.add((question.system, question.text))
    return questions


def check_disjoint(selection: Sequence[Question], test: Sequence[Question]) -> None:
    """Raise InputError where a question, by id or by text, serves both for choosing and for quoting figures."""
    for what in ("id", "text"):
        both = {getattr(q, what) for q in selection} & {getattr(q, what) for q in test}
        if both:
            raise InputError(f"question {what} {min(both)[:60]!r} is in selection and in test: keep it in one of them")


def _yaml(path: Path) -> list[Any]:
    import yaml

    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(
            f"{path}: not YAML ({' '.join(str(error).split())[:120]}); write a list of questions"
        ) from None
    if isinstance(rows, Mapping) and isinstance(rows.get("questions"), list):
        rows = rows["questions"]
    if rows is not None and not isinstance(rows, list):
        raise InputError(f"{path}: holds a {type(rows).__name__}; write a list of {{id, text}}")
    return rows or []


def _jsonl(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: not JSON ({error.msg}); write one object per line") from None
    return rows


def _questions(row: Any, place: str) -> list[Question]:
    row = {"text": row} if isinstance(row, str) else row
    if not isinstance(row, Mapping):
        raise InputError(f"{place}: a question is a mapping with id and text, not a {type(row).__name__}")
    texts = row.get("paraphrases", row.get("text", row.get("question")))
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{place}: question without text; give text: or paraphrases: [...]")
    known = ("id", "text", "question", "paraphrases", "group", "split", "system")
    meta = {key: value for key, value in row.items() if key not in known}
    name = str(row.get("id", place.rsplit(":", 1)[-1]))
    system = row.get("system")
    group, split = str(row.get("group", name)), row.get("split", "test")
    try:
        return [Question(name, text, group, split, None if system is None else str(system), meta) for text in texts]
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
