"""Tiny random models of twelve families, built from configurations: 4 blocks, width 32, two heads."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
WIDE = {"intermediate_size": 48}
GROUPED = WIDE | {"num_key_value_heads": 1}
#: What each family wants beside the common sizes.
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED | {"head_dim": 16, "sliding_window": 64},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 16},
    "gemma2": GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64},
    "gemma3": GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64},
    "phi3": GROUPED,  # queries, keys and values in one linear map
    "olmo2": GROUPED,  # normalises what attention and MLP write
    "gpt2": {},  # one Conv1D for queries, keys and values; learned positions
    "gpt_neox": WIDE,  # attention and MLP side by side
    "mixtral": GROUPED | {"num_local_experts": 2},
    "qwen2_moe": GROUPED
    | {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
}
FAMILIES = tuple(SETTINGS)
TYPES = {"gemma3": "gemma3_text"}


def build_family(family: str, tokenizer: PreTrainedTokenizerBase, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of `family` in evaluation mode, every weight of it random; `changes` go into its configuration."""
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    settings = SIZES | SETTINGS[family] | special | {"vocab_size": len(tokenizer)} | changes
    config = AutoConfig.for_model(TYPES.get(family, family), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():  # norms and biases start as ones and zeros, which hide mistakes
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model
