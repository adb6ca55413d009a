"""Tokens as texts that can be read: each with its leading space, whatever kind of tokenizer wrote it."""

from collections.abc import Sequence

import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from probes.linear.tokens import token_texts


def single_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token's own text: what it adds behind itself, for many tokenizers drop a space at the start of a text."""
    once, twice = (_decoded(tokenizer, [token] * times) for times in (1, 2))
    return twice[len(once) :] if twice.startswith(once) else once


def running_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each token but the first adds; a character of several tokens stands with the last of them."""
    return token_texts(tokenizer, torch.tensor(list(ids)))[1:]


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
