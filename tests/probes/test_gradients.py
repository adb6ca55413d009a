"""Gradients of losses at a site: against finite differences, whatever the batch and the padding, and nothing left."""

from functools import partial

import pytest
import torch
from torch import Tensor

from probes import InputError, Model, intervene, loss_gradients, render
from probes.judges.margin import response_logprobs


class Nudge:
    """Adds a step at one token of every row."""

    positions = "all"

    def __init__(self, layer: int, site: str, place: int, step: Tensor) -> None:
        self.layers, self.site, self.place, self.step = (layer,), site, place, step

    def __call__(self, activations: Tensor, *, layer: int, mask: Tensor) -> Tensor:
        moved = activations.clone()
        moved[:, self.place] += self.step
        return moved


def rows_of(parts):
    """Gradients of the marked tokens, conversation by conversation."""
    found = {row: part.grads[i][part.mask[i]] for part in parts for i, row in enumerate(part.rows)}
    return [found[row] for row in sorted(found)]


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "resid_mid", "resid_post"])
def test_gradients_are_those_of_the_loss(tiny_model, tiny_conversations, site):
    row = tiny_conversations[:1]
    (part,) = loss_gradients(tiny_model, row, layer=1, site=site)
    step = 1e-2 * torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(1)), dim=0)
    for place in (3, -6):
        ends = []
        for sign in (1, -1):
            with intervene(tiny_model, Nudge(1, site, place, sign * step)):
                ends.append(-float(response_logprobs(tiny_model, row)[0]))
        expected = (ends[0] - ends[1]) / 2
        assert float(part.grads[0, place] @ step) == pytest.approx(expected, rel=2e-2, abs=2e-5)
    sums, counts = response_logprobs(tiny_model, row)
    torch.testing.assert_close(part.losses, -sums, rtol=1e-5, atol=1e-5)
    assert int(part.counts) == int(counts)


def test_rows_do_not_touch_one_another(tiny_model, tiny_conversations):
    alone, together = (
        rows_of(loss_gradients(tiny_model, tiny_conversations, layer=2, batch_size=size)) for size in (1, 4)
    )
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_either_side_may_be_padded(tiny_model, tiny_conversations, monkeypatch):
    left = rows_of(loss_gradients(tiny_model, tiny_conversations, layer=2))
    monkeypatch.setattr("probes.gradients.render", partial(render, padding_side="right"))
    right = rows_of(loss_gradients(tiny_model, tiny_conversations, layer=2))
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_nothing_is_left_behind(tiny_model, tiny_conversations):
    def hooks():
        """Those of transformers itself stay where a test before has asked for hidden states."""
        modules = tiny_model.hf.modules()
        return [(*module._forward_hooks, *module._forward_pre_hooks) for module in modules]

    weights, before = list(tiny_model.hf.parameters()), hooks()
    flags = [weight.requires_grad for weight in weights]
    weights[0].requires_grad_(not flags[0])
    tiny_model.hf.train()
    try:
        list(loss_gradients(tiny_model, tiny_conversations, layer=1))
        assert all(module.training for module in tiny_model.hf.modules())
        assert [weight.requires_grad for weight in weights] == [not flags[0], *flags[1:]]
        assert all(weight.grad is None for weight in weights)
        assert hooks() == before
    finally:
        tiny_model.hf.eval()
        weights[0].requires_grad_(flags[0])


def test_half_precision_gives_float32(tiny_model, tiny_folder, tiny_conversations):
    from probes import load_model

    small = load_model(tiny_folder, dtype=torch.bfloat16)
    (half,), (full,) = (list(loss_gradients(m, tiny_conversations[:1], layer=1)) for m in (small, tiny_model))
    assert half.grads.dtype == half.values.dtype == torch.float32
    assert torch.cosine_similarity(half.grads.flatten(), full.grads.flatten(), dim=0) > 0.98


def test_positions_are_those_of_operators(tiny_model: Model, tiny_conversations):
    kinds = ("all", "prompt", "response", "last_prompt")
    found = {k: next(iter(loss_gradients(tiny_model, tiny_conversations, layer=1, positions=k))) for k in kinds}
    rendered = found["all"].rendered
    assert torch.equal(found["prompt"].mask, rendered.prompt)
    assert torch.equal(found["response"].mask, rendered.response | rendered.last_prompt)
    assert torch.equal(found["all"].mask, rendered.attention_mask.bool())


def test_bad_input(tiny_model, tiny_conversations):
    with pytest.raises(InputError, match="conversation 1 has no answer"):
        list(loss_gradients(tiny_model, [tiny_conversations[0], tiny_conversations[0].prompt], layer=1))
    with pytest.raises(InputError, match=r"layer 9: .* has blocks 0 to 3"):
        list(loss_gradients(tiny_model, tiny_conversations, layer=9))
