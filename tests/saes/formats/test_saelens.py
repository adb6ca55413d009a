"""SAELens: folders that the real package writes, in training and after it, by old versions and by us."""

import dataclasses
import json

import pytest
import torch

from probes import InputError
from saes import load_sae, save_sae
from saes.load import from_sae_lens

HOOK = "blocks.2.hook_resid_post"
KINDS = ("standard", "jumprelu", "gated", "topk", "topk rescaled")
BATCHES = ("batchtopk", "batchtopk rescaled", "matryoshka_batchtopk", "matryoshka_batchtopk rescaled")


@pytest.fixture(scope="session")
def build():
    """Make an SAE of sae-lens, for use or in training, with random weights."""
    import sae_lens
    from sae_lens.registry import get_sae_class, get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    assert sae_lens.__version__

    def make(kind: str, *, training: bool = False, **extra):
        name, _, rescaled = kind.partition(" ")
        sae_class, config_class = (get_sae_training_class if training else get_sae_class)(name)
        if name.endswith("topk"):
            extra |= {"k": 5, "rescale_acts_by_decoder_norm": bool(rescaled)}
        if name.startswith("matryoshka"):
            extra |= {"matryoshka_widths": [10, 40]}
        meta = SAEMetadata(model_name="m", hook_name=extra.pop("hook", HOOK))
        native = sae_class(config_class(d_in=16, d_sae=40, metadata=meta, **extra))
        generator = torch.Generator().manual_seed(5)
        for key, value in native.named_parameters():
            noise = torch.rand(value.shape, generator=generator)
            value.data = noise if key == "threshold" else (noise - 0.5) * (0.8 if value.ndim == 2 else 0.2)
        if hasattr(native, "topk_threshold"):
            native.topk_threshold.fill_(0.6)
        return native

    return make


def same(sae, native, rows, scale: float = 1.0):
    """Latents and reconstruction are the native ones, on inputs that it gets `scale` times."""
    with torch.no_grad():
        latents = native.encode(rows * scale)
        assert 0.01 < (latents > 0).float().mean() < 0.9
        torch.testing.assert_close(sae.encode(rows), latents, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae.decode(latents), native.decode(latents) / scale, rtol=1e-5, atol=1e-5)


@pytest.fixture
def rows(x):
    return torch.from_numpy(x).float()


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_folders_and_live_saes_give_the_same_latents(build, kind, centred, rows, tmp_path):
    native = build(kind, apply_b_dec_to_input=centred)
    before = {name: value.clone() for name, value in native.state_dict().items()}
    native.save_model(tmp_path)
    for sae in (load_sae(tmp_path), from_sae_lens(native, name="live")):
        same(sae, native, rows)
        assert (sae.kind, sae.layer, sae.site, sae.hook, sae.model_name) == (
            kind.split()[0],
            2,
            "resid_post",
            HOOK,
            "m",
        )
    assert all(torch.equal(value, before[name]) for name, value in native.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*matryoshka:UserWarning")
@pytest.mark.parametrize("kind", [*BATCHES, "topk rescaled", "jumprelu", "gated", "standard"])
def test_what_training_leaves_behind(build, kind, rows, tmp_path):
    from sae_lens import SAE

    native = build(kind, training=True)
    native.save_model(tmp_path / "checkpoint")
    native.save_inference_model(tmp_path / "final")
    expected = SAE.load_from_disk(tmp_path / "final")
    for name in ("checkpoint", "final"):
        sae = load_sae(tmp_path / name)
        same(sae, expected, rows)
        assert sae.kind == ("jumprelu" if "batch" in kind else kind.split()[0])


@pytest.mark.parametrize("kind", ["standard", "topk rescaled", "batchtopk rescaled", "gated", "jumprelu"])
def test_a_checkpoint_that_scales_its_input_is_folded(build, kind, rows, tmp_path):
    from sae_lens import SAE
    from sae_lens.training.activation_scaler import ActivationScaler

    native = build(kind, training=True, normalize_activations="expected_average_only_in")
    native.save_model(tmp_path)
    ActivationScaler(scaling_factor=0.37).save(str(tmp_path / "activation_scaler.json"))
    sae = load_sae(tmp_path)
    assert sae.normalisation == "times 0.37 (mean norm to sqrt(d_model))"
    native.fold_activation_norm_scaling_factor(0.37)  # as sae-lens does at the end of training
    native.save_inference_model(tmp_path / "final")
    same(sae, SAE.load_from_disk(tmp_path / "final"), rows)
    (tmp_path / "activation_scaler.json").unlink()
    with pytest.raises(InputError, match="rescales its input at run time"):
        load_sae(tmp_path)


@pytest.mark.parametrize("centred", [True, False])
def test_whitening_is_folded(build, centred, rows, tmp_path):
    from sae_lens.training.activation_scaler import ActivationScaler

    native = build("standard", normalize_activations="covariance_whitening", apply_b_dec_to_input=centred)
    native.save_model(tmp_path)
    scaler = ActivationScaler()
    scaler.estimate_whitening(16, iter([rows] * 3), n_batches_for_norm_estimate=3)
    scaler.save(str(tmp_path / "activation_scaler.json"))
    sae = load_sae(tmp_path)
    with torch.no_grad():
        latents = native.encode(scaler.scale(rows))
        torch.testing.assert_close(sae.encode(rows), latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sae.decode(latents), scaler.unscale(native.decode(latents)), rtol=1e-4, atol=1e-4)


def test_saes_of_a_model_without_means_say_so_and_are_folded(build, rows, tmp_path):
    native = build("topk")
    native.save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    config["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    sae = load_sae(tmp_path)
    with torch.no_grad():
        expected = native.encode(rows - rows.mean(-1, keepdim=True))
    torch.testing.assert_close(sae.encode(rows), expected, rtol=1e-5, atol=1e-5)
    again = load_sae(save_sae(sae, tmp_path / "again"))
    assert torch.equal(again.encode(rows), sae.encode(rows)) and again.normalisation == sae.normalisation


@pytest.mark.parametrize(
    ("older", "kind"),
    [
        ({"hook_point": "blocks.8.hook_resid_pre"}, "standard"),
        (
            {"hook_name": "blocks.7.hook_resid_post", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}},
            "topk",
        ),
        ({"hook_name": "blocks.7.hook_resid_post", "architecture": "gated", "normalize_activations": False}, "gated"),
        ({"hook_name": "blocks.7.hook_resid_post", "architecture": "jumprelu"}, "jumprelu"),
    ],
)
def test_folders_of_older_versions(build, older, kind, rows, tmp_path):
    from sae_lens import SAE

    build(kind).save_model(tmp_path)
    config = {"d_in": 16, "d_sae": 40, "dtype": "torch.float32", "model_name": "gpt2-small", "device": "cpu"}
    config |= {"activation_fn": "relu"} if kind != "topk" else {}
    (tmp_path / "cfg.json").write_text(json.dumps(config | older))
    sae = load_sae(tmp_path)
    same(sae, SAE.load_from_disk(tmp_path), rows)
    assert (sae.kind, sae.layer, sae.model_name) == (kind, 7, "gpt2-small")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_comes_back_bit_by_bit_and_sae_lens_reads_it(build, kind, rows, tmp_path):
    from sae_lens import SAE

    sae = dataclasses.replace(from_sae_lens(build(kind), name="mine"), normalisation="times 2")
    assert save_sae(sae, tmp_path / "a") == tmp_path / "a"
    again = load_sae(tmp_path / "a")
    for field in dataclasses.fields(sae):
        ours, theirs = getattr(sae, field.name), getattr(again, field.name)
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    same(sae, SAE.load_from_disk(tmp_path / "a"), rows)
    save_sae(again, tmp_path / "a")
    save_sae(again.to(dtype=torch.float64), tmp_path / "wide")
    assert load_sae(tmp_path / "wide").dtype == torch.float64
    assert load_sae(tmp_path / "a").encode(rows).equal(sae.encode(rows))


@pytest.mark.parametrize(("site", "hook"), [("mlp_out", "blocks.3.hook_mlp_out"), ("attn_z", "blocks.3.attn.hook_z")])
def test_sites_are_saved_by_name(build, site, hook, tmp_path):
    sae = dataclasses.replace(from_sae_lens(build("topk"), name="x"), site=site, layer=3, hook="in other words")
    again = load_sae(save_sae(sae, tmp_path / "x"))
    assert (again.layer, again.site, again.hook) == (3, site, hook)


def test_nothing_else_is_overwritten(build, tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(InputError, match="exists and holds no SAE"):
        save_sae(from_sae_lens(build("topk"), name="x"), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_finetuned_scales_of_old_versions_are_folded(build, rows, tmp_path, write):
    from safetensors.numpy import load_file

    build("standard").save_model(tmp_path)
    plain, scale = load_sae(tmp_path), torch.rand(40) + 0.5
    stored = load_file(tmp_path / "sae_weights.safetensors")
    write(tmp_path, {"sae_weights.safetensors": {**stored, "scaling_factor": scale.numpy()}})
    latents = plain.encode(rows)
    torch.testing.assert_close(load_sae(tmp_path).decode(latents), plain.decode(latents * scale), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"normalize_activations": "layer_norm"}, "rescales its input at run time"),
        ({"normalize_activations": "constant_norm_rescale"}, "rescales its input at run time"),
        ({"architecture": "temporal"}, "is of the kind 'temporal'"),
        ({"architecture": "skip_transcoder"}, "is of the kind 'skip_transcoder'"),
        ({"activation_fn": "tanh-relu"}, "the activation 'tanh-relu'"),
        ({"d_sae": 41}, r"W_enc has shape \(16, 40\) as read"),
        ({"d_in": None}, r"cfg\.json is not an SAE configuration of this layout \(no 'd_in'\)"),
        ({"k": None}, "needs k between 1 and 40, not None"),
        ({"metadata": {"hook_name": "blocks.2.attn.hook_z", "hook_head_index": 3}}, "reads single heads"),
        ({"metadata": {"hook_name": "blocks.2.hook_mlp_in"}}, "reads 'blocks.2.hook_mlp_in', which is no site"),
        ({"architecture": "jumprelu"}, r"sae_weights\.safetensors has no tensor 'threshold'"),
        ({"architecture": "gated"}, r"sae_weights\.safetensors has no tensor 'r_mag'"),
    ],
)
def test_what_cannot_be_read_is_refused(build, tmp_path, changes, says):
    build("topk").save_model(tmp_path)
    config = {**json.loads((tmp_path / "cfg.json").read_text()), **changes}
    (tmp_path / "cfg.json").write_text(json.dumps({key: v for key, v in config.items() if v is not None}))
    with pytest.raises(InputError, match=says):
        load_sae(tmp_path)
