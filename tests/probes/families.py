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


#: What a LoRA adapter changes in each family; joint queries, keys and values where the family has them.
TARGETS = {
    "gpt2": ["c_attn", "c_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "phi3": ["qkv_proj", "down_proj"],
    "mixtral": ["q_proj", "v_proj", "o_proj"],
    "qwen2_moe": ["q_proj", "v_proj", "o_proj"],
}


def build_adapted(family: str, tokenizer: PreTrainedTokenizerBase, **lora: Any) -> Any:
    """A PEFT model over a random model of `family`: LoRA (rank 2 unless said otherwise) with random weights."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        **{"r": 2, "lora_alpha": 4, "target_modules": TARGETS.get(family, ["q_proj", "v_proj", "down_proj"])} | lora,
        fan_in_fan_out=family == "gpt2",
    )
    adapted = get_peft_model(build_family(family, tokenizer), config)
    randomise(adapted)
    return adapted.eval()


def randomise(adapted: Any, size: float = 0.2) -> None:
    """Give every LoRA matrix random weights of standard deviation `size`: one side of them starts at zero."""
    generator = torch.Generator().manual_seed(1)
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            value.data = torch.randn(value.shape, generator=generator) * size
