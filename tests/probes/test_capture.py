"""Capture: pools, sites, scopes, order, batches, streams, refusal of bad values."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

from probes import (
    Conversation,
    InputError,
    TokenScope,
    capture,
    capture_blocks,
    render,
    save_conversations,
)
from probes.capture import pooled


def reference(model, conversations, layers, pool):
    """One conversation at a time, in float64, by plain indexing."""
    rows = []
    for conversation in conversations:
        rendered = render(model.tokenizer, [conversation])
        values = capture_blocks(model, rendered, layers)[:, 0].double()
        mask = {"response_mean": rendered.response, "prompt_mean": rendered.prompt, "last_prompt": rendered.last_prompt}
        rows.append(values[:, mask[pool][0]].mean(dim=1))
    return torch.stack(rows, dim=1).float()


@pytest.mark.parametrize("pool", ["response_mean", "prompt_mean", "last_prompt"])
def test_pools_equal_the_reference(tiny_model, tiny_conversations, pool):
    layers = (3, 1)
    ours = capture(tiny_model, tiny_conversations, layers=layers, pool=pool, batch_size=3)
    assert torch.allclose(ours.values, reference(tiny_model, tiny_conversations, layers, pool), atol=1e-4)
    assert ours.conversation_index.tolist() == [0, 1, 2, 3] and ours.token_ids is None
    assert torch.equal(ours.at(1), ours.values[1]) and len(ours) == 4


def test_tokens_come_in_order(tiny_model, tiny_conversations):
    ours = capture(tiny_model, tiny_conversations, layers=(2,), pool="tokens", batch_size=2)
    for row, conversation in enumerate(tiny_conversations):
        rendered = render(tiny_model.tokenizer, [conversation])
        part = ours.select(ours.conversation_index == row)
        assert part.token_ids.tolist() == rendered.input_ids[0].tolist()
        assert part.positions.tolist() == list(range(len(part)))
        assert part.in_response.tolist() == rendered.response[0].tolist()
        assert torch.allclose(part.at(2), capture_blocks(tiny_model, rendered, (2,))[0, 0], atol=1e-4)


def test_batch_size_does_not_matter(tiny_model, tiny_conversations):
    one, all_ = (capture(tiny_model, tiny_conversations, layers=(0, 3), batch_size=size) for size in (1, 8))
    assert torch.allclose(one.values, all_.values, atol=1e-4)


def test_progress_is_reported(tiny_model, tiny_conversations):
    seen = []
    capture(tiny_model, tiny_conversations, layers=(0,), batch_size=3, progress=lambda *told: seen.append(told))
    assert seen == [(3, 4, "activations"), (4, 4, "activations")]


def test_means_do_not_drift(tiny_model):
    values = torch.full((1, 1, 100_000, 1), 0.1)
    mean = pooled(values, torch.ones(1, 100_000, dtype=torch.bool))
    assert mean.item() == pytest.approx(0.1, abs=1e-8)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layers": (7,)}, "layer 7"),
        ({"layers": ()}, "no layers"),
        ({"layers": (1, 1)}, "give each block once"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_tokens": 0}, "batch_tokens 0"),
    ],
)
def test_bad_arguments(tiny_model, tiny_conversations, changes, told):
    with pytest.raises(InputError, match=told):
        capture(tiny_model, tiny_conversations, **({"layers": (1,)} | changes))


def test_bad_rows(tiny_model):
    with pytest.raises(InputError, match="no conversations"):
        capture(tiny_model, [], layers=(1,))
    with pytest.raises(InputError, match="conversation 0 has no answer"):
        capture(tiny_model, [Conversation.of("Hi?")], layers=(1,))
    assert len(capture(tiny_model, [Conversation.of("Hi?")], layers=(1,), pool="last_prompt")) == 1
    held = capture(tiny_model, [Conversation.of("Hi?")], layers=(1,), pool="prompt_mean")
    with pytest.raises(InputError, match="layer 2 was not captured"):
        held.at(2)


def test_a_value_that_is_not_finite_is_refused(tiny_model, tiny_conversations):
    weight = tiny_model.hf.model.layers[2].mlp.down_proj.weight
    kept = weight.data.clone()
    try:
        weight.data[0, 0] = float("nan")
        with pytest.raises(InputError, match="block 2 on conversation"):
            capture(tiny_model, tiny_conversations, layers=(1, 2))
    finally:
        weight.data = kept


SITED = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@pytest.mark.parametrize("site", SITED)
def test_sites(tiny_model, tiny_conversations, site):
    """Against torch's own hooks around the Llama's parts, one conversation at a time."""
    ours = capture(tiny_model, tiny_conversations, layers=(2,), site=site, pool="last_prompt", batch_size=4)
    assert ours.site == site
    block, seen = tiny_model.hf.model.layers[2], {}
    watched = {"attn_out": block.self_attn, "mlp_out": block.mlp, "resid_post": block}
    hooks = [m.register_forward_hook(lambda _, __, out, n=n: seen.update({n: out})) for n, m in watched.items()]
    hooks.append(block.register_forward_pre_hook(lambda _, args: seen.update(resid_pre=args[0])))
    try:
        for row, conversation in enumerate(tiny_conversations):
            rendered = render(tiny_model.tokenizer, [conversation])
            with torch.no_grad():
                tiny_model.hf(input_ids=rendered.input_ids)
            whole = {name: out[0] if isinstance(out, tuple) else out for name, out in seen.items()}
            whole["resid_mid"] = whole["resid_pre"] + whole["attn_out"]
            at = rendered.last_prompt[0].nonzero().item()
            torch.testing.assert_close(ours.at(2)[row], whole[site][0, at], atol=1e-4, rtol=1e-4)
    finally:
        for hook in hooks:
            hook.remove()


def every_other(rendered):
    """Tokens 0, 2, 4, ... of the response, counted from its start."""
    count = rendered.response.cumsum(-1)
    return rendered.response & (count % 2 == 1)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("given", ["function", "masks"])
def test_a_scope_of_ones_own(tiny_model, tiny_conversations, single, given):
    alone = [render(tiny_model.tokenizer, [row]) for row in tiny_conversations]
    masks = [every_other(rendered)[0] for rendered in alone]
    scope = TokenScope("every other", every_other if given == "function" else masks, single=single)
    ours = capture(tiny_model, tiny_conversations, layers=(1,), pool=scope, batch_size=3)
    assert ours.scope == "every other" and ours.pool == ("tokens" if single else "mean")
    for row, (rendered, mask) in enumerate(zip(alone, masks, strict=True)):
        wanted = capture_blocks(tiny_model, rendered, (1,))[0, 0][mask]
        part = ours.select(ours.conversation_index == row)
        if single:
            assert torch.equal(part.positions, mask.nonzero()[:, 0]) and part.in_response.all()
            assert torch.equal(part.token_ids, rendered.input_ids[0][mask])
        wanted = wanted if single else wanted.mean(0, keepdim=True)
        torch.testing.assert_close(part.at(1), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (lambda rendered: torch.zeros_like(rendered.response), "conversation 0 has no token in the scope 'mine'"),
        ([], "0 masks, none for conversation 0"),
        ([torch.ones(3, dtype=torch.bool)] * 4, r"a mask of torch\.bool \[3\] for conversation 0 of"),
    ],
)
def test_a_scope_that_does_not_fit(tiny_model, tiny_conversations, mask, told):
    with pytest.raises(InputError, match=told):
        capture(tiny_model, tiny_conversations, layers=(1,), pool=TokenScope("mine", mask))


def alone_ids(model):
    return lambda row: render(model.tokenizer, [row]).input_ids[0]


@pytest.fixture
def seen_batches(monkeypatch):
    """The shapes of the forward passes that `capture` makes."""
    seen = []

    def watched(model, rendered, *args, **kwargs):
        seen.append(tuple(rendered.input_ids.shape))
        return capture_blocks(model, rendered, *args, **kwargs)

    monkeypatch.setattr(import_module("probes.capture"), "capture_blocks", watched)
    return seen


@pytest.mark.parametrize("budget", [1, 40, 100, None])
def test_batches_keep_to_their_tokens(tiny_model, tiny_conversations, seen_batches, budget):
    rows = tiny_conversations * 3
    plain = capture(tiny_model, rows, layers=(1,), batch_size=1)
    seen_batches.clear()
    ours = capture(tiny_model, rows, layers=(1,), batch_size=5, batch_tokens=budget)
    assert torch.allclose(ours.values, plain.values, atol=1e-4)
    assert all(n == 1 or (n <= 5 and n * width <= (budget or 10**9)) for n, width in seen_batches)
    assert sum(n for n, _ in seen_batches) == 12
    tokens = sum(len(one) for one in map(alone_ids(tiny_model), rows))
    assert sum(n * width for n, width in seen_batches) < 1.3 * tokens  # like lengths share a pass


def test_streams_give_what_lists_give(tiny_model, tiny_conversations, tmp_path):
    rows, told = tiny_conversations * 3, []
    save_conversations(rows, tmp_path / "rows.jsonl")
    wanted = capture(tiny_model, rows, layers=(1,), pool="tokens")
    for given in (iter(rows), tmp_path / "rows.jsonl", str(tmp_path / "rows.jsonl")):
        ours = capture(tiny_model, given, layers=(1,), pool="tokens", progress=lambda *report: told.append(report))
        assert torch.equal(ours.conversation_index, wanted.conversation_index)
        torch.testing.assert_close(ours.values, wanted.values, atol=1e-4, rtol=1e-4)
        assert told[-1][:2] == (12, 12 if isinstance(given, str | Path) else 0)
    with pytest.raises(InputError, match="no conversations"):
        capture(tiny_model, iter([]), layers=(1,))


def test_blocks_may_go_by_the_names_of_transformer_lens(tiny_model, tiny_conversations):
    named = capture(tiny_model, tiny_conversations, layers=["blocks.1.hook_mlp_out", "blocks.3.hook_mlp_out"])
    plain = capture(tiny_model, tiny_conversations, layers=[1, 3], site="mlp_out")
    assert named.layers == (1, 3) and named.site == "mlp_out" and torch.equal(named.values, plain.values)
