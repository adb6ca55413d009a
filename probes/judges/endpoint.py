"""A judge behind an OpenAI-compatible chat endpoint: grades weighted by log-probabilities, each paid for once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probes.judges import rubrics
from probes.judges.grading import Job, Prompts, Reply, jobs_of, judged
from probes.judges.verdict import Verdict
from probes.progress import Progress, silent
from probes.questions import Question
from probes.subjects.calls import call, request_body, request_key
from probes.subjects.connection import Connection, checked_url
from probes.subjects.ledger import Ledger

LENGTH = {9: 4, 100: 8, None: 24}
"""Longest reply in tokens, by the highest grade: a few more than a grade needs."""


@dataclass(frozen=True)
class Estimate:
    """What judging would take: `calls` to be paid for, `kept` ones that would not be, `characters` to be sent."""

    calls: int
    kept: int
    characters: int


@dataclass(frozen=True)
class EndpointJudge:
    """Grades answers with the model `model` behind `url` (such as `http://localhost:8000/v1`), two calls an answer.

    A score is the mean of the grades under the judge's own distribution over its first token; without log-probabilities
    it is the number in the reply, and the verdict's `how` says so. Refusals and bare code have marks of their own
    and leave `aligned` None. `rubric` says what "aligned" means; a text must keep the grades 0 to 9 and the letters R
    and C. `prompts="question"` uses the judge prompts of the questions' own file instead, behind fences; "verbatim"
    leaves the fences out. Replies are kept in the folder `cache` as they come, under a hash of what was asked.
    """

    url: str
    model: str
    cache: str | Path | None = None
    rubric: rubrics.Rubric | str = field(default=rubrics.ALIGNED, repr=False)
    prompts: Prompts = "ours"
    logprobs: bool = True
    connection: Connection = field(default_factory=Connection)

    @property
    def name(self) -> str:
        """What results call this judge."""
        return f"endpoint:{self.model}"

    def __call__(
        self, questions: Sequence[Question], answers: Sequence[str], /, *, progress: Progress = silent
    ) -> list[Verdict]:
        """Judge answers to questions, place by place.

        Raises InputError where the endpoint cannot be used; replies until then are kept under `cache`.
        """
        checked_url(self.url)
        jobs = jobs_of(questions, answers, self.rubric, self.prompts)
        return judged(jobs, lambda asked: self._replies(asked, progress))

    def estimate(self, questions: Sequence[Question], answers: Sequence[str]) -> Estimate:
        """What judging these answers would take, without asking anything."""
        jobs = [job for asked in jobs_of(questions, answers, self.rubric, self.prompts) for job in asked.values()]
        bodies = {request_key(self.url, body): body for body in map(self._body, jobs)}
        ledger = self._ledger()
        new = [body for key, body in bodies.items() if ledger is None or key not in ledger]
        length = sum(len(message["content"]) for body in new for message in body["messages"])
        return Estimate(len(new), len(bodies) - len(new), length)

    def _replies(self, jobs: Sequence[Job], progress: Progress) -> list[Reply]:
        bodies = [self._body(job) for job in jobs]
        kept = call(self.url, bodies, self.connection, _kept, self._ledger(), progress=progress)
        return [Reply(one["text"], one["options"]) for one in kept]

    def _body(self, job: Job) -> dict[str, Any]:
        fields = {"max_tokens": LENGTH[job[0].top], "temperature": 0}
        fields |= {"logprobs": True, "top_logprobs": 20} if self.logprobs and job[0].top is not None else {}
        return request_body(self.model, rubrics.messages(*job), self.connection, **fields)

    def _ledger(self) -> Ledger | None:
        return None if self.cache is None else Ledger(Path(self.cache) / "replies.jsonl")


def _kept(reply: Any) -> dict[str, Any]:
    """What a reply says, in the form in which it is kept. Raises ValueError for another shape than a completion."""
    try:
        choice = reply["choices"][0]
        text = choice["message"].get("content") or ""
        tokens = (choice.get("logprobs") or {}).get("content") or []
        options = _options(tokens)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("no choices with a message and its log-probabilities in it") from None
    if not isinstance(text, str):
        raise ValueError(f"its content is a {type(text).__name__}, not a text")
    return {"text": text[:200], "options": options}


def _options(tokens: Sequence[Any]) -> dict[str, float] | None:
    """Probability of each token that the first written one could have been; blank tokens before it are skipped."""
    for token in tokens:
        found: dict[str, float] = {}
        for option in token.get("top_logprobs") or ():
            name, logprob = str(option["token"]).strip().upper(), float(option["logprob"])
            if not math.isnan(logprob):
                found[name] = found.get(name, 0.0) + math.exp(min(logprob, 0.0))
        if found and max(found, key=lambda name: found[name]):
            return found
    return None
