"""TransformerLens's models as ours: a bridge, a `HookedTransformer`, and a bridge over a copy of any loaded model."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from probes.errors import InputError
from probes.models.blocks import unwrap
from probes.models.sharing import without_hooks

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from probes.models.model import Model


class Held(NamedTuple):
    """What a TransformerLens model holds: the network as `transformers` sees it, its tokenizer, its name."""

    hf: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    name: str


def held_by(module: nn.Module) -> Held | None:
    """The network inside a `TransformerBridge` or a `HookedTransformer`; None for any other module.

    A bridge has put its parts into the `transformers` model, which is used as it stands: the bridge's hooks stay in
    force. A `HookedTransformer` has weights of its own, and is wrapped. Raises InputError where booting the bridge
    has lost an adapter.
    """
    lens: Any = module
    if _is(module, "TransformerBridge"):
        _check_adapters(lens.original_model)
        return Held(lens.original_model, lens.tokenizer, str(lens.cfg.model_name))
    if _is(module, "HookedTransformer"):
        return Held(HookedCausalLM(module), lens.tokenizer, str(lens.cfg.model_name or "HookedTransformer"))
    return None


def architecture(hf: nn.Module) -> str:
    """Name of the architecture, which a wrapped `HookedTransformer` has from the model that it was made of."""
    base = unwrap(hf)
    return str(base.config.made_of if isinstance(base, HookedCausalLM) else type(base).__name__)


def bridge_of(model: "Model") -> "TransformerBridge":
    """A TransformerLens bridge over a deep copy of the weights and the tokenizer, adapters merged.

    Adapters come first, because a bridge drops what they do to queries, keys and values that share one matrix. Raises
    InputError for what is TransformerLens's already.
    """
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(model.hf, HookedCausalLM) or any(_is(block, "GeneralizedComponent") for block in model.blocks):
        raise InputError(f"{model.name} is a TransformerLens model: use the one that it was loaded from")
    hf: Any = without_hooks(copy.deepcopy(model.hf))
    hf = hf.merge_and_unload() if hasattr(hf, "merge_and_unload") else hf
    if any("lora_" in name for name, _ in hf.named_parameters()):
        raise InputError(f"{model.name}: it holds an adapter outside of peft's own model; load it with adapter=")
    hf.config.architectures = [type(hf).__name__]  # by which TransformerLens knows how to read it
    tokenizer = copy.deepcopy(model.tokenizer)
    # Said to write the first token itself, the tokenizer is used as it is; another would be loaded from the hub.
    tokenizer.init_kwargs |= {"add_bos_token": True, "name_or_path": tokenizer.name_or_path}
    bridge = TransformerBridge.boot_transformers(
        f"copy/{model.name}",  # a known name would be taken for another model's alias
        hf_model=hf.eval(),
        tokenizer=tokenizer,
        device=str(model.device),
        dtype=model.dtype,
    )
    bridge.cfg.model_name = model.name
    return bridge


class HookedCausalLM(PreTrainedModel, GenerationMixin):
    """A `HookedTransformer` with the inputs and outputs of a `transformers` model; the weights stay where they are.

    Its hooks stay in force; `intervene` acts on what runs through this module. If TransformerLens has folded the norms
    into the weights, a model whose norms subtract the mean (GPT-2, GPT-NeoX) has centred weights: its residual stream
    lacks the mean over d_model that the `transformers` model has, and vectors of one are not those of the other.
    """

    config_class = PreTrainedConfig
    base_model_prefix = ""

    def __init__(self, hooked: nn.Module) -> None:
        super().__init__(_config_of(hooked))
        self.hooked: Any = hooked

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "batch pos"] | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and on request the hidden states: the embedding and every block's output, the last before the norm.

        Positions are counted from the mask. Raises InputError for other ones.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = attention_mask.to(input_ids.device).int()
        _check_positions(position_ids, mask)
        inputs: dict[str, Any] = {"attention_mask": mask[:, -input_ids.shape[1] :]}
        if past_key_values is not None:
            inputs["past_kv_cache"] = _Cache(past_key_values, mask, self.hooked.cfg)
        states = None
        if output_hidden_states:
            logits, kept = self.hooked.run_with_cache(
                input_ids, names_filter=_is_stream, return_cache_object=False, **inputs
            )
            states = tuple(kept.values())
        else:
            logits = self.hooked(input_ids, **inputs)
        rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(logits=logits[:, rows], past_key_values=past_key_values, hidden_states=states)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding matrix, as a module over the same memory."""
        return nn.Embedding.from_pretrained(self.hooked.embed.W_E, freeze=False)

    def get_output_embeddings(self) -> nn.Linear:
        """The unembedding matrix, as a module over the same memory."""
        weight: Tensor = self.hooked.unembed.W_U
        head = nn.Linear(1, 1)
        head.weight, head.bias = nn.Parameter(weight.T), nn.Parameter(self.hooked.unembed.b_U)
        return head


@dataclass(frozen=True)
class _Cache:
    """A cache of `transformers` in the shape that a `HookedTransformer` writes to."""

    cache: Any
    mask: Int[Tensor, "batch pos"]
    cfg: Any

    def append_attention_mask(self, _: Tensor) -> Int[Tensor, "batch pos"]:
        """The mask of everything, which is known already."""
        return self.mask

    def __getitem__(self, layer: int) -> "_Entry":
        return _Entry(self, layer)


@dataclass(frozen=True)
class _Entry:
    """One block's keys and values, `[batch, pos, head, d_head]`; `transformers` has head before pos."""

    home: _Cache
    layer: int

    @property
    def past_keys(self) -> Float[Tensor, "batch past head d_head"]:
        """The keys so far."""
        cache, cfg = self.home.cache, self.home.cfg
        if cache.get_seq_length(self.layer) == 0:
            heads = cfg.n_key_value_heads or cfg.n_heads
            return torch.empty(len(self.home.mask), 0, heads, cfg.d_head, device=self.home.mask.device)
        return cache.layers[self.layer].keys.transpose(1, 2)

    def append(self, keys: Tensor, values: Tensor) -> Iterator[Tensor]:
        """Write the new keys and values behind the old ones; return all of both."""
        both = self.home.cache.update(keys.transpose(1, 2), values.transpose(1, 2), self.layer)
        return (states.transpose(1, 2) for states in both)


def _is(module: nn.Module, name: str) -> bool:
    """Whether a class of that name in TransformerLens is among the module's; nothing is imported for it."""
    return any(c.__name__ == name and c.__module__.startswith("transformer_lens") for c in type(module).__mro__)


def _is_stream(name: str) -> bool:
    return name == "blocks.0.hook_resid_pre" or name.endswith("hook_resid_post")


def _config_of(hooked: Any) -> PreTrainedConfig:
    cfg, tokenizer = hooked.cfg, hooked.tokenizer
    facts = {
        "made_of": cfg.original_architecture or "HookedTransformer",
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "vocab_size": cfg.d_vocab,
        "normalization_type": cfg.normalization_type,
        "eos_token_id": None if tokenizer is None else tokenizer.eos_token_id,
    }
    return PreTrainedConfig(**facts)


def _check_adapters(hf: nn.Module) -> None:
    for name, module in hf.named_modules():
        fused = "JointQKV" in type(module).__name__
        if fused and any("lora_" in part for part, _ in module.named_parameters()):
            raise InputError(
                f"{name}: the bridge was booted over an adapter of joint queries, keys and values, whose change it "
                "drops; merge the adapter first, or load it with load_model and take .bridge()"
            )


def _check_positions(position_ids: Tensor | None, mask: Int[Tensor, "batch pos"]) -> None:
    if position_ids is None:
        return
    counted, real = (values[:, -position_ids.shape[1] :] for values in (mask.cumsum(-1) - 1, mask.bool()))
    if not bool(((position_ids.to(mask.device) == counted) | ~real).all()):
        raise InputError("HookedTransformer counts positions from the attention mask: leave other positions out")
