"""Whether an SAE belongs to a model: width, block, site, and the names of base models."""

import dataclasses

import pytest

from probes import InputError, Model, capture
from saes import check_fits, latent_stats, need_resid_post
from saes.base_names import other_base
from tests.probes.families import build_family


@pytest.fixture
def family(tiny_tokenizer):
    """Make a tiny model of a family, under a name."""

    def make(name: str, called: str = "tiny") -> Model:
        return Model(build_family(name, tiny_tokenizer), tiny_tokenizer, called)

    return make


def test_block_width_and_site(topk, tiny_model):
    check_fits(topk, tiny_model)
    with pytest.raises(InputError, match=r"reads block 9, but .* has blocks 0 to 3"):
        check_fits(dataclasses.replace(topk, layer=9), tiny_model)
    wide = dataclasses.replace(
        topk, W_enc=topk.W_enc.repeat(2, 1), W_dec=topk.W_dec.repeat(1, 2), b_dec=topk.b_dec.repeat(2), name="other"
    )
    with pytest.raises(InputError, match=r"SAE 'other' reads width 64, but .* has width 32"):
        check_fits(wide, tiny_model)
    with pytest.raises(InputError, match="reads attn_z of block 2, which cannot be captured or changed here"):
        check_fits(dataclasses.replace(topk, site="attn_z"), tiny_model)


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "attn_out", "mlp_out"])
def test_an_sae_reads_what_is_captured_at_its_site(topk, tiny_model, tiny_conversations, site):
    sae = dataclasses.replace(topk, site=site)
    check_fits(sae, tiny_model)
    there = capture(tiny_model, tiny_conversations, layers=[sae.layer], pool="tokens", site=sae.site)
    expected = sae.encode(there.at(sae.layer)).mean(0)
    assert latent_stats(sae, there).mean.allclose(expected.to(latent_stats(sae, there).mean), atol=1e-5)


def test_a_block_without_the_site(topk, family):
    with pytest.raises(InputError, match="there is no middle"):
        check_fits(dataclasses.replace(topk, site="resid_mid"), family("gpt_neox"))


@pytest.mark.parametrize("hook", ["model.layers.2.mlp", "layers.2.self_attn.output"])
def test_a_module_behind_which_a_norm_stands_is_not_what_is_added(topk, family, hook):
    site = "mlp_out" if "mlp" in hook else "attn_out"
    sae = dataclasses.replace(topk, site=site, hook=hook)
    check_fits(sae, family("llama"))
    check_fits(dataclasses.replace(sae, hook=f"blocks.2.hook_{site}"), family("gemma2"))
    with pytest.raises(InputError, match=rf"reads the module {hook!r}, but what .* \(a norm stands between\)"):
        check_fits(sae, family("gemma2"))


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", False),
        ("meta-llama/Llama-3.1-8B", "Llama3_1-8B-Base", False),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Meta-Llama-3-8B", True),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B", True),
        ("meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B", True),
        ("meta-llama/Llama-3.1-8B", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", False),
        ("Qwen/Qwen2.5-7B-Instruct", "unsloth/Qwen2.5-7B-Instruct-bnb-4bit", False),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2-7B", True),
        ("google/gemma-2-2b", "google/gemma-2-2b-it", False),
        ("google/gemma-2-2b", "google/gemma-2-9b-it", True),
        ("google/gemma-2-9b", "google/gemma-3-12b-it", True),
        ("gpt2-small", "openai-community/gpt2", False),
        ("EleutherAI/pythia-70m-deduped", "EleutherAI/pythia-160m", True),
        ("Qwen/Qwen2.5-7B-Instruct", "runs/bad-medical", False),
        ("", "Qwen/Qwen2.5-7B-Instruct", False),
        ("Qwen/Qwen2.5-7B-Instruct", "/models/qwen/finished", False),
    ],
)
def test_names_of_base_models(one, other, differ):
    assert other_base(one, other) is other_base(other, one) is differ


def test_another_base_model_is_refused_by_name(topk, family):
    sae = dataclasses.replace(topk, model_name="Qwen/Qwen2.5-7B-Instruct")
    with pytest.raises(
        InputError, match=r"trained on 'Qwen/Qwen2.5-7B-Instruct', but this model is 'org/Llama-3.1-8B'"
    ):
        check_fits(sae, family("llama", "org/Llama-3.1-8B"))
    tuned = family("llama", "runs/bad-medical")
    check_fits(sae, tuned)
    tuned.hf.config._name_or_path = "meta-llama/Llama-3.1-8B"
    with pytest.raises(InputError, match=r"but this model is 'meta-llama/Llama-3.1-8B'"):
        check_fits(sae, tuned)


def test_who_needs_the_output_of_a_block_says_so(topk):
    need_resid_post(topk, "a persona vector")
    with pytest.raises(
        InputError, match=r"reads mlp_out of block 2, but a persona vector is about the output of a block"
    ):
        need_resid_post(dataclasses.replace(topk, site="mlp_out"), "a persona vector")
