"""Reading and editing the blocks' outputs: at the right block, at the right tokens, leaving nothing behind."""

from dataclasses import dataclass, field

import pytest
import torch

from probes import Conversation, InputError, capture_blocks, intervene, render, teacher_forced
from probes.hooks import active_positions


@dataclass
class Push:
    """Adds `amount` to every coordinate at the masked positions, and notes the masks it is called with."""

    layers: tuple[int, ...] = (1,)
    positions: str = "all"
    amount: float = 1.0
    seen: list = field(default_factory=list)

    def __call__(self, activations, *, layer, mask):
        self.seen.append(mask.clone())
        return activations + self.amount * mask[..., None]


@dataclass
class PushRows(Push):
    """Adds another amount to each conversation."""

    amounts: tuple[float, ...] = ()

    def for_rows(self, rows):
        return PushRows(self.layers, self.positions, amounts=tuple(self.amounts[i] for i in rows))

    def __call__(self, activations, *, layer, mask):
        return activations + torch.tensor(self.amounts)[:, None, None] * mask[..., None]


def hidden_states(model, rendered):
    with torch.no_grad():
        inputs = {"attention_mask": rendered.attention_mask, "position_ids": rendered.position_ids}
        return model.hf(rendered.input_ids, output_hidden_states=True, **inputs).hidden_states


@pytest.mark.parametrize("name", ["tiny_model", "tiny_tuned"])
def test_capture_equals_hidden_states(request, name, tiny_conversations):
    model = request.getfixturevalue(name)
    rendered = render(model.tokenizer, tiny_conversations)
    values = capture_blocks(model, rendered, (2, 0))
    real = rendered.attention_mask.bool()
    for value, layer in zip(values, (2, 0), strict=True):
        assert torch.allclose(value[real], hidden_states(model, rendered)[layer + 1][real], atol=1e-5)


def test_last_block_is_before_the_final_norm(tiny_model, tiny_conversations):
    rendered = render(tiny_model.tokenizer, tiny_conversations)
    last = capture_blocks(tiny_model, rendered, (3,))[0]
    normed = hidden_states(tiny_model, rendered)[-1]
    assert not torch.allclose(last, normed, atol=1e-2)
    assert torch.allclose(tiny_model.hf.model.norm(last), normed, atol=1e-5)


def test_batch_and_padding_do_not_matter(tiny_model, tiny_conversations):
    layers = range(4)
    left, right = (render(tiny_model.tokenizer, tiny_conversations, padding_side=side) for side in ("left", "right"))
    ours, theirs = (capture_blocks(tiny_model, part, layers)[:, part.attention_mask.bool()] for part in (left, right))
    singles = [
        capture_blocks(tiny_model, render(tiny_model.tokenizer, [row]), layers)[:, 0] for row in tiny_conversations
    ]
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert torch.allclose(ours, torch.cat(singles, dim=1), atol=1e-4)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


def test_capture_leaves_before_the_blocks_above_and_leaves_no_hook(tiny_model, tiny_conversations):
    calls, before = [], hooks(tiny_model)
    handle = tiny_model.blocks[2].register_forward_hook(lambda *_: calls.append(1))
    try:
        capture_blocks(tiny_model, render(tiny_model.tokenizer, tiny_conversations), (1,))
    finally:
        handle.remove()
    assert calls == [] and hooks(tiny_model) == before


@pytest.mark.parametrize(("layers", "told"), [((), "no layers"), ((4,), "blocks 0 to 3")])
def test_capture_refuses_bad_layers(tiny_model, tiny_conversations, layers, told):
    with pytest.raises(InputError, match=told):
        capture_blocks(tiny_model, render(tiny_model.tokenizer, tiny_conversations), layers)


def test_hooks_are_removed_after_an_error(tiny_model, tiny_conversations):
    class Broken(Push):
        def __call__(self, activations, *, layer, mask):
            raise RuntimeError("broken")

    before = hooks(tiny_model)
    with pytest.raises(RuntimeError, match="broken"), intervene(tiny_model, Broken()):
        capture_blocks(tiny_model, render(tiny_model.tokenizer, tiny_conversations), (3,))
    assert hooks(tiny_model) == before


def test_active_positions_follow_the_mask_on_both_sides():
    mask = torch.tensor([[0, 1, 1], [1, 1, 0], [1, 1, 1]]).bool()
    found = active_positions(mask, past=0)
    assert found["last_prompt"].int().tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert found["response"].equal(found["last_prompt"]) and found["prompt"].equal(mask)
    later = active_positions(torch.ones(3, 1, dtype=torch.bool), past=3)
    assert later["response"].all() and later["all"].all()
    assert not later["prompt"].any() and not later["last_prompt"].any()


@pytest.mark.parametrize("name", ["tiny_model", "tiny_tuned"])
@pytest.mark.parametrize(
    ("positions", "expected"), [("response", 3), ("last_prompt", 1), ("prompt", None), ("all", None)]
)
def test_generation_steers_the_right_tokens(request, name, positions, expected, tiny_conversations):
    model = request.getfixturevalue(name)
    rendered = render(model.tokenizer, [row.prompt for row in tiny_conversations])
    push = Push(positions=positions)
    with model.intervene(push):
        model.hf.generate(
            input_ids=rendered.input_ids,
            attention_mask=rendered.attention_mask,
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
        )
    prefill, *steps = push.seen
    lengths = rendered.attention_mask.sum(-1)
    counts = prefill.sum(-1) + sum(step.sum(-1) for step in steps)
    # three tokens are written, of which two are read again
    wanted = {"prompt": lengths, "all": lengths + 2}.get(positions)
    assert counts.tolist() == ([expected] * len(lengths) if wanted is None else wanted.tolist())
    assert len(steps) == 2


def test_steered_generation_equals_steered_reading(tiny_model):
    """With a filled cache and without, the same tokens are steered: greedy continuations and re-reading agree."""
    rendered = render(tiny_model.tokenizer, [Conversation.of("How are you?"), Conversation.of("Who?")])
    push = Push(layers=(1, 2), positions="response", amount=0.7)
    with intervene(tiny_model, push):
        options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        out = tiny_model.hf.generate(
            input_ids=rendered.input_ids,
            attention_mask=rendered.attention_mask,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    width = rendered.input_ids.shape[1]
    mask = torch.cat([rendered.attention_mask, torch.ones(2, 4, dtype=torch.long)], dim=1)
    steered = torch.zeros_like(mask, dtype=torch.bool)
    steered[:, width - 1 :] = True
    with torch.no_grad(), intervene(tiny_model, push, mask=steered):
        logits = tiny_model.hf(
            out.sequences, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)
        ).logits
    assert torch.allclose(torch.stack(out.logits, dim=1), logits[:, width - 1 : -1], atol=1e-4)


def test_capture_inside_an_intervention_uses_the_rendered_masks(tiny_model, tiny_conversations):
    rendered = render(tiny_model.tokenizer, tiny_conversations)
    plain = capture_blocks(tiny_model, rendered, (1,))
    wanted = {
        "response": rendered.response | rendered.last_prompt,
        "prompt": rendered.prompt,
        "last_prompt": rendered.last_prompt,
        "all": rendered.attention_mask.bool(),
    }
    for positions, mask in wanted.items():
        with intervene(tiny_model, Push(positions=positions)):
            pushed = capture_blocks(tiny_model, rendered, (1,))
        assert torch.allclose(pushed - plain, mask[None, ..., None].expand_as(plain).float(), atol=1e-5)


def test_operators_apply_in_order_and_opposites_cancel(tiny_model, tiny_conversations):
    rendered = render(tiny_model.tokenizer, tiny_conversations)
    plain = capture_blocks(tiny_model, rendered, (3,))
    with intervene(tiny_model, Push(amount=2.0), Push(amount=-2.0)):
        assert torch.allclose(capture_blocks(tiny_model, rendered, (3,)), plain, atol=1e-4)
    with intervene(tiny_model, Push(amount=2.0)), intervene(tiny_model, Push(amount=-2.0)):
        assert torch.allclose(capture_blocks(tiny_model, rendered, (3,)), plain, atol=1e-4)


def test_an_explicit_mask_must_fit(tiny_model, tiny_conversations):
    rendered = render(tiny_model.tokenizer, tiny_conversations)
    with (
        pytest.raises(InputError, match="one mask per token"),
        intervene(tiny_model, Push(), mask=torch.ones(1, 2).bool()),
    ):
        capture_blocks(tiny_model, rendered, (1,))


def test_operators_of_single_rows_are_bound(tiny_model, tiny_conversations):
    rendered = render(tiny_model.tokenizer, tiny_conversations[:2])
    plain = capture_blocks(tiny_model, rendered, (1,))
    with intervene(tiny_model, PushRows(amounts=(0.0, 1.0, 5.0))):
        pushed = capture_blocks(tiny_model, rendered, (1,), rows=[2, 0])
    real = rendered.attention_mask.bool()
    assert torch.allclose((pushed - plain)[0, 0][real[0]], torch.tensor(5.0), atol=1e-5)
    assert torch.equal(pushed[0, 1], plain[0, 1])


def test_teacher_forcing_ends_with_its_context(tiny_model, tiny_conversations):
    rendered = render(tiny_model.tokenizer, tiny_conversations)
    push = Push(positions="prompt")
    with intervene(tiny_model, push), torch.no_grad():
        with teacher_forced(rendered):
            tiny_model.hf(rendered.input_ids, attention_mask=rendered.attention_mask)
        tiny_model.hf(rendered.input_ids, attention_mask=rendered.attention_mask)
    assert push.seen[0].equal(rendered.prompt) and push.seen[1].equal(rendered.attention_mask.bool())


@pytest.mark.parametrize(
    ("operator", "told"),
    [(lambda x: x, "callable with layers"), (Push(layers=(9,)), "blocks 0 to 3"), (Push(positions="some"), "'some'")],
)
def test_bad_operators(tiny_model, operator, told):
    with pytest.raises(InputError, match=told), intervene(tiny_model, operator):
        pass


def test_gradients_flow_through_an_intervention(tiny_model):
    rendered = render(tiny_model.tokenizer, [Conversation.of("Hi?", "Ho.")])
    with intervene(tiny_model, Push()):
        logits = tiny_model.hf(rendered.input_ids, attention_mask=rendered.attention_mask).logits
    assert logits.requires_grad
