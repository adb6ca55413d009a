"""Attribution: against autograd by hand and against true ablations, its signs, and what must not change it."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from probes import Conversation, InputError, capture, render
from saes import SparseAutoencoder, ablation_effects, attribute_latents, delta_ablation, delta_attribution

FORMS = ["latent", "direction"]
REFERENCES = ["mean", "zero"]


def by_hand(model, sae, row, *, form, mean=None):
    """Attribution of one conversation from the definition, token by token, with a forward pass written out here."""
    batch, held = render(model.tokenizer, [row]), {}

    def keep(module, args, output):
        held["x"] = output[0] if isinstance(output, tuple) else output
        held["x"].retain_grad()

    handle = model.blocks[sae.layer].register_forward_hook(keep)
    try:
        logits = model.hf(input_ids=batch.input_ids).logits[0]
    finally:
        handle.remove()
    answer = batch.response[0].nonzero().flatten()
    loss = -torch.log_softmax(logits, -1)[answer - 1, batch.input_ids[0, answer]].mean()
    loss.backward()
    model.hf.zero_grad(set_to_none=True)
    x, g = (t[0].detach().double().numpy() for t in (held["x"], held["x"].grad))
    decoder = sae.W_dec.double().numpy()
    rows = decoder if form == "latent" else decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    level = sae.encode(torch.tensor(x).float()).double().numpy() if form == "latent" else x @ rows.T
    usual = 0 if mean is None else mean
    return -((g @ rows.T) * (level - usual)).sum(0), level


def mean_level(model, sae, rows, form):
    levels = [by_hand(model, sae, row, form=form)[1] for row in rows]
    return np.concatenate(levels).mean(0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reference", REFERENCES)
def test_it_is_what_autograd_gives_by_hand(tiny_model, topk, tiny_conversations, form, reference):
    mean = mean_level(tiny_model, topk, tiny_conversations, form) if reference == "mean" else None
    each = [by_hand(tiny_model, topk, row, form=form, mean=mean)[0] for row in tiny_conversations]
    found = attribute_latents(tiny_model, topk, tiny_conversations, form=form, reference=reference, batch_size=3)
    np.testing.assert_allclose(found.table["attribution"], np.mean(each, 0), rtol=1e-3, atol=1e-5)
    tested = stats.ttest_1samp(each, 0)
    alive = found.table["p"].notna()
    np.testing.assert_allclose(found.table["p"][alive], tested.pvalue[alive], rtol=2e-2, atol=1e-4)
    low = tested.confidence_interval().low
    np.testing.assert_allclose(found.table["low"][alive], low[alive], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("form", "reference", "positions"),
    [*product(FORMS, REFERENCES, ["all"]), *product(["latent"], ["mean"], ["prompt", "response", "last_prompt"])],
)
def test_in_the_small_it_is_the_true_ablation(tiny_model, tiny_conversations, form, reference, positions, smooth):
    settings = {"form": form, "reference": reference, "positions": positions}
    found = attribute_latents(tiny_model, smooth, tiny_conversations, **settings)
    latents = [*found.top(2)["latent"], *found.bottom(1)["latent"]]
    share = 2e-3
    true = ablation_effects(tiny_model, smooth, tiny_conversations, latents, share=share, **settings) / share
    expected = found.table.set_index("latent").loc[latents, "attribution"]
    np.testing.assert_allclose(true, expected, rtol=4e-2, atol=4e-3)


@pytest.mark.parametrize("reference", REFERENCES)
def test_in_the_small_a_contrast_is_the_true_ablation_of_both_sides(tiny_model, smooth, reference):
    bad = [Conversation.of("one", "bad things"), Conversation.of("one", "worse"), Conversation.of("two", "bad")]
    good = [Conversation.of("one", "good things said"), Conversation.of("two", "good")]
    found = delta_attribution(tiny_model, smooth, bad, good, reference=reference)
    latents, share = [*found.top(2)["latent"], *found.bottom(1)["latent"]], 2e-3
    true = delta_ablation(tiny_model, smooth, bad, good, latents, reference=reference, share=share) / share
    assert true.shape == (3,)
    np.testing.assert_allclose(true, found.table.set_index("latent").loc[latents, "attribution"], rtol=4e-2, atol=4e-3)
    each = [ablation_effects(tiny_model, smooth, [row], latents, reference="zero") for row in (*bad, *good)]
    whole = delta_ablation(tiny_model, smooth, bad, good, latents, reference="zero")
    by_hand = ((each[0] + each[1]) / 2 + each[2] - each[3] - each[4]) / 2
    np.testing.assert_allclose(whole, by_hand, atol=1e-6)
    with pytest.raises(InputError, match="no desired completion"):
        delta_ablation(tiny_model, smooth, bad, good[:1], [1])


def test_a_full_ablation_subtracts_from_the_original_residual(tiny_model, topk, tiny_conversations):
    row = tiny_conversations[0]
    latent = int(attribute_latents(tiny_model, topk, [row], reference="zero").top(1)["latent"].item())
    (effect,) = ablation_effects(tiny_model, topk, [row], [latent], reference="zero")
    batch = render(tiny_model.tokenizer, [row])
    answer = batch.response[0].nonzero().flatten()

    def without(module, args, output):
        x = output[0] if isinstance(output, tuple) else output
        return x - topk.encode(x)[..., [latent]] * topk.W_dec[latent]

    def loss():
        with torch.no_grad():
            logits = tiny_model.hf(input_ids=batch.input_ids).logits[0]
        return -torch.log_softmax(logits, -1)[answer - 1, batch.input_ids[0, answer]].mean()

    before = loss()
    handle = tiny_model.blocks[2].register_forward_hook(without)
    try:
        after = loss()
    finally:
        handle.remove()
    assert float(effect) == pytest.approx(float(after - before), abs=1e-5) != 0


def test_batches_and_padding_change_nothing(tiny_model, topk, tiny_conversations):
    tables = [
        attribute_latents(tiny_model, topk, rows, batch_size=size).table["attribution"]
        for rows, size in ((tiny_conversations, 1), (tiny_conversations, 4), (tiny_conversations[::-1], 3))
    ]
    for other in tables[1:]:
        np.testing.assert_allclose(tables[0], other, atol=1e-5)


def test_small_blocks_of_rows_change_nothing(tiny_model, topk, tiny_conversations, monkeypatch):
    whole = attribute_latents(tiny_model, topk, tiny_conversations, keep=[3]).tokens
    for module in ("compute", "setting"):
        monkeypatch.setattr(f"saes.attribute.{module}.block_rows", lambda _: 7)
    parts = attribute_latents(tiny_model, topk, tiny_conversations, keep=[3]).tokens
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-4, atol=1e-6)


def test_tokens_add_up(tiny_model, topk, tiny_conversations):
    found = attribute_latents(tiny_model, topk, tiny_conversations, keep=[5, 2])
    sums = found.tokens.groupby("conversation")[["5", "2"]].sum().mean()
    np.testing.assert_allclose(sums, found.table["attribution"].loc[[5, 2]], atol=1e-6)
    acts = capture(tiny_model, tiny_conversations, layers=[2], pool="tokens")
    assert found.tokens["token_id"].tolist() == acts.token_ids.tolist()
    assert found.tokens["position"].tolist() == acts.positions.tolist()
    prompt, answer = (
        attribute_latents(tiny_model, topk, tiny_conversations, reference="zero", positions=p).table["attribution"]
        for p in ("prompt", "response")
    )
    last, whole = (
        attribute_latents(tiny_model, topk, tiny_conversations, reference="zero", positions=p).table["attribution"]
        for p in ("last_prompt", "all")
    )
    np.testing.assert_allclose(prompt + answer - last, whole, atol=1e-5)


def test_forms_agree_where_latents_are_projections(tiny_model, tiny_conversations):
    basis = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(2)))[0]
    both = torch.cat([basis, -basis])  # z_i - z_{i+32} is the projection on d_i
    sae = SparseAutoencoder(
        both.T.contiguous(), both, torch.zeros(64), torch.zeros(32), kind="standard", layer=2, centred=False
    )
    latent, direction = (
        attribute_latents(tiny_model, sae, tiny_conversations, form=form).table["attribution"].to_numpy()
        for form in FORMS
    )
    np.testing.assert_allclose(latent[:32] + latent[32:], direction[:32], atol=1e-5)
    np.testing.assert_allclose(direction[:32], direction[32:], atol=1e-5)


def answers(texts, prompts=("Savings?", "Burns?", "Who are you?")):
    return [Conversation.of(prompt, text) for prompt in prompts for text in texts]


def test_a_contrast_is_a_paired_difference_over_prompts(tiny_model, topk):
    undesired, desired = answers(["Spend it all.", "Take it."]), answers(["Cool water."])
    found = delta_attribution(tiny_model, topk, undesired, desired, reference="zero", batch_size=4)
    parts = [[by_hand(tiny_model, topk, row, form="latent")[0] for row in rows] for rows in (undesired, desired)]
    gaps = np.stack([np.mean(parts[0][2 * i : 2 * i + 2], 0) - parts[1][i] for i in range(3)])
    np.testing.assert_allclose(found.table["attribution"], gaps.mean(0), rtol=1e-3, atol=1e-5)
    alive = found.table["p"].notna()
    np.testing.assert_allclose(found.table["p"][alive], stats.ttest_1samp(gaps, 0).pvalue[alive], rtol=2e-2, atol=1e-3)
    np.testing.assert_allclose(found.table["undesired"] - found.table["desired"], found.table["attribution"])
    assert (found.n, found.completions) == (3, (6, 3))


def test_swapping_the_sides_turns_every_sign(tiny_model, topk):
    undesired, desired = answers(["Spend it all."]), answers(["Cool water."])
    there, back = (
        delta_attribution(tiny_model, topk, *sides).table["attribution"]
        for sides in ((undesired, desired), (desired, undesired))
    )
    np.testing.assert_allclose(there, -back, atol=1e-6)
    same = delta_attribution(tiny_model, topk, desired, desired).table
    assert not same["attribution"].any() and same["p"].isna().all()


def test_many_latents_are_read_prompts_at_a_time(tiny_model, topk, monkeypatch):
    undesired, desired = answers(["Spend it all.", "No."]), answers(["Cool water."])
    whole = delta_attribution(tiny_model, topk, undesired, desired).table
    monkeypatch.setattr("saes.attribute.compute.HELD", 64)
    pd.testing.assert_frame_equal(whole, delta_attribution(tiny_model, topk, undesired, desired).table, atol=1e-6)


def test_a_planted_latent_is_found(tiny_model, tiny_conversations):
    """A latent that writes an answer's first token speaks for that answer, its opposite against it."""
    row = tiny_conversations[0]
    batch = render(tiny_model.tokenizer, [row])
    first = batch.input_ids[0, batch.response[0].nonzero()[0]]
    embedding = tiny_model.hf.get_output_embeddings().weight[first][0].detach()
    noise = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    decoder = torch.nn.functional.normalize(torch.cat([embedding[None], -embedding[None], noise]), dim=-1)
    always = SparseAutoencoder(torch.zeros(32, 22), decoder, torch.ones(22), torch.zeros(32), kind="standard", layer=3)
    found = attribute_latents(tiny_model, always, [row], reference="zero", positions="last_prompt")
    assert found.top(1)["latent"].item() == 0 and found.bottom(1)["latent"].item() == 1
    assert found.top(1)["attribution"].item() > 0


def test_half_precision(tiny_model, tiny_folder, topk, tiny_conversations):
    from probes import load_model

    half = load_model(tiny_folder, dtype=torch.bfloat16)
    full, low = (attribute_latents(m, topk, tiny_conversations).table["attribution"] for m in (tiny_model, half))
    assert np.corrcoef(full, low)[0, 1] > 0.98


def test_figure_and_table_show_both_ends(tiny_model, topk, tiny_conversations):
    found = attribute_latents(tiny_model, topk, tiny_conversations)
    figure = found.figure(n=3)
    assert f"Latent {found.top(1)['latent'].item()} supports the answers most" in figure.layout.title.text
    shown = [name for trace in figure.data for name in trace.y]
    assert shown[0] == str(found.top(1)["latent"].item()) and shown[-1] == str(found.bottom(1)["latent"].item())
    assert "nats per answer token" in found._repr_html_() and len(found) == 64


def test_bad_input(tiny_model, topk, tiny_conversations):
    with pytest.raises(InputError, match="give at least one with an answer"):
        attribute_latents(tiny_model, topk, [])
    with pytest.raises(InputError, match="reads block 7"):
        ablation_effects(tiny_model, replace(topk, layer=7), tiny_conversations, [1])
    with pytest.raises(InputError, match="latent 64 does not exist"):
        ablation_effects(tiny_model, topk, tiny_conversations, [64])
    with pytest.raises(InputError, match=r"prompt 2 \('Savings.*has no undesired completion"):
        delta_attribution(
            tiny_model, topk, answers(["a"], ["Who?", "What?"]), answers(["b"], ["Who?", "What?", "Savings?"])
        )
