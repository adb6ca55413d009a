"""Edits at any site: with a cache and without, padded, nested, in half precision; errors leave nothing behind."""

from contextlib import nullcontext

import pytest
import torch

from probes import InputError, capture_blocks, capture_sites, intervene, teacher_forced
from probes.activations import SITES
from tests.probes.families import FAMILIES
from tests.probes.operators import STEP, Change, inputs, push, registered, rows

FEW = ("gemma2", "gpt2", "olmo2")


def sites_of(model):
    return [site for site in SITES if model.name != "gpt_neox" or site != "resid_mid"]


def logits_of(model, rendered, **more):
    with torch.no_grad():
        return model.hf(rendered.input_ids, **inputs(rendered), **more).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_adding_in_one_place_is_adding_in_another(family_model, name):
    """What is added to a part is added to the sum: three pairs of sites that say the same."""
    model = family_model(name)
    rendered, real = rows(model), rows(model).attention_mask.bool()
    pairs = [(push("resid_pre", (2,)), push("resid_post", (1,))), (push("mlp_out"), push("resid_post"))]
    if "resid_mid" in sites_of(model):
        pairs.append((push("attn_out"), push("resid_mid")))
    for one, other in pairs:
        found = []
        for operator in (one, other):
            with intervene(model, operator), teacher_forced(rendered):
                found.append(logits_of(model, rendered)[real])
        assert torch.allclose(*found, atol=1e-4), (one.site, other.site)
        assert not torch.allclose(found[0], logits_of(model, rendered)[real], atol=1e-1)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_neox", *FEW])
def test_what_is_written_is_read_and_goes_on(family_model, name):
    """A constant put at a site is what stands there; the rest of the block works on it, token by token alike."""
    model = family_model(name)
    rendered = rows(model)
    real = rendered.attention_mask.bool()
    for site in sites_of(model):
        with intervene(model, Change(lambda x: STEP.expand_as(x), site)):
            found = capture_sites(model, rendered, [(1, s) for s in sites_of(model)])
        assert torch.allclose(found[1, site][real], STEP, atol=1e-5)
        post = found[1, "resid_post"][real]
        if site == "resid_mid":  # from here on no token looks at another
            assert torch.allclose(post, post[:1].expand_as(post), atol=1e-5) and not torch.allclose(post[0], STEP)
            assert torch.allclose(found[1, "resid_pre"] + found[1, "attn_out"], found[1, site], atol=1e-5)
        if "resid_mid" in sites_of(model) and site != "resid_post":
            assert torch.allclose(post, (found[1, "resid_mid"] + found[1, "mlp_out"])[real], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "site"), [*(("llama", site) for site in SITES), *((name, "resid_mid") for name in FEW)]
)
def test_generation_with_a_cache_equals_one_pass(family_model, name, site):
    """The model's own `generate`, with both kinds of cache, edits what one pass over its text edits."""
    model = family_model(name)
    rendered, step = rows(model), push(site, positions="response")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "output_logits": True}
    found = []
    for kind in ("dynamic", "static"):
        with intervene(model, step):
            found.append(
                model.hf.generate(
                    rendered.input_ids,
                    attention_mask=rendered.attention_mask,
                    cache_implementation=kind,
                    return_dict_in_generate=True,
                    disable_compile=True,
                    **options,
                )
            )
    width = rendered.input_ids.shape[1]
    mask = torch.cat([rendered.attention_mask, torch.ones(2, 4, dtype=torch.long)], dim=1)
    edited = mask.bool() & (torch.arange(mask.shape[1]) >= width - 1)
    with torch.no_grad(), intervene(model, step, mask=edited):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        whole = model.hf(found[0].sequences, attention_mask=mask, position_ids=positions).logits
    for out in found:
        assert torch.equal(out.sequences, found[0].sequences)
        assert torch.allclose(torch.stack(out.logits, dim=1), whole[:, width - 1 : -1], atol=1e-4)


@pytest.mark.parametrize("positions", ["all", "prompt", "response", "last_prompt"])
@pytest.mark.parametrize("site", SITES)
def test_padding_and_embeddings_do_not_matter(tiny_model, site, positions):
    """Both sides of padding, ids or their embeddings: the same tokens are edited."""
    found = []
    for side in ("left", "right"):
        rendered = rows(tiny_model, side)
        real, embed = rendered.attention_mask.bool(), tiny_model.hf.get_input_embeddings()
        with intervene(tiny_model, push(site, positions=positions)), torch.no_grad():
            found.append(logits_of(tiny_model, rendered)[real])
            embedded = tiny_model.hf(inputs_embeds=embed(rendered.input_ids), **inputs(rendered)).logits
        assert torch.equal(embedded[real], found[-1])
    assert torch.allclose(*found, atol=1e-4)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["gpt2", "olmo2"])
def test_half_precision_leaves_the_other_tokens_alone(fresh_model, name, site):
    """To the bit, at the block itself; and what is edited is what wide numbers give, cast once."""
    model = fresh_model(name)
    model.hf.to(torch.bfloat16)
    rendered = rows(model)
    wanted = [(1, site), (1, "attn_out"), (1, "resid_post")]
    plain = capture_sites(model, rendered, wanted)
    with intervene(model, Change(lambda x: x.float() * 0.7 + STEP, site, positions="response")):
        steered = capture_sites(model, rendered, wanted)
    edited = rendered.response | rendered.last_prompt
    others = rendered.attention_mask.bool() & ~edited
    for key, value in plain.items():
        assert steered[key].dtype == torch.bfloat16
        assert torch.equal(steered[key][others].view(torch.int16), value[others].view(torch.int16))
        assert key[1] == "attn_out" or (steered[key][edited] != value[edited]).any(-1).all()
    wide = (plain[1, site].float() * 0.7 + STEP).bfloat16()[edited].float()
    error = (steered[1, site][edited].float() - wide).abs()
    assert float(error.max()) <= (0.02 * float(plain[1, site].abs().max()) if site == "resid_mid" else 0)


def test_nested_contexts_end_one_by_one(tiny_model):
    rendered, before = rows(tiny_model), registered(tiny_model)
    plain = capture_blocks(tiny_model, rendered, (3,))
    with intervene(tiny_model, push("attn_out")):
        once = capture_blocks(tiny_model, rendered, (3,))
        with pytest.raises(RuntimeError, match="stop"), intervene(tiny_model, push("resid_mid"), push("resid_pre")):
            assert not torch.allclose(capture_blocks(tiny_model, rendered, (3,)), once, atol=1e-2)
            raise RuntimeError("stop")
        assert torch.equal(capture_blocks(tiny_model, rendered, (3,)), once)
    assert torch.equal(capture_blocks(tiny_model, rendered, (3,)), plain) and registered(tiny_model) == before


def test_sites_are_edited_in_the_order_of_the_pass(tiny_model):
    """Whatever order the operators are given in: what attention adds is edited before the sum is."""
    rendered = rows(tiny_model)
    fixed = Change(lambda x: STEP.expand_as(x), "resid_mid")
    for operators in ((fixed, push("attn_out")), (push("attn_out"), fixed)):
        with intervene(tiny_model, *operators):
            found = capture_blocks(tiny_model, rendered, (1,), site="resid_mid")[0]
        assert torch.allclose(found[rendered.attention_mask.bool()], STEP, atol=1e-5)


@pytest.mark.parametrize("context", ["the edit", "the entry", "the pass"])
def test_errors_leave_nothing_behind(family_model, context):
    """Whether an edit fails, a context cannot be entered, or a pass breaks off: no hook stays, no mask either."""
    model = family_model("gpt_neox")
    rendered, before = rows(model), registered(model)
    plain = logits_of(model, rendered)
    broken = {
        "the edit": (push("mlp_out"), Change(lambda x: x @ x, "attn_out"), RuntimeError, "Expected size"),
        "the entry": (push("mlp_out"), push("resid_mid"), InputError, "there is no middle"),
        "the pass": (push("mlp_out"), push("attn_out"), IndexError, "index out of range"),
    }[context]
    one, other, error, told = broken
    with pytest.raises(error, match=told), intervene(model, one, other):
        model.hf(rendered.input_ids + (10_000 if context == "the pass" else 0), **inputs(rendered))
    assert registered(model) == before and torch.equal(logits_of(model, rendered), plain)


def test_an_edit_keeps_the_shape(tiny_model):
    wide = push()
    wide.__class__ = type("Wide", (Change,), {"__call__": lambda self, x, *, layer, mask: x[..., :3]})
    with pytest.raises(InputError, match="keep the shape"), intervene(tiny_model, wide):
        logits_of(tiny_model, rows(tiny_model))


def test_blocks_outside_of_a_pass_are_not_edited(tiny_model):
    """A block that somebody calls by hand belongs to no pass: nobody can tell which of its tokens are which."""
    layer, hidden = tiny_model.blocks[1].mlp, torch.randn(1, 3, 32)
    operator = push("mlp_out")
    with torch.no_grad(), intervene(tiny_model, operator):
        logits_of(tiny_model, rows(tiny_model))
        calls = len(operator.seen)
        inside = layer(hidden)
    assert torch.equal(inside, layer(hidden)) and len(operator.seen) == calls


@pytest.mark.parametrize("forced", [True, False])
def test_a_mask_of_queries_by_keys_tells_padding(tiny_model, forced):
    """Four axes, as static caches make them: the tokens that may look at themselves are the real ones."""
    rendered = rows(tiny_model)
    real = rendered.attention_mask.bool()
    n_pos = real.shape[1]
    square = real[:, None, None, :] & torch.ones(n_pos, n_pos, dtype=torch.bool).tril()
    masks = {"bool": square, "float": torch.where(square, 0.0, torch.finfo(torch.float32).min)}
    for mask in masks.values():
        operator = push(positions="prompt")
        with intervene(tiny_model, operator), teacher_forced(rendered) if forced else nullcontext():
            tiny_model.hf(rendered.input_ids, attention_mask=mask, position_ids=rendered.position_ids)
        assert not real.all() and operator.seen[0].equal(rendered.prompt if forced else real)
    with pytest.raises(InputError, match=r"\[batch, pos\] mask"), intervene(tiny_model, push()):
        tiny_model.hf(rendered.input_ids, attention_mask=square[:, 0])
