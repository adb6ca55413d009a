"""Steps: what is trained equals what sae-lens's own `SAETrainer.fit` makes of the same batches, set up by hand here."""

import math

import pytest
import torch
from sae_lens import SAETrainer
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import SAEMetadata

from saes import SAERecipe, load_sae, train_sae
from saes.train.native import make_trainer
from saes.train.recipe import ARCHITECTURES, SPARSE
from saes.train.source import open_source
from saes.train.sparse import take_step
from saes.train.survey import survey

STEPS, BATCH, LR = 45, 256, 4e-3
OWN = {
    "topk": {"k": 3},
    "batchtopk": {"k": 3.0, "topk_threshold_lr": 20 / STEPS},
    "matryoshka_batchtopk": {"k": 3.0, "topk_threshold_lr": 20 / STEPS, "matryoshka_widths": [10, 30, 48]},
    "jumprelu": {
        "jumprelu_sparsity_loss_mode": "quadratic",
        "target_l0": 3.0,
        "l0_coefficient": 0.7,
        "l0_warm_up_steps": 2,
    },
    "gated": {"l1_coefficient": 0.7, "l1_warm_up_steps": 2},
    "standard": {"l1_coefficient": 0.7, "l1_warm_up_steps": 2},
}


def endless(x):
    """Pass after pass, each in its own order; what a pass leaves over begins the next."""
    rest, number = x[:0], 0
    while True:
        rest = torch.cat([rest, x[torch.randperm(len(x), generator=torch.Generator().manual_seed(number))]])
        while len(rest) >= BATCH:
            yield rest[:BATCH]
            rest = rest[BATCH:]
        number += 1


def middle_of(x):
    """The point that every row pulls at with the same force, and those that lie on it hold fast."""
    at = x.double().mean(0)
    for _ in range(2000):
        away = x.double() - at
        weights = 1 / away.norm(dim=-1).clamp_min(1e-7)
        at = at + (weights @ away) / weights.sum()
    away = x.double() - at
    far = away.norm(dim=-1) > 1e-5
    assert torch.nn.functional.normalize(away[far], dim=-1).sum(0).norm() <= 1e-5 + float((~far).sum())
    return at


def fitted(x, architecture):
    """sae-lens alone: its classes, its `fit`, its folding, its file format."""
    kind, config = get_sae_training_class(architecture)
    meta = SAEMetadata(model_name="", hook_name="blocks.1.hook_resid_post")
    scale = math.sqrt(x.shape[1]) / x.double().norm(dim=-1).mean().item()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        sae = kind(config(d_in=16, d_sae=48, decoder_init_norm=1.0, metadata=meta, **OWN[architecture]))
    sae.b_dec.data.copy_(middle_of(x) * scale)
    settings = {"lr": LR, "lr_end": LR, "lr_warm_up_steps": STEPS // 20, "lr_decay_steps": STEPS // 3}
    settings |= {"total_training_samples": STEPS * BATCH, "train_batch_size_samples": BATCH}
    trainer = SAETrainer(SAETrainerConfig(dead_feature_window=50, **settings), sae, data_provider=endless(x))
    trainer.activation_scaler.scaling_factor = scale
    trainer.fit()
    if architecture not in SPARSE:
        sae.fold_W_dec_norm()
    return sae


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_equals_the_fit_of_sae_lens(planted, tmp_path, architecture):
    x = planted.x[:5000]
    _, number, counts = x.unique(dim=0, return_inverse=True, return_counts=True)
    x = x[counts[number] == 1][:4000]  # a row that is the bias itself would choose its latents by rounding
    fitted(x, architecture).save_inference_model(tmp_path / "theirs")
    counted = {"k": 3} if "k" in OWN[architecture] or architecture == "jumprelu" else {}
    widths = {"widths": (10, 30, 48)} if architecture.startswith("matryoshka") else {}
    recipe = SAERecipe(
        architecture=architecture,
        d_sae=48,
        steps=STEPS,
        lr=LR,
        batch=BATCH,
        sparsity=0.0 if architecture in SPARSE else 0.7,
        held_out=0.0,
        max_norm=None,
        unit_rows=False,
        revive=1.0,
        **counted,
        **widths,
    )
    ours = train_sae(x, layer=1, seed=5, out=tmp_path / "ours", recipe=recipe)
    theirs = load_sae(tmp_path / "theirs")
    assert ours.kind == theirs.kind
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        mine, wanted = getattr(ours, name), getattr(theirs, name)
        if wanted is None:
            assert mine is None
        else:
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("architecture", SPARSE)
def test_silent_latents_are_revived_as_in_sae_lens(architecture):
    g = torch.Generator().manual_seed(0)
    batches = torch.randn(30, 64, 16, generator=g) @ torch.randn(16, 32, generator=g) / 4
    recipe = SAERecipe(architecture=architecture, d_sae=512, k=3, steps=30, lr=1e-3, batch=64, unit_rows=False)
    found = survey(open_source(batches.flatten(0, 1), (0,), recipe), recipe)[0]
    sides = [make_trainer(recipe, found, seed=0, names={}, device="cpu") for _ in range(2)]
    silent = []
    for trainer in sides:
        trainer.cfg.dead_feature_window = 2
    for batch in batches:
        losses = [take_step(sides[0], batch).loss, sides[1].step(batch).loss.detach()]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=0)
        silent.append(int(sides[0].dead_neurons.sum()))
    assert max(silent) > 100
    for mine, wanted in zip(*(trainer.sae.state_dict().values() for trainer in sides), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=2e-3 * float(wanted.abs().max()))
    for name in ("act_freq_scores", "n_forward_passes_since_fired"):
        both = torch.stack([getattr(trainer, name) for trainer in sides])
        assert (both[0] != both[1]).float().mean() < 0.02, name
    assert sides[0].n_frac_active_samples == sides[1].n_frac_active_samples == 30 * 64


def test_rows_of_length_one_by_plain_autograd(planted):
    """Dense top-k, the gradient's part along each decoder row taken away, Adam, rows back to length 1."""
    recipe = SAERecipe(d_sae=48, k=3, steps=STEPS, lr=LR, batch=BATCH, max_norm=None, held_out=0.0, revive=0.0)
    found = survey(open_source(planted.x[:5000], (0,), recipe), recipe)[0]
    ours, plain = (make_trainer(recipe, found, seed=5, names={}, device="cpu") for _ in range(2))
    sae, scale = plain.sae, plain.activation_scaler.scaling_factor
    for _, batch in zip(range(STEPS), endless(planted.x[:5000]), strict=False):
        take_step(ours, batch)
        x = batch * scale
        pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
        kept = torch.zeros_like(pre).scatter(-1, pre.topk(3).indices, 1.0)
        (x - (pre * kept).relu() @ sae.W_dec - sae.b_dec).square().sum(-1).mean().backward()
        grad, rows = sae.W_dec.grad, sae.W_dec.data
        for i in range(48):
            grad[i] -= (grad[i] @ rows[i]) / (rows[i] @ rows[i]) * rows[i]
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        plain.optimizer.step()
        plain.optimizer.zero_grad()
        plain.lr_scheduler.step()
        sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    for name, wanted in sae.state_dict().items():
        torch.testing.assert_close(ours.sae.state_dict()[name], wanted, rtol=1e-3, atol=1e-4)
