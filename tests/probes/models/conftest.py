"""Fixtures of the tests on models: rendered rows of two lengths, and models that TransformerLens holds."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from probes import Conversation, Rendered, render

ROWS = (Conversation.of("Hi?", "Ho."), Conversation.of("How are you today? Any burn?", "Well."))


@pytest.fixture(scope="session")
def tokenizer(build_tokenizer: Callable[[], PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """The tests' tokenizer, which has been loaded from nowhere."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def rendered(tokenizer: PreTrainedTokenizerFast) -> Rendered:
    """Two conversations of different lengths, padded on the left."""
    return render(tokenizer, ROWS, padding_side="left")


@pytest.fixture(scope="session")
def right_padded(tokenizer: PreTrainedTokenizerFast) -> Rendered:
    """The same, padded on the right."""
    return render(tokenizer, ROWS, padding_side="right")


@pytest.fixture(scope="session")
def build_hooked(tmp_path_factory, build_family):
    """The function `build_hooked(family, tokenizer, folded=False)` that makes a tiny `HookedTransformer`."""

    def build(family: str, tokenizer: PreTrainedTokenizerFast, *, folded: bool = False):
        import transformer_lens.loading_from_pretrained as loading
        from transformer_lens import HookedTransformer

        hf = build_family(family, tokenizer, architectures=[HOOKED[family]])
        folder = str(tmp_path_factory.mktemp("source"))  # TransformerLens takes a name with "llama" in it for the first
        hf.save_pretrained(folder)
        options = {"fold_ln": folded, "dtype": torch.float32}
        config = hf.config.to_dict()
        cfg = loading.get_pretrained_model_config(folder, hf_cfg=config, device="cpu", **options)
        tokenizer.init_kwargs |= {"add_bos_token": True, "name_or_path": ""}
        with pytest.warns(DeprecationWarning, match="HookedTransformer is deprecated"):
            hooked = HookedTransformer(cfg, tokenizer, move_to_device=False, default_padding_side="left")
        weights = loading.get_pretrained_state_dict(folder, cfg, hf, dtype=torch.float32)
        names = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
        hooked.load_and_process_state_dict(weights, **dict.fromkeys(names, folded))
        return hooked

    return build


HOOKED = {"llama": "LlamaForCausalLM", "gpt_neox": "GPTNeoXForCausalLM"}
