"""Training: it finds a planted dictionary, repeats itself to the byte, and equals sae-lens' own loop."""

import json
from itertools import islice

import pytest
import torch

from probes import Activations, ActivationStore, InputError
from saes import quality, train_sae
from saes.train import _initial, _moments, _run, _trainer, endless_batches


def test_it_recovers_the_planted_directions(trained, planted):
    best = (trained.sae.directions @ planted.directions.T).max(0).values
    assert best.median() > 0.99 and best.min() > 0.85
    assert quality(trained.sae, planted.x).fvu < 0.1


def test_what_is_returned_and_what_is_saved(trained, planted):
    sae = trained.sae
    assert (sae.kind, sae.k, sae.d_sae, sae.layer, sae.model_name) == ("topk", 3, 48, 1, "planted")
    assert sae.hook == "blocks.1.hook_resid_post"
    assert sorted(path.name for path in trained.folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    assert json.loads((trained.folder / "cfg.json").read_text())["normalize_activations"] == "none"
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(48))
    error = sae.decode(sae.encode(planted.x)) - planted.x
    assert error.norm(dim=-1).mean() < 0.3 * (planted.x - planted.x.mean(0)).norm(dim=-1).mean()


def test_same_seed_same_bytes_and_no_trace_in_the_random_state(trained, planted, tmp_path, capfd):
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    recipe = trained.recipe | {"steps": 40}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(len(name))
        train_sae(planted.x, out=tmp_path / name, **recipe | {"seed": seed})
    torch.manual_seed(123)
    assert torch.equal(torch.random.get_rng_state(), before)
    files = {
        name: [(tmp_path / name / f).read_bytes() for f in ("cfg.json", "sae_weights.safetensors")] for name in "abc"
    }
    assert files["a"] == files["b"] != files["c"]
    assert capfd.readouterr() == ("", "")


def test_the_global_generator_is_left_alone(planted, tmp_path, trained):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train_sae(planted.x, out=tmp_path / "sae", **trained.recipe | {"steps": 2})
    assert torch.equal(torch.rand(3), expected)


def test_the_loop_equals_the_fit_of_sae_lens(planted):
    weights = []
    for ours in (True, False):
        n, mean, norm = _moments(planted.x, 1)
        assert n == len(planted.x)
        sae = _initial(mean, norm, d_sae=48, k=3, seed=0, names={"model_name": "m", "hook_name": "h"})
        trainer = _trainer(sae, steps=60, lr=5e-3, batch=128)
        trainer.activation_scaler.scaling_factor = 4 / norm
        batches = endless_batches(lambda: iter([planted.x]), 128, torch.Generator().manual_seed(0))
        if ours:
            _run(trainer, batches, 60, lambda *_: None)
        else:
            trainer.data_provider = batches
            trainer.fit()
        assert trainer.n_training_samples == 60 * 128
        weights.append(sae.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_scale_of_the_activations_does_not_matter(planted, trained, tmp_path):
    recipe = trained.recipe | {"steps": 30}
    small = train_sae(planted.x / 1024, out=tmp_path / "small", **recipe)
    large = train_sae(planted.x, out=tmp_path / "large", **recipe)
    torch.testing.assert_close(small.directions, large.directions, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        small.encode(planted.x[:50] / 1024) * 1024, large.encode(planted.x[:50]), rtol=0, atol=0.05
    )


def test_batches_visit_each_row_once_a_pass():
    x = torch.arange(10.0)[:, None]
    chunks = lambda: iter([x[:7], x[7:]])  # noqa: E731
    batches = list(islice(endless_batches(chunks, 5, torch.Generator().manual_seed(0)), 4))
    for first, second in (batches[:2], batches[2:]):
        assert sorted(torch.cat([first, second]).flatten().tolist()) == list(range(10))
    assert not torch.equal(torch.cat(batches[:2]), torch.cat(batches[2:]))
    large = next(endless_batches(chunks, 25, torch.Generator().manual_seed(0)))
    assert large.shape == (25, 1)


def test_a_store_of_shards_trains_as_well_as_memory(planted, trained, tmp_path):
    store = ActivationStore.create(tmp_path / "store", {})
    for i, part in enumerate(planted.x.split(1900)):
        index = torch.full((len(part),), i)
        values = torch.stack([torch.zeros_like(part), part])
        store.append(Activations(values, (0, 1), "tokens", "hash", index, index + 0, index + 0, index == 0))
    sae = train_sae(store, out=tmp_path / "sae", **trained.recipe)
    assert quality(sae, store).fvu < 0.1
    with pytest.raises(InputError, match="rows of block 0 are zero"):
        train_sae(store, out=tmp_path / "zero", **trained.recipe | {"layer": 0})


def test_few_steps_and_progress(planted, tmp_path, trained):
    seen = []
    for steps in (1, 3, 25):
        sae = train_sae(
            planted.x,
            out=tmp_path / "sae",
            progress=lambda *report: seen.append(report),
            **trained.recipe | {"steps": steps},
        )
        assert all(torch.isfinite(w).all() for w in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec))
    assert seen[:4] == [(1, 1, "SAE training"), (1, 3, "SAE training"), (2, 3, "SAE training"), (3, 3, "SAE training")]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k": 49}, "k=49 active latents of d_sae=48"),
        ({"k": 0}, "k=0"),
        ({"steps": 0}, "steps=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"batch": 9000}, "8000 rows are fewer than one batch of 9000"),
        ({"hook_name": "blocks.2.hook_resid_post"}, "does not mean the output of block 1"),
    ],
)
def test_bad_sizes_are_refused(planted, trained, tmp_path, changes, says):
    with pytest.raises(InputError, match=says):
        train_sae(planted.x, out=tmp_path / "sae", **trained.recipe | changes)
    assert not (tmp_path / "sae").exists()


def test_bad_rows_and_folders_are_refused(planted, trained, tmp_path):
    with pytest.raises(InputError, match="not finite"):
        train_sae(torch.full((500, 16), torch.nan), out=tmp_path / "sae", **trained.recipe)
    with pytest.raises(InputError, match="are zero"):
        train_sae(torch.zeros(500, 16), out=tmp_path / "sae", **trained.recipe)
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(InputError, match="exists and holds no SAE"):
        train_sae(planted.x, out=tmp_path, **trained.recipe)
    assert (tmp_path / "notes.txt").read_text() == "precious"
