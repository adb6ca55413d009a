"""A loaded model as judge: grades weighted by its own next-token distribution, with no server between."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from probes.conversations import Conversation, conversation_batches, render
from probes.errors import InputError
from probes.judges import rubrics
from probes.judges.grading import Job, Prompts, Reply, jobs_of, judged
from probes.judges.verdict import Verdict
from probes.models import Model, evaluating, unwrap
from probes.questions import Question


@dataclass(frozen=True, eq=False)
class ModelJudge:
    """Grades answers with a loaded model, two passes an answer; nothing is sampled, so nothing hangs on a seed.

    A score is the mean of the grades under the model's distribution of the first token of its reply, all spellings of
    a grade that are single tokens taken together. The whole prompt stands in one user turn, because some templates
    know no system turn. Raises InputError for a rubric whose grades are not single tokens, or that asks for labels.
    """

    model: Model
    rubric: rubrics.Rubric | str = field(default=rubrics.ALIGNED, repr=False)
    prompts: Prompts = "ours"
    batch_size: int = 8

    @property
    def name(self) -> str:
        """What results call this judge."""
        return f"model:{self.model.name}"

    def __call__(self, questions: Sequence[Question], answers: Sequence[str], /) -> list[Verdict]:
        """Judge answers to questions, place by place."""
        return judged(jobs_of(questions, answers, self.rubric, self.prompts), self._replies)

    def _replies(self, jobs: list[Job]) -> list[Reply]:
        known = spellings(self.model, [*map(str, range(101)), *rubrics.LETTERS, *rubrics.WORDS])
        for rubric in {id(job[0]): job[0] for job in jobs}.values():
            _check(rubric, known)
        rows = [Conversation.of("\n\n".join(m["content"] for m in rubrics.messages(*job))) for job in jobs]
        replies: dict[int, Reply] = {}
        spelled = {place: text for text, places in known.items() for place in places}
        for index, batch in conversation_batches(rows, self.batch_size):
            rendered = render(self.model.tokenizer, batch).to(self.model.device)
            chances = next_token(self.model, rendered.input_ids, rendered.attention_mask, rendered.position_ids).cpu()
            for row, place in zip(chances, index, strict=True):
                options: dict[str, float] = {}
                for token, text in spelled.items():
                    options[text] = options.get(text, 0.0) + float(row[token])
                likeliest = str(self.model.tokenizer.decode([int(row.argmax())]))
                replies[place] = Reply(likeliest, options)
        return [replies[place] for place in range(len(jobs))]


def spellings(model: Model, texts: Sequence[str]) -> dict[str, list[int]]:
    """For each text the ids of the tokens that read so, white space and case aside; texts without any are left out."""
    wanted, found = set(texts), {}
    for place, text in enumerate(model.tokenizer.batch_decode([[i] for i in range(len(model.tokenizer))])):
        if (plain := text.strip().upper()) in wanted:
            found.setdefault(plain, []).append(place)
    return found


def next_token(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor,
) -> Float[Tensor, "batch vocabulary"]:
    """Probability of each token after left-padded rows of tokens `[batch, pos]`, in float32."""
    hf = unwrap(model.hf)
    few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(hf.forward).parameters else {}
    with evaluating(model), torch.no_grad():
        logits = hf(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False, **few
        ).logits
    return torch.softmax(logits[:, -1].float(), dim=-1)


def _check(rubric: rubrics.Rubric, spelled: dict[str, list[int]]) -> None:
    if rubric.top is None:
        raise InputError("model judge: the rubric asks for a label, not a grade; use an EndpointJudge")
    missing = [str(grade) for grade in range(rubric.top + 1) if str(grade) not in spelled]
    if missing:
        raise InputError(
            f"model judge: grade {missing[0]!r} is not a single token of its tokenizer; use a rubric of grades 0 to 9"
        )
