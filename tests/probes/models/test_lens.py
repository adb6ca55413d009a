"""TransformerLens's own models: read, edited and asked as any other, with their hooks in force."""

import copy

import pytest
import torch

from probes import Conversation, InputError, capture_blocks, check_same_family, hook_name, intervene, load_model, sample
from tests.probes.families import build_adapted
from tests.probes.operators import Change

LAYERS = (0, 1, 2, 3)
QUESTIONS = [Conversation.of(text) for text in ("Hi?", "How are you today?", "Hi?", "Hi?")]


def push():
    """Adds a fixed direction behind block 1 at every answer token."""
    return Change(lambda x: x + 3 * torch.linspace(-1, 1, x.shape[-1]), positions="response")


@pytest.fixture(scope="module", params=["llama", "gpt_neox"])
def pair(request, build_family, build_hooked, build_tokenizer, tokenizer):
    """A transformers model and the `HookedTransformer` that TransformerLens makes of it, weights as they are."""
    hf = load_model(build_family(request.param, tokenizer), tokenizer=tokenizer, name=request.param)
    return hf, load_model(build_hooked(request.param, build_tokenizer()))


def test_a_hooked_transformer_is_read_as_its_source(pair, rendered, right_padded):
    for padded in (rendered, right_padded):
        ours, theirs = (capture_blocks(model, padded, LAYERS)[:, padded.attention_mask.bool()] for model in pair)
        torch.testing.assert_close(theirs, ours, atol=2e-5, rtol=1e-5)
    check_same_family(*pair)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_hooked_transformer_answers_as_its_source(pair, temperature):
    options = {"seed": 1, "temperature": temperature, "max_new_tokens": 12}
    plain = [sample(model, QUESTIONS, **options) for model in pair]
    pushed = []
    for model in pair:
        with model.intervene(push()):
            pushed.append(sample(model, QUESTIONS, **options))
    assert plain[0] == plain[1] and pushed[0] == pushed[1] != plain[0]


def test_hidden_states_and_embeddings_of_a_hooked_transformer(pair, rendered):
    model, hooked = pair
    inputs = {"attention_mask": rendered.attention_mask, "position_ids": rendered.position_ids}
    real = rendered.attention_mask.bool()
    with torch.no_grad():
        theirs, ours = (m.hf(rendered.input_ids, output_hidden_states=True, **inputs) for m in pair)
    torch.testing.assert_close(ours.logits[real], theirs.logits[real], atol=1e-4, rtol=1e-4)
    for one, other in zip(ours.hidden_states[:-1], theirs.hidden_states[:-1], strict=True):
        torch.testing.assert_close(one[real], other[real], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(hooked.hf.get_input_embeddings().weight, model.hf.get_input_embeddings().weight)
    torch.testing.assert_close(hooked.hf.get_output_embeddings().weight, model.hf.get_output_embeddings().weight)
    with pytest.raises(InputError, match="positions from the attention mask"):
        hooked.hf(rendered.input_ids, attention_mask=rendered.attention_mask, position_ids=rendered.position_ids + 1)


@pytest.mark.parametrize("kind", ["bridge", "hooked"])
def test_hooks_of_the_owner_stay_in_force(kind, build_hooked, build_tokenizer, build_family, tokenizer, rendered):
    if kind == "bridge":
        owner = load_model(build_family("llama", tokenizer), tokenizer=tokenizer, name="llama").bridge()
    else:
        owner = build_hooked("llama", build_tokenizer())
    model, shift = load_model(owner), torch.linspace(-1, 1, 32)
    plain, real = capture_blocks(model, rendered, LAYERS), rendered.attention_mask.bool()
    words = sample(model, QUESTIONS, seed=1, max_new_tokens=6)
    with owner.hooks(fwd_hooks=[(hook_name(1), lambda value, hook: value + shift)]):
        moved = capture_blocks(model, rendered, LAYERS)
        assert sample(model, QUESTIONS, seed=1, max_new_tokens=6) != words
    torch.testing.assert_close(moved[1, real], plain[1, real] + shift)
    assert torch.equal(moved[0], plain[0]) and not torch.allclose(moved[3, real], plain[3, real], atol=0.1)
    if kind == "bridge":  # which runs the transformers model, and so meets our edits too
        with intervene(model, push()):
            _, cache = owner.run_with_cache(rendered.input_ids, attention_mask=rendered.attention_mask)
        assert not torch.allclose(cache[hook_name(3)][real], plain[3, real], atol=0.1)
    assert torch.equal(capture_blocks(model, rendered, LAYERS), plain)


def test_folding_centres_the_stream_only_where_norms_subtract_the_mean(
    build_hooked, build_tokenizer, build_family, tokenizer, rendered
):
    real = rendered.attention_mask.bool()
    for family, centred in (("llama", False), ("gpt_neox", True)):
        model = load_model(build_family(family, tokenizer), tokenizer=tokenizer, name=family)
        bridge = model.bridge()
        bridge.enable_compatibility_mode(disable_warnings=True)
        ours = capture_blocks(model, rendered, LAYERS)[:, real]
        for folded in (load_model(build_hooked(family, build_tokenizer(), folded=True)), load_model(bridge)):
            theirs = capture_blocks(folded, rendered, LAYERS)[:, real]
            wanted = ours - ours.mean(-1, keepdim=True) if centred else ours
            torch.testing.assert_close(theirs, wanted, atol=2e-5, rtol=1e-5)
            if centred:
                with pytest.raises(InputError, match="centred the weights"):
                    check_same_family(model, folded)
            else:
                check_same_family(model, folded)


def test_what_a_bridge_cannot_be_made_of(build_hooked, build_tokenizer, build_family, tokenizer, tiny_adapter):
    hooked = load_model(build_hooked("llama", build_tokenizer()))
    bridge = load_model(build_family("gpt2", tokenizer), tokenizer=tokenizer, name="gpt2").bridge()
    for model in (hooked, load_model(bridge)):
        with pytest.raises(InputError, match="is a TransformerLens model"):
            model.bridge()
    with pytest.raises(InputError, match=r"take \.bridge\(\)"):
        load_model(bridge, adapter=tiny_adapter)
    inside = build_adapted("gpt2", tokenizer).get_base_model()
    with pytest.raises(InputError, match="outside of peft's own model"):
        load_model(inside, tokenizer=tokenizer).bridge()


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out"])
def test_sites_of_a_hooked_transformer_are_those_of_its_source(site, pair, rendered):
    real = rendered.attention_mask.bool()
    ours, theirs = (capture_blocks(model, rendered, LAYERS, site=site)[:, real] for model in pair)
    torch.testing.assert_close(theirs, ours, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_a_bridge_that_has_lost_an_adapter_is_refused(family, tokenizer):
    from transformer_lens.model_bridge import TransformerBridge

    network = build_adapted(family, tokenizer).get_base_model()
    network.config.architectures = [type(network).__name__]
    own = copy.deepcopy(tokenizer)
    own.init_kwargs |= {"add_bos_token": True, "name_or_path": ""}
    bridge = TransformerBridge.boot_transformers("copy/x", hf_model=network, tokenizer=own, device="cpu")
    with pytest.raises(InputError, match="joint queries, keys and values"):
        load_model(bridge)


def test_a_bridge_is_made_without_hooks_of_the_moment(tiny_model, rendered):
    with intervene(tiny_model, push()):
        bridge = tiny_model.bridge()
    torch.testing.assert_close(
        capture_blocks(load_model(bridge), rendered, LAYERS)[:, rendered.attention_mask.bool()],
        capture_blocks(tiny_model, rendered, LAYERS)[:, rendered.attention_mask.bool()],
        atol=2e-5,
        rtol=1e-5,
    )
