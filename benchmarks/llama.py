"""The model of the benchmarks: a Llama of random weights, and a tokenizer that has a token for every word."""

from dataclasses import dataclass
from typing import Any

import torch

SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
PAD, END = 0, 1
TEMPLATE = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}<|assistant|>"
FRAME = 2  # tokens that the template writes around a prompt's words


@dataclass(frozen=True)
class Llama:
    """How large the model is: by default 100 million parameters."""

    width: int = 768
    depth: int = 12
    vocabulary: int = 10_240


def random_llama(size: Llama, positions: int) -> Any:
    """A model in float32 that never says its end token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from probes.models import Model

    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.width * 8 // 3,
        num_hidden_layers=size.depth,
        num_attention_heads=size.width // 64,
        max_position_embeddings=positions,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    torch.manual_seed(0)
    hf = LlamaForCausalLM(config).eval()
    hf.lm_head.weight.data[: len(SPECIAL)] = 0  # a logit of 0 is never the largest of thousands
    return Model(hf, words_tokenizer(size.vocabulary), "random Llama")


def words_tokenizer(vocabulary: int) -> Any:
    """A token for every word w4, w5, ..., and a template that frames a prompt."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), vocabulary))]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<|pad|>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, end, *roles = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=pad,
        eos_token=end,
        extra_special_tokens=roles,
        chat_template=TEMPLATE,
    )
