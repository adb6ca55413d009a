"""Reasoning: what a model writes between two marks before it answers, found in the text of its turn."""

import re

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from probes.conversations.templates import template_of

Markers = tuple[str, str]
#: Pairs of marks that open and close a thought, as published models write them.
KNOWN: tuple[Markers, ...] = (
    ("<think>", "</think>"),
    ("<|think|>", "<|/think|>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"),
)


def reasoning_markers(tokenizer: PreTrainedTokenizerBase) -> Markers | None:
    """The marks of a thought: the first known pair that are tokens of the tokenizer or stand in its chat template."""
    template, unknown = template_of(tokenizer), (None, tokenizer.unk_token_id)
    for pair in KNOWN:
        tokens = all(tokenizer.convert_tokens_to_ids(mark) not in unknown for mark in pair)
        if tokens or all(mark in template for mark in pair):
            return pair
    return None


def thoughts(text: str, start: int, markers: Markers | None) -> list[tuple[int, int]]:
    """Where in `text`, from character `start` on, thoughts stand: marks and white space behind them included.

    A thought may have been opened before `start`, by the generation prompt; one that is never closed lasts to the end.
    """
    if markers is None:
        return []
    opening, closing = markers
    found, at = [], start
    if not _opened(text, start, markers):
        at = text.find(opening, start)
    while at >= 0:
        close = text.find(closing, at)
        stop = len(text) if close < 0 else _past_space(text, close + len(closing))
        found.append((at, stop))
        at = text.find(opening, stop)
    return found


def unopened(prompt: str, markers: Markers | None) -> str:
    """A generation prompt without the thought that it opens, or opens and closes, at its end."""
    if markers is None:
        return prompt
    opening, closing = map(re.escape, markers)
    return re.sub(rf"{opening}\s*({closing}\s*)?\Z", "", prompt)


def _opened(text: str, start: int, markers: Markers) -> bool:
    """Whether a thought is open at `start`: the prompt ends in its mark, or it is closed before any is opened."""
    opening, closing = (text.find(mark, start) for mark in markers)
    return text[:start].rstrip().endswith(markers[0]) or (closing >= 0 and not 0 <= opening < closing)


def _past_space(text: str, at: int) -> int:
    return at + len(text[at:]) - len(text[at:].lstrip())
