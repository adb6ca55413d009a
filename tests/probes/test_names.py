"""TransformerLens's names of places, both ways."""

import pytest

from probes import InputError, hook_name, parse_hook_name
from probes.activations import SITES
from probes.names import resolve_layers


@pytest.mark.parametrize("site", SITES)
def test_names_go_both_ways(site):
    assert hook_name(12, site) == f"blocks.12.hook_{site}"
    assert parse_hook_name(hook_name(12, site)) == (12, site)


def test_the_names_of_a_bridge():
    assert parse_hook_name("blocks.3.hook_out") == (3, "resid_post")
    assert parse_hook_name("blocks.3.hook_in") == (3, "resid_pre")


@pytest.mark.parametrize(
    "name", ["blocks.3", "blocks.x.hook_out", "blocks.3.attn.hook_z", "blocks.3.mlp.hook_out", "hook_embed", "3", ""]
)
def test_other_places_are_input_errors(name):
    with pytest.raises(InputError, match=r"names no site.*blocks\.3\.hook_resid_pre"):
        parse_hook_name(name)


def test_blocks_count_from_zero():
    with pytest.raises(InputError, match="layer -1"):
        hook_name(-1)


@pytest.mark.parametrize(
    ("layers", "site", "wanted"),
    [
        ([0, 2], None, ((0, 2), "resid_post")),
        ([0, "blocks.2.hook_out"], None, ((0, 2), "resid_post")),
        (["blocks.2.hook_mlp_out", "blocks.0.hook_mlp_out"], None, ((2, 0), "mlp_out")),
        ([1, "blocks.2.hook_attn_out"], "attn_out", ((1, 2), "attn_out")),
        ([], None, ((), "resid_post")),
    ],
)
def test_layers_by_index_or_name(layers, site, wanted):
    assert resolve_layers(layers, site) == wanted


@pytest.mark.parametrize(
    ("layers", "site"),
    [
        ([1, "blocks.2.hook_mlp_out"], None),
        (["blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"], None),
        (["blocks.1.hook_resid_pre"], "resid_post"),
    ],
)
def test_one_site_at_a_time(layers, site):
    with pytest.raises(InputError, match="several sites"):
        resolve_layers(layers, site)
