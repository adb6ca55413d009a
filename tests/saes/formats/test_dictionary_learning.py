"""dictionary_learning: every class against the formula and, where it is installed, against the real package."""

import importlib
import importlib.util
import json
import os
import sys
import types

import numpy as np
import pytest
import torch

from probes import InputError
from saes import load_sae

CLASSES = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
}
LINEAR = {"encoder.weight": "W_enc", "decoder.weight": "W_dec"}


def state_of(name, w, r_mag):
    """The tensors of `ae.pt`, by class."""
    linear = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    plain = {key: w[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec")}
    top = {"b_dec": w["b_dec"], "k": np.int32(5), "threshold": np.float32(0.4)}
    gate = {"r_mag": r_mag, "gate_bias": w["b_enc"], "mag_bias": w["threshold"], "decoder_bias": w["b_dec"]}
    groups = {"group_sizes": np.array([10, 30])}
    return {
        "AutoEncoder": {**linear, "bias": w["b_dec"]},
        "AutoEncoderNew": {**linear, "decoder.bias": w["b_dec"]},
        "AutoEncoderTopK": {**linear, **top},
        "BatchTopKSAE": {**linear, **top},
        "MatryoshkaBatchTopKSAE": {**plain, **top, **groups},
        "GatedAutoEncoder": {**{key: linear[key] for key in LINEAR}, **gate},
        "JumpReluAutoEncoder": {**plain, "threshold": w["threshold"]},
    }[name]


@pytest.fixture
def r_mag():
    return np.random.default_rng(4).normal(size=40).astype(np.float32) / 4


@pytest.fixture
def save(tmp_path, weights, r_mag):
    """Write `ae.pt` and `config.json`; trainer's keys, buffer's keys and tensors may be changed or left out (None)."""

    def to(name, folder="resid_post_layer_15/trainer_1", *, tensors=None, buffer=None, **trainer):
        known = {"dict_class": name, "activation_dim": 16, "dict_size": 40, "layer": 15}
        known |= {"lm_name": "Qwen/Qwen2.5-7B-Instruct", "submodule_name": "resid_post_layer_15", **trainer}
        state = {**state_of(name if name in CLASSES else "AutoEncoder", weights, r_mag), **(tensors or {})}
        (tmp_path / folder).mkdir(parents=True)
        tensors_now = {key: torch.as_tensor(np.array(value)) for key, value in state.items() if value is not None}
        torch.save(tensors_now, tmp_path / folder / "ae.pt")
        config = {"trainer": {key: value for key, value in known.items() if value is not None}}
        (tmp_path / folder / "config.json").write_text(json.dumps(config | ({"buffer": buffer} if buffer else {})))
        return tmp_path / folder

    return to


def by_formula(name, x, w, r_mag, formulas):
    pre = formulas.pre(x, w, centred=name not in ("AutoEncoderNew", "JumpReluAutoEncoder"))
    if name == "AutoEncoder":  # its loader brings the decoder's rows to unit length
        norms = np.linalg.norm(w["W_dec"], axis=1)
        return formulas.relu(pre) * norms, formulas.decode(formulas.relu(pre), w)
    if name == "GatedAutoEncoder":
        q = pre - w["b_enc"]
        latents = np.where(q + w["b_enc"] > 0, np.maximum(np.exp(r_mag) * q + w["threshold"], 0), 0)
    else:
        latents = {
            "AutoEncoderNew": formulas.relu(pre),
            "AutoEncoderTopK": formulas.topk(pre, 5),
            "JumpReluAutoEncoder": formulas.jump(pre, w["threshold"]),
        }.get(name, formulas.jump(pre, np.float32(0.4)))
    return latents, formulas.decode(latents, w)


@pytest.mark.parametrize("name", CLASSES)
def test_encode_and_decode_are_those_of_the_class(name, save, x, weights, r_mag, formulas, agrees):
    sae = load_sae(save(name))
    agrees(sae, *by_formula(name, x, weights, r_mag, formulas))
    assert (sae.kind, sae.k) == (CLASSES[name], 5 if name == "AutoEncoderTopK" else None)
    assert (sae.layer, sae.site, sae.model_name) == (15, "resid_post", "Qwen/Qwen2.5-7B-Instruct")


@pytest.fixture
def package(monkeypatch):
    """The real package's own modules, without its top, which wants a whole zoo of others."""
    spec = importlib.util.find_spec("dictionary_learning")
    if spec is None:
        pytest.skip("pip install --no-deps dictionary-learning==0.1.0")
    homes = list(spec.submodule_search_locations or ())
    for name, paths in (("", homes), (".trainers", [os.path.join(home, "trainers") for home in homes])):
        module = types.ModuleType("dictionary_learning" + name)
        module.__path__ = paths
        monkeypatch.setitem(sys.modules, module.__name__, module)
    trainers = ("top_k", "batch_top_k", "matryoshka_batch_top_k")
    return [
        importlib.import_module(f"dictionary_learning.{n}")
        for n in ("dictionary", *(f"trainers.{t}" for t in trainers))
    ]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", CLASSES)
def test_the_real_package_agrees(name, package, save, x, agrees, capsys):
    folder = save(name)
    theirs = next(getattr(module, name) for module in package if hasattr(module, name))
    native = theirs.from_pretrained(folder / "ae.pt")
    torch.save(native.state_dict(), folder / "ae.pt")  # as its training writes it
    with torch.no_grad():
        latents = native.encode(torch.from_numpy(x).float())
        agrees(load_sae(folder), latents, native.decode(latents))
    capsys.readouterr()


@pytest.mark.parametrize(
    ("folder", "trainer", "buffer", "place"),
    [
        ("a", {"submodule_name": "mlp_out_layer_4", "layer": 4}, None, (4, "mlp_out")),
        ("a", {"submodule_name": "attention_out_layer_4", "layer": 4}, {"io": "out"}, (4, "attn_out")),
        ("resid_pre_layer_4/trainer_0", {"submodule_name": None, "layer": 4}, None, (3, "resid_post")),
        ("mlp_out_layer_6/trainer_0", {"submodule_name": None, "layer": None}, None, (6, "mlp_out")),
        ("a", {"submodule_name": None, "layer": 7}, None, (7, "resid_post")),
        ("a", {"submodule_name": "model.layers.3"}, {"io": "in"}, (2, "resid_post")),
        ("a", {"submodule_name": "resid_post_layer_3", "layer": 3}, {"io": "in"}, (2, "resid_post")),
        ("a", {"submodule_name": "gpt_neox.layers.3.mlp"}, None, (3, "mlp_out")),
    ],
)
def test_names_say_the_site(save, folder, trainer, buffer, place):
    sae = load_sae(save("AutoEncoderTopK", folder, buffer=buffer, **trainer))
    assert (sae.layer, sae.site) == place


def test_many_in_a_folder_are_told_apart_by_layer(save, tmp_path):
    for layer in (3, 13):
        save("BatchTopKSAE", f"resid_post_layer_{layer}/trainer_1", layer=layer, submodule_name=None)
    assert load_sae(tmp_path, layer=3).layer == 3
    assert load_sae(tmp_path, sae_id="resid_post_layer_13/trainer_1").layer == 13
    with pytest.raises(
        InputError, match="holds 2 SAEs: pass layer= or sae_id=, one of 'resid_post_layer_13/trainer_1'"
    ):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("CrossCoder", {}, r"config\.json: dict_class 'CrossCoder'; the classes read here"),
        ("BatchTopKSAE", {"tensors": {"threshold": -1.0}}, "threshold is -1, so training ended before"),
        ("BatchTopKSAE", {"tensors": {"threshold": None}}, r"ae\.pt has no tensor 'threshold'"),
        ("JumpReluAutoEncoder", {"tensors": {"threshold": None}}, r"ae\.pt has no tensor 'threshold'"),
        ("AutoEncoderTopK", {"k": 6}, r"k is \[5, 6\] by weights and configuration"),
        ("AutoEncoderTopK", {"tensors": {"k": None}}, "k is missing"),
        ("AutoEncoder", {"dict_size": 41}, r"ae\.pt: W_enc has shape \(16, 40\) as read"),
        ("AutoEncoder", {"tensors": {"decoder.weight": np.ones((40, 16), np.float32)}}, "W_dec is transposed"),
        (
            "AutoEncoder",
            {"tensors": {"bias": np.full(16, np.nan, np.float32)}},
            "b_dec holds a value that is not finite",
        ),
        ("AutoEncoder", {"buffer": {"io": "in_and_out"}}, "a transcoder, not an SAE"),
        ("AutoEncoder", {"submodule_name": "router", "layer": 3}, "reads 'router', which is no site"),
        ("AutoEncoder", {"submodule_name": "mlp_out_layer_3", "buffer": {"io": "in"}}, "which is no site"),
    ],
)
def test_bad_files_are_refused(save, name, changes, says):
    with pytest.raises(InputError, match=says):
        load_sae(save(name, **changes))


class Payload:
    """What a pickle would run on loading."""

    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_pickles_are_refused_and_run_nothing(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = save("AutoEncoder") / "ae.pt"
    whole = file.read_bytes()
    for content, old in (({"bias": Payload()}, False), ({"bias": torch.ones(3)}, True), ([torch.ones(3)], False)):
        torch.save(content, file, _use_new_zipfile_serialization=not old)
        with pytest.raises(InputError, match=r"ae\.pt is a pickle, which is not read"):
            load_sae(file.parent)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"ae\.pt is a pickle.*or cut short"):
        load_sae(file.parent)
    at = whole.index(b"encoder.weight")  # inside the zip's table of contents
    file.write_bytes(whole[:at] + b"\xff" * 40 + whole[at + 40 :])
    with pytest.raises(InputError, match=r"ae\.pt"):
        load_sae(file.parent)
    assert not (tmp_path / "owned").exists()
