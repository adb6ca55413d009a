"""The logit lens against the model's own head; tokens keep the space before them."""

import dataclasses

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from probes import InputError
from saes import logit_lens
from saes.inspect.texts import running_texts, single_text


def test_the_logit_lens_is_the_head_after_the_norm(topk, tiny_model):
    lens = logit_lens(topk, tiny_model, [4, 11], k=6)
    hf = tiny_model.hf
    with torch.no_grad():
        logits = hf.lm_head(hf.model.norm(topk.directions[[4, 11]]))
    for row, latent in enumerate([4, 11]):
        values, ids = (logits[row] - logits[row].mean()).topk(6)
        assert [token for token, _ in lens[latent]] == [tiny_model.tokenizer.decode([i]) for i in ids.tolist()]
        assert [value for _, value in lens[latent]] == pytest.approx(values.tolist(), abs=1e-5)
    lowest = logit_lens(topk, tiny_model, [4], k=3, largest=False)[4]
    assert [value for _, value in lowest] == pytest.approx(
        (logits[0] - logits[0].mean()).sort().values[:3].tolist(), abs=1e-5
    )


def test_the_logit_lens_turns_with_the_direction_and_ignores_its_length(topk, tiny_model):
    flipped = dataclasses.replace(topk, W_dec=-3 * topk.W_dec)
    up, down = logit_lens(topk, tiny_model, [4], k=5)[4], logit_lens(flipped, tiny_model, [4], k=5, largest=False)[4]
    assert [token for token, _ in up] == [token for token, _ in down]
    assert [value for _, value in up] == pytest.approx([-value for _, value in down], abs=1e-5)


def test_the_logit_lens_reads_peft_models(topk, tiny_model, tiny_tuned):
    assert logit_lens(topk, tiny_tuned, [4]) == logit_lens(topk, tiny_model, [4])


def test_a_latent_that_does_not_exist(topk, tiny_model):
    with pytest.raises(InputError, match="latent -1 does not exist"):
        logit_lens(topk, tiny_model, [-1])


def test_spaces_before_words_are_kept():
    """A tokenizer that drops the space at the start of a text, as SentencePiece models do."""
    words = Tokenizer(models.WordLevel({"<s>": 0, "\u2581the": 1, "\u2581fire": 2, "man": 3}, unk_token="<s>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", clean_up_tokenization_spaces=False)
    assert tokenizer.decode([2]) == "fire"
    assert [single_text(tokenizer, i) for i in range(4)] == ["<s>", " the", " fire", "man"]
    assert running_texts(tokenizer, [1, 2, 3]) == (" fire", "man")
