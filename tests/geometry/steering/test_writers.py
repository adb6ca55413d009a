"""Who writes a direction: every contribution by plain hooks, and the sum to the projection."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from geometry import PersonaVector, direction_writers
from probes import Conversation, InputError, Model, capture, load_model


def by_hooks(model: Model, row: Conversation, unit: torch.Tensor, layer: int) -> dict[tuple[int, str, int], float]:
    """Contributions on one conversation, from the inputs of o_proj and the outputs of mlp, token by token."""
    from probes import render

    rendered, seen, handles = render(model.tokenizer, [row]), {}, []
    for i, block in enumerate(model.blocks):
        handles.append(
            block.self_attn.o_proj.register_forward_pre_hook(lambda _, a, i=i: seen.update({(i, "z"): a[0]}))
        )
        handles.append(block.mlp.register_forward_hook(lambda _, __, out, i=i: seen.update({(i, "mlp"): out})))
    with torch.no_grad():
        model.hf(input_ids=rendered.input_ids, attention_mask=rendered.attention_mask)
        embedded = model.hf.get_input_embeddings()(rendered.input_ids)
    for handle in handles:
        handle.remove()
    where = rendered.response[0]
    found = {(-1, "embed", -1): float((embedded[0, where] @ unit).mean())}
    for i in range(layer + 1):
        weight = model.blocks[i].self_attn.o_proj.weight.detach()
        size = weight.shape[1] // 2
        for head in range(2):
            part = slice(head * size, (head + 1) * size)
            found[i, "head", head] = float((seen[i, "z"][0, where][:, part] @ weight[:, part].T @ unit).mean())
        found[i, "mlp", -1] = float((seen[i, "mlp"][0, where] @ unit).mean())
    return found


@pytest.fixture(scope="module")
def twin(tiny_folder):
    """The tiny model, all of whose weights were moved a little."""
    model = load_model(tiny_folder, name="twin")
    g = torch.Generator().manual_seed(3)
    for value in model.hf.parameters():
        value.data = value.data + 0.1 * torch.randn(value.shape, generator=g)
    return model


@pytest.mark.parametrize("pool", ["response_mean", "last_prompt", "prompt_mean"])
def test_contributions_sum_to_the_projection(tiny_model, twin, tiny_conversations, vector, pool) -> None:
    found = direction_writers(tiny_model, twin, tiny_conversations, vector, 2, pool=pool, batch_size=3)
    for name, model in (("base", tiny_model), ("tuned", twin)):
        acts = capture(model, tiny_conversations, layers=[2], pool=pool).at(2)
        projection = float(vector.project(acts.double(), 2).mean())
        assert found.projection[name] == pytest.approx(projection, abs=1e-4)
        assert found.table[name].sum() == pytest.approx(projection, abs=1e-4)
    assert found.table["shift"].sum() == pytest.approx(found.projection["tuned"] - found.projection["base"], abs=1e-4)
    assert len(found.table) == 1 + 3 * (2 + 1) and found.table["layer"].max() == 2


def test_each_contribution_by_plain_hooks(tiny_model: Model, twin: Model, tiny_conversations, vector) -> None:
    found = direction_writers(tiny_model, twin, tiny_conversations, vector, 3)
    for name, model in (("base", tiny_model), ("tuned", twin)):
        rows = [by_hooks(model, row, vector.unit(3), 3) for row in tiny_conversations]
        for line in found.table.to_dict("records"):
            key = (line["layer"], line["component"], line["head"])
            assert line[name] == pytest.approx(sum(row[key] for row in rows) / len(rows), abs=1e-5)
    top = found.top(3)
    assert len(top) == 3 and top["shift"].abs().is_monotonic_decreasing
    assert "<table" in found._repr_html_()


def test_models_stay_as_they_were(tiny_model: Model, tiny_conversations, vector) -> None:
    before = {name: value.clone() for name, value in tiny_model.hf.state_dict().items()}
    direction_writers(tiny_model, tiny_model, tiny_conversations[:1], vector, 1)
    after = tiny_model.hf.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert isinstance(tiny_model.hf, LlamaForCausalLM)


def test_adapters_count(tiny_model: Model, tiny_tuned: Model, tiny_conversations, vector) -> None:
    found = direction_writers(tiny_model, tiny_tuned, tiny_conversations, vector, 1)
    acts = capture(tiny_tuned, tiny_conversations, layers=[1]).at(1)
    assert found.projection["tuned"] == pytest.approx(float(vector.project(acts, 1).mean()), abs=1e-4)
    assert abs(found.table["shift"]).max() > 1e-3


def test_biases_and_position_embeddings(tiny_tokenizer, tiny_conversations) -> None:
    config = GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=256)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = GPT2LMHeadModel(config).eval()
    for name, value in hf.named_parameters():
        if name.endswith("bias"):
            value.data = value.data + 0.3
    model = load_model(hf, tokenizer=tiny_tokenizer, name="gpt2-like")
    vector = PersonaVector({1: torch.arange(32.0)}, model="gpt2-like")
    found = direction_writers(model, model, tiny_conversations, vector, 1)
    acts = capture(model, tiny_conversations, layers=[1]).at(1)
    assert found.table["base"].sum() == pytest.approx(float(vector.project(acts, 1).mean()), abs=1e-4)
    assert set(found.table["component"]) == {"embed", "head", "attn_bias", "mlp"}


def test_norms_behind_attention_are_refused(tiny_tokenizer, tiny_conversations) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Gemma2Config(vocab_size=len(tiny_tokenizer), num_key_value_heads=2, head_dim=16, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = load_model(Gemma2ForCausalLM(config).eval(), tokenizer=tiny_tokenizer, name="gemma-like")
    vector = PersonaVector({1: torch.arange(32.0)}, model="gemma-like")
    with pytest.raises(InputError, match="does not simply add up its heads"):
        direction_writers(model, model, tiny_conversations, vector, 1)


def test_writer_refusals(tiny_model: Model, tiny_conversations, vector) -> None:
    for words, rows, layer in (
        ("no conversations", [], 1),
        ("no answer", [tiny_conversations[0].prompt], 1),
        ("blocks 0 to 3", tiny_conversations, 4),
        ("directions for blocks", tiny_conversations, 0),
    ):
        with pytest.raises(InputError, match=words):
            direction_writers(tiny_model, tiny_model, rows, vector, layer)
