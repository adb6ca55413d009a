"""Sites of twelve families: found by structure, as TransformerLens has them, adding up, read with an early exit."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from probes import InputError, Model, capture_blocks, capture_sites, intervene, render
from probes.activations import SITES
from probes.sites import Point, Record, check_site, layout
from tests.probes.families import FAMILIES
from tests.probes.operators import Change

PARALLEL = ("gpt_neox",)
PLACES = [(layer, site) for layer in range(4) for site in SITES]


def places(family):
    return [(layer, site) for layer, site in PLACES if family not in PARALLEL or site != "resid_mid"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, build_family, build_tokenizer):
    tokenizer = build_tokenizer()  # eager attention, as TransformerLens has it: the same sums in the same order
    return Model(build_family(request.param, tokenizer, attn_implementation="eager"), tokenizer, request.param)


@pytest.fixture
def rendered(model, tiny_conversations):
    return render(model.tokenizer, tiny_conversations)


def apart(one, other, rendered):
    """Largest distance between activations on real tokens."""
    real = rendered.attention_mask.bool()
    return float((one - other)[real].abs().max())


def test_sites_equal_transformer_lens(model, rendered):
    bridge, found = model.bridge(), capture_sites(model, rendered, places(model.name))
    _, cache = bridge.run_with_cache(rendered.input_ids, attention_mask=rendered.attention_mask)
    for (layer, site), ours in found.items():
        assert apart(ours, cache[f"blocks.{layer}.hook_{site}"], rendered) < 1e-5, (layer, site)


def test_sites_add_up(model, rendered):
    found = capture_sites(model, rendered, places(model.name))
    for layer in range(4):
        pre, post, attention, mlp = (found[layer, site] for site in ("resid_pre", "resid_post", "attn_out", "mlp_out"))
        middle = found.get((layer, "resid_mid"), pre + attention)
        assert apart(middle, pre + attention, rendered) < 1e-5
        assert apart(post, middle + mlp, rendered) < 1e-5
        assert min(part[rendered.attention_mask.bool()].abs().amin(0).max() for part in (attention, mlp)) > 1e-3
        if layer:
            assert torch.equal(pre, found[layer - 1, "resid_post"])


def test_what_is_added_is_what_the_stream_gets(model, rendered):
    """Taking attention's or the MLP's part away by hand changes the block's output as the identities say."""

    def nothing(site):
        return Change(torch.zeros_like, site, layers=(0,))

    wanted = [(0, "resid_pre"), (0, "mlp_out"), (0, "attn_out"), (0, "resid_post")]
    with intervene(model, nothing("attn_out"), nothing("mlp_out")):
        found = capture_sites(model, rendered, wanted)
    assert apart(found[0, "resid_pre"], found[0, "resid_post"], rendered) < 1e-6
    with intervene(model, nothing("mlp_out")):
        found = capture_sites(model, rendered, wanted)
    assert apart(found[0, "resid_pre"] + found[0, "attn_out"], found[0, "resid_post"], rendered) < 1e-5


@pytest.mark.parametrize(
    ("site", "runs"), [("resid_pre", 0), ("attn_out", 1), ("resid_mid", 1), ("mlp_out", 2), ("resid_post", 2)]
)
def test_capture_ends_where_it_may(tiny_model, tiny_conversations, site, runs):
    """Block 1's attention and MLP run only where what is asked for needs them, and block 2 never."""
    rendered, calls = render(tiny_model.tokenizer, tiny_conversations), []
    capture_blocks(tiny_model, rendered, (1,), site=site)  # the layout is known from here on
    block, above = tiny_model.blocks[1], tiny_model.blocks[2]
    parts = (block.self_attn, block.mlp, above)
    handles = [part.register_forward_hook(lambda part, *_: calls.append(part)) for part in parts]
    try:
        capture_blocks(tiny_model, rendered, (1, 0), site=site)
    finally:
        for handle in handles:
            handle.remove()
    assert calls == list(parts[:runs])


def test_a_block_with_no_middle_says_so(build_family, build_tokenizer, tiny_conversations):
    tokenizer = build_tokenizer()
    model = Model(build_family("gpt_neox", tokenizer), tokenizer, "neox")
    with pytest.raises(InputError, match="there is no middle; use one of resid_pre, resid_post, attn_out, mlp_out"):
        capture_blocks(model, render(tokenizer, tiny_conversations), (1,), site="resid_mid")
    one_by_one = Model(build_family("gpt_neox", tokenizer, use_parallel_residual=False), tokenizer, "neox")
    found = capture_sites(one_by_one, render(tokenizer, tiny_conversations), [(1, "resid_mid"), (1, "attn_out")])
    assert found[1, "resid_mid"].shape == found[1, "attn_out"].shape


def test_bad_sites(tiny_model, tiny_conversations):
    rendered = render(tiny_model.tokenizer, tiny_conversations)
    with pytest.raises(InputError, match="site 'resid': use one of resid_pre"):
        check_site("resid")
    with pytest.raises(InputError, match="blocks 0 to 3"):
        capture_sites(tiny_model, rendered, [(4, "attn_out")])
    lost = replace(tiny_model, sites={"attn_out": Point("attention")})
    with pytest.raises(InputError, match=r"has .*self_attn.*by its path"):
        capture_sites(lost, rendered, [(0, "attn_out")])


def scaled(model, factor=0.5):
    """The model with what its MLPs add multiplied outside of any module, as some families do."""

    class Scaled(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, hidden, **inputs):
            attended, _ = self.block.self_attn(hidden_states=self.block.input_layernorm(hidden), **inputs)
            middle = hidden + attended
            return middle + factor * self.block.mlp(self.block.post_attention_layernorm(middle))

    for index, block in enumerate(model.blocks):
        model.blocks[index] = Scaled(block)
    return model


def test_a_block_that_does_not_add_up_is_refused_until_its_modules_are_named(
    build_llama, build_tokenizer, tiny_conversations
):
    tokenizer = build_tokenizer()
    model = scaled(Model(build_llama(tokenizer), tokenizer, "scaled"))
    rendered = render(tokenizer, tiny_conversations)
    with pytest.raises(InputError, match=r"no two modules.*add up.*name the module"):
        capture_blocks(model, rendered, (1,), site="mlp_out")
    named = replace(model, sites={"mlp_out": Point("block.mlp"), "resid_mid": Point("block.mlp", "input")})
    raw, post = (capture_blocks(named, rendered, (1,), site=site)[0] for site in ("mlp_out", "resid_post"))
    assert apart(post, capture_blocks(model, rendered, (1,))[0], rendered) == 0
    assert raw.shape == post.shape


def test_the_search_is_not_taken_in():
    """A middle that nothing reads, a part that adds nothing, and a look-alike that comes too late are no sites."""
    generator = torch.Generator().manual_seed(0)
    pre, added, written = torch.randn(3, 1, 4, 8, generator=generator)
    zero, post = torch.zeros_like(pre), pre + added + written
    calls = [Record("norm", pre, pre / 2), Record("attn", pre / 2, added), Record("drop", zero, zero)]
    late = [Record("norm2", pre + added, written * 3), Record("mlp", written * 3, written), Record("copy", None, added)]
    block = Record("", pre, post)
    found = layout([*calls, *late, block])
    assert {site: point.path for site, point in found.points.items() if point.path} == {
        "resid_mid": "norm2",
        "attn_out": "attn",
        "mlp_out": "mlp",
    }
    assert found.entry == Point("norm", "input") and not found.parallel
    assert layout([*calls, Record("mlp", pre / 2, written), block]).parallel
    assert set(layout([*calls, Record("mlp", pre / 2, written / 2), block]).points) == {"resid_pre", "resid_post"}
    assert set(layout([*calls, Record("mlp", pre / 2, zero), Record("", pre, pre + added)]).points) == {
        "resid_pre",
        "resid_post",
    }


def test_layouts_are_found_aside_from_interventions(build_llama, build_tokenizer, tiny_conversations):
    """The few tokens that a layout is found with reach no operator, and are not confused by its edits."""

    tokenizer = build_tokenizer()
    model, double = Model(build_llama(tokenizer), tokenizer, "new"), Change(lambda x: 2 * x)
    rendered = render(tokenizer, tiny_conversations)
    with intervene(model, double):
        found = capture_sites(model, rendered, [(1, site) for site in SITES])
    assert len(double.seen) == 1
    assert apart(found[1, "resid_post"], 2 * (found[1, "resid_mid"] + found[1, "mlp_out"]), rendered) < 1e-5


def test_half_precision_finds_the_same_modules(build_family, build_tokenizer):
    from probes.hooks import find_points

    tokenizer, wanted = build_tokenizer(), [(1, "attn_out"), (1, "mlp_out")]
    for family in FAMILIES:
        one, other = (
            Model(build_family(family, tokenizer).to(d), tokenizer, "x") for d in (torch.float32, torch.bfloat16)
        )
        assert find_points(one, wanted) == find_points(other, wanted), family
