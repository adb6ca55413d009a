"""Checks of tokens and masks, and the masks made visible as stretches of text."""

from typing import Any, Literal, NamedTuple

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from probes.conversations import Rendered, reasoning_markers, render
from probes.conversations.reasoning import unopened
from probes.verify.bench import Bench

Kind = Literal["prompt", "last_prompt", "reasoning", "response", "beyond"]


class Segment(NamedTuple):
    """A stretch of text whose tokens are of one kind; "beyond" is what the template writes behind the end token."""

    kind: Kind
    text: str


def segments(tokenizer: PreTrainedTokenizerBase, rendered: Rendered, row: int) -> list[Segment]:
    """One rendered conversation as stretches of like tokens, decoded; padding is left out."""
    real = rendered.attention_mask[row].nonzero()[:, 0].tolist()
    found, before = list[Segment](), ""
    for start, pos in enumerate(real):
        kind, text = _kind(rendered, row, pos), str(tokenizer.decode(rendered.input_ids[row][real[: start + 1]]))
        if not found or found[-1].kind != kind:
            before = before if not found else before + found[-1].text
            found.append(Segment(kind, ""))
        found[-1] = Segment(kind, text[len(before) :])
    return found


def _kind(rendered: Rendered, row: int, pos: int) -> Kind:
    if rendered.response[row, pos]:
        return "reasoning" if rendered.reasoning[row, pos] else "response"
    if rendered.prompt[row, pos]:
        return "last_prompt" if rendered.last_prompt[row, pos] else "prompt"
    return "beyond"


def doubled_starts(bench: Bench) -> float:
    """Conversations whose tokens begin with the start token twice."""
    start = bench.model.tokenizer.bos_token_id
    return float(sum(row[:2] == [start, start] for row in _rows(bench.rendered))) if start is not None else 0.0


def changed_answers(bench: Bench) -> float:
    """Conversations whose answer's tokens, with the thought or without, spell something else than the answer."""
    tokenizer, rendered, wrong = bench.model.tokenizer, bench.rendered, 0
    closing = (reasoning_markers(tokenizer) or ("", "\0"))[1]
    for i, row in enumerate(bench.rows):
        if row.answer is not None:
            parts = [rendered.input_ids[i][mask[i]] for mask in (rendered.response, rendered.answer)]
            spoken = row.answer.rpartition(closing)[2]
            plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (row.answer, spoken)]
            said, meant = ({_spelt(tokenizer, ids) for ids in each} for each in (parts, plain))
            wrong += not said & {row.answer.strip(), spoken.strip(), *meant}
    return float(wrong)


def changed_prompts(bench: Bench) -> float:
    """Answered conversations whose prompt is not what generation starts from, but for a thought that it opens."""
    tokenizer = bench.model.tokenizer
    asked = render(tokenizer, [row.prompt for row in bench.rows])
    opened = [unopened(text, reasoning_markers(tokenizer)) for text in asked.texts]
    started = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in opened]
    wrong = 0
    for i, ids in enumerate(bench.rendered.input_ids):
        prompt = ids[bench.rendered.prompt[i]].tolist()
        wrong += prompt not in (started[i], _rows(asked)[i])
    return float(wrong)


def _spelt(tokenizer: PreTrainedTokenizerBase, ids: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _rows(rendered: Rendered) -> list[list[int]]:
    pairs = zip(rendered.input_ids, rendered.attention_mask.bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]
