"""Patching: against plain hooks, and the two cases whose answer is known beforehand."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from geometry import direction_writers, patch_writers
from probes import Conversation, InputError, Model, load_model, render


@pytest.fixture(scope="module")
def twin(tiny_folder):
    """The tiny model, whose attention and MLPs were moved a little."""
    model = load_model(tiny_folder, name="twin")
    g = torch.Generator().manual_seed(3)
    for name, value in model.hf.named_parameters():
        if "self_attn" in name or "mlp" in name:
            value.data = value.data + 0.1 * torch.randn(value.shape, generator=g)
    return model


@pytest.fixture
def pairs(tiny_conversations) -> list[tuple[Conversation, Conversation]]:
    return [(row, row.prompt.answered("I would rather not.")) for row in tiny_conversations[:3]]


def logprob(model: Model, row: Conversation) -> float:
    rendered = render(model.tokenizer, [row])
    with torch.no_grad():
        logits = model.hf(input_ids=rendered.input_ids, attention_mask=rendered.attention_mask).logits[0, :-1]
    chosen = torch.log_softmax(logits.double(), -1).gather(-1, rendered.input_ids[0, 1:, None])[:, 0]
    return float(chosen[rendered.response[0, 1:]].sum())


def patched_by_hooks(base: Model, tuned: Model, row: Conversation, component: tuple[int, str, int]) -> float:
    """One head or MLP of `tuned` set to the base's output, with torch's own hooks, no padding, one row."""
    layer, kind, head = component
    rendered, seen = render(base.tokenizer, [row]), {}
    block: Any = tuned.blocks[layer]
    other: Any = base.blocks[layer]
    if kind == "mlp":
        look = other.mlp.register_forward_hook(lambda _, __, out: seen.update(x=out))
    else:
        look = other.self_attn.o_proj.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    with torch.no_grad():
        base.hf(input_ids=rendered.input_ids, attention_mask=rendered.attention_mask)
    look.remove()
    size = block.self_attn.o_proj.in_features // 2
    mine = slice(head * size, (head + 1) * size)
    weights = [m.self_attn.o_proj.weight.detach()[:, mine].T for m in (other, block)]

    def swap(_, args, out):
        return out + seen["x"][..., mine] @ weights[0] - args[0][..., mine] @ weights[1]

    if kind == "mlp":
        edit = block.mlp.register_forward_hook(lambda _, __, out: seen["x"])
    else:
        edit = block.self_attn.o_proj.register_forward_hook(swap)
    found = logprob(tuned, row)
    edit.remove()
    return found


def test_one_component_by_plain_hooks(tiny_model, twin, tiny_conversations, pairs, vector) -> None:
    writers = direction_writers(tiny_model, twin, tiny_conversations, vector, 2)
    found = patch_writers(tiny_model, twin, pairs, writers, top=(1,), n_random=6, batch_size=4)
    table = found.table.set_index(["kind", "k"])
    for kind, model in (("base", tiny_model), ("tuned", twin)):
        margin = sum(logprob(model, bad) - logprob(model, good) for bad, good in pairs) / len(pairs)
        assert table.loc[(kind, 0), "margin"].item() == pytest.approx(margin, abs=1e-4)
    (component,) = found.components[1]
    by_hooks = [patched_by_hooks(tiny_model, twin, bad, component) for bad, _ in pairs]
    by_hooks = [
        x - patched_by_hooks(tiny_model, twin, good, component) for x, (_, good) in zip(by_hooks, pairs, strict=True)
    ]
    assert table.loc[("top", 1), "margin"].item() == pytest.approx(sum(by_hooks) / len(pairs), abs=1e-4)
    assert found.table["kind"].tolist().count("random") == 6
    assert list(found.summary().columns) == ["k", "top", "random", "low", "high"] and "<table" in found._repr_html_()


def test_heads_too(tiny_model, twin, tiny_conversations, pairs, vector) -> None:
    writers = direction_writers(tiny_model, twin, tiny_conversations, vector, 2)
    only = replace(writers, table=writers.table.query("component == 'head'").reset_index(drop=True))
    found = patch_writers(tiny_model, twin, pairs, only, top=(1,), n_random=1)
    (component,) = found.components[1]
    assert component[1] == "head"
    margin = sum(
        patched_by_hooks(tiny_model, twin, bad, component) - patched_by_hooks(tiny_model, twin, good, component)
        for bad, good in pairs
    )
    assert found.table.loc[2, "margin"] == pytest.approx(margin / len(pairs), abs=1e-4)


def test_everything_patched_is_the_base(tiny_model, twin, tiny_conversations, pairs, vector) -> None:
    writers = direction_writers(tiny_model, twin, tiny_conversations, vector, 3)
    found = patch_writers(tiny_model, twin, pairs, writers, top=(12,), n_random=1)
    last = found.table[found.table["kind"].isin(["top", "random"])]
    assert last["restored"].tolist() == pytest.approx([1.0, 1.0], abs=1e-3)


def test_wrong_input_is_refused(tiny_model, twin, tiny_conversations, pairs, vector) -> None:
    writers = direction_writers(tiny_model, twin, tiny_conversations, vector, 1)
    with pytest.raises(InputError, match="give 1 to 6"):
        patch_writers(tiny_model, twin, pairs, writers, top=(7,))
    with pytest.raises(InputError, match="pair 0"):
        patch_writers(tiny_model, twin, [(pairs[0][0], pairs[1][1])], writers)
    with pytest.raises(InputError, match="at least one"):
        patch_writers(tiny_model, twin, [], writers)
