"""Training: it finds a planted dictionary, repeats itself to the byte, refuses what cannot work, tells what it did."""

import json

import pytest
import torch

from probes import Activations, ActivationStore, InputError
from saes import HeldOut, load_sae, quality, train_sae

FILES = ["cfg.json", "sae_weights.safetensors", "training.json"]


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def test_it_recovers_the_planted_directions(trained, planted):
    best = (trained.sae.directions @ planted.directions.T).max(0).values
    assert best.median() > 0.99 and best.min() > 0.85
    assert quality(trained.sae, planted.x).fvu < 0.1


def test_what_is_returned_and_what_is_saved(trained, planted):
    sae = trained.sae
    assert (sae.kind, sae.k, sae.d_sae, sae.layer, sae.model_name) == ("topk", 3, 48, 1, "planted")
    assert sae.hook == "blocks.1.hook_resid_post"
    assert sorted(path.name for path in trained.folder.iterdir()) == FILES
    assert json.loads((trained.folder / "cfg.json").read_text())["normalize_activations"] == "none"
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(48))
    error = sae.decode(sae.encode(planted.x)) - planted.x
    assert error.norm(dim=-1).mean() < 0.3 * (planted.x - planted.x.mean(0)).norm(dim=-1).mean()


def test_the_record_says_what_was_done(trained, planted):
    record = json.loads((trained.folder / "training.json").read_text())
    assert record["asked"]["recipe"]["steps"] == 400 and record["asked"]["recipe"]["lr"] == 5e-3
    assert [step["step"] for step in record["steps"]] == list(range(4, 401, 4))
    assert 2.5 < record["steps"][-1]["l0"] <= 3 and record["steps"][-1]["loss"] < record["steps"][0]["loss"] / 5
    aside = HeldOut(0.02)(torch.arange(8000))
    assert record["rows"]["kept"] == int((~aside).sum()) and record["held_out"]["n"] == int(aside.sum()) > 100
    assert record["held_out"]["fvu"]["value"] == pytest.approx(quality(trained.sae, planted.x[aside]).fvu)
    assert record["versions"]["sae-lens"] and record["versions"]["torch"] == torch.__version__


def test_same_seed_same_bytes_and_no_trace_in_the_random_state(trained, planted, tmp_path, capfd):
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_sae(planted.x, out=tmp_path / name, **trained.recipe | {"seed": seed, "steps": 40})
    assert torch.equal(torch.random.get_rng_state(), before)
    files = {name: contents(tmp_path / name) for name in "abc"}
    assert files["a"] == files["b"] != files["c"]
    assert capfd.readouterr() == ("", "")


def test_the_scale_of_the_activations_does_not_matter(planted, trained, tmp_path):
    recipe = trained.recipe | {"steps": 30}
    small = train_sae(planted.x / 1024, out=tmp_path / "small", **recipe)
    large = train_sae(planted.x, out=tmp_path / "large", **recipe)
    torch.testing.assert_close(small.directions, large.directions, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        small.encode(planted.x[:50] / 1024) * 1024, large.encode(planted.x[:50]), rtol=0, atol=0.05
    )


def test_a_store_of_shards_trains_as_well_as_memory(planted, trained, tmp_path):
    store = ActivationStore.create(tmp_path / "store", {})
    for i, part in enumerate(planted.x.split(1900)):
        index = torch.full((len(part),), i)
        values = torch.stack([torch.zeros_like(part), part])
        store.append(Activations(values, (0, 1), "tokens", "hash", index, index + 0, index + 0, index == 0))
    sae = train_sae(store, out=tmp_path / "sae", **trained.recipe)
    assert quality(sae, store).fvu < 0.1
    record = json.loads((tmp_path / "sae" / "training.json").read_text())
    assert record["held_out"] is None and record["source"]["template_hash"] == "hash"  # five conversations are too few
    with pytest.raises(InputError, match="rows of block 0 are zero"):
        train_sae(store, out=tmp_path / "zero", **trained.recipe | {"layer": 0})


def test_few_steps_and_progress(planted, tmp_path, trained):
    seen = []
    for steps in (1, 3, 25):
        recipe = trained.recipe | {"steps": steps}
        sae = train_sae(planted.x, out=tmp_path / f"{steps}", progress=lambda *told: seen.append(told), **recipe)
        assert all(torch.isfinite(w).all() for w in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec))
    assert [told[:2] for told in seen[:4]] == [(1, 1), (1, 3), (2, 3), (3, 3)]
    assert all(told[2].startswith("SAE training (loss ") and told[2].endswith(" dead)") for told in seen)


def test_what_is_done_is_loaded_and_what_differs_is_refused(planted, tmp_path, trained):
    recipe = trained.recipe | {"steps": 5}
    first = train_sae(planted.x, out=tmp_path, **recipe)
    again = train_sae(planted.x, out=tmp_path, progress=lambda *_: pytest.fail("trained again"), **recipe)
    assert torch.equal(first.W_dec, again.W_dec)
    with pytest.raises(InputError, match=r"was begun with steps=5, not 6.*fresh=True"):
        train_sae(planted.x, out=tmp_path, **recipe | {"steps": 6})
    with pytest.raises(InputError, match="was begun with other rows"):
        train_sae(planted.x + 1, out=tmp_path, **recipe)
    other = train_sae(planted.x, out=tmp_path, fresh=True, **recipe | {"steps": 6})
    assert not torch.equal(first.W_dec, other.W_dec)
    (tmp_path / "training.json").unlink()
    with pytest.raises(InputError, match="an SAE that was not trained here"):
        train_sae(planted.x, out=tmp_path, **recipe | {"steps": 6})
    assert torch.equal(load_sae(tmp_path).W_dec, other.W_dec)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k": 49}, "k=49 active latents of d_sae=48"),
        ({"k": 0}, "k=0"),
        ({"steps": 0}, "steps=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"batch": 9000}, "rows are fewer than one batch of 9000"),
        ({"hook_name": "blocks.2.hook_resid_post"}, "does not mean the output of block 1"),
        ({"architecture": "relu"}, "architecture 'relu': use one of topk, batchtopk"),
        ({"expansion": 8}, "expansion=8: a recipe has no such setting; it has architecture, d_sae"),
        ({"skip_first": 8}, "skip_first=8 needs captured activations"),
        ({"max_norm": 0.5}, "max_norm=0.5"),
        ({"held_out": 0.9}, "held_out=0.9"),
        ({"architecture": "gated", "sparsity": -1.0}, "sparsity=-1.0: gated needs a positive"),
        ({"architecture": "matryoshka_batchtopk", "widths": (40, 20)}, r"widths=\(40, 20, 48\)"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
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
