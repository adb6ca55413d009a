"""Loading: which SAE of a folder, a release or a hub repository is meant, where it reads, and what is refused early."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from probes import InputError
from saes import layer_of_hook, load_sae, place_of_hook, save_sae
from saes.formats import hub, releases
from saes.formats.layouts import LAYOUTS, pick


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        ("blocks.3.hook_resid_post", (3, "resid_post")),
        ("blocks.3.hook_out", (3, "resid_post")),
        ("blocks.4.hook_resid_pre", (3, "resid_post")),
        ("blocks.4.hook_in", (3, "resid_post")),
        ("blocks.0.hook_resid_pre", (0, "resid_pre")),
        ("model.layers.12", (12, "resid_post")),
        ("model.layers.12.output", (12, "resid_post")),
        ("model.layers.12.input", (11, "resid_post")),
        ("transformer.h.7", (7, "resid_post")),
        ("layers.7", (7, "resid_post")),
        ("blocks.3.hook_resid_mid", (3, "resid_mid")),
        ("blocks.3.hook_mlp_out", (3, "mlp_out")),
        ("blocks.3.hook_attn_out", (3, "attn_out")),
        ("blocks.3.attn.hook_z", (3, "attn_z")),
        ("model.layers.3.self_attn.o_proj.input", (3, "attn_z")),
        ("model.layers.3.mlp", (3, "mlp_out")),
        ("model.layers.3.self_attn.output", (3, "attn_out")),
        ("model.layers.3.post_feedforward_layernorm.output", (3, "mlp_out")),
        ("blocks.3.mlp.hook_out", None),
        ("blocks.3.hook_mlp_in", None),
        ("model.layers.3.mlp.down_proj", None),
        ("model.layers.3.input_layernorm", None),
        ("hook_embed", None),
        ("", None),
    ],
)
def test_hook_names_mean_places(hook, place):
    assert place_of_hook(hook) == place
    assert layer_of_hook(hook) == (place[0] if place and place[1] == "resid_post" else None)


@pytest.fixture
def folder(topk, tmp_path):
    """A saved SAE over block 2 that a test may damage."""
    return save_sae(topk, tmp_path / "sae")


def change(folder, **values):
    config = json.loads((folder / "cfg.json").read_text())
    metadata = values.pop("metadata", {})
    config["metadata"].update(metadata)
    (folder / "cfg.json").write_text(json.dumps(config | values))


def test_layer_and_site_must_agree(folder):
    assert load_sae(folder, layer=2, site="resid_post").layer == 2
    assert load_sae(folder, layer=3, site="resid_pre").layer == 2  # what enters block 3 leaves block 2
    with pytest.raises(
        InputError, match=r"reads the output of block 2 \(blocks.2.hook_resid_post\), not the output of"
    ):
        load_sae(folder, layer=1)
    with pytest.raises(InputError, match=r"not the mlp_out of block 2; pass layer=2 and site='resid_post'"):
        load_sae(folder, site="mlp_out")
    with pytest.raises(InputError, match=r"not the output of block 1"):
        load_sae(folder, layer=2, site="resid_pre")
    change(folder, metadata={"hook_name": "blocks.1.hook_mlp_out"})
    assert (load_sae(folder).layer, load_sae(folder).site) == (1, "mlp_out")
    change(folder, metadata={"hook_name": "blocks.1.mlp.hook_pre"})
    with pytest.raises(InputError, match="which is no site that is known here"):
        load_sae(folder)
    change(folder, metadata={"hook_name": None})
    assert load_sae(folder, layer=3).layer == 3
    assert load_sae(folder, layer=3, site="attn_out").site == "attn_out"
    with pytest.raises(InputError, match="does not say where it reads: pass layer="):
        load_sae(folder)


def test_missing_and_damaged_folders(folder, tmp_path):
    for nowhere in (tmp_path / "nowhere", "./nowhere"):
        with pytest.raises(InputError, match="no SAE folder at"):
            load_sae(nowhere)
    weights = folder / "sae_weights.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-100], b"", b"x" * 200):
        weights.write_bytes(content)
        with pytest.raises(InputError, match=r"sae_weights\.safetensors cannot be read .*fetch it again"):
            load_sae(folder)
    weights.write_bytes(whole)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(InputError, match=r"cfg\.json: not JSON"):
        load_sae(folder)
    (folder / "cfg.json").write_text("[]")
    with pytest.raises(InputError, match=r"cfg\.json is not an SAE configuration"):
        load_sae(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(InputError, match=r"has no cfg\.json, which the layout saelens needs"):
        load_sae(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no SAE of a known layout \(saelens: cfg\.json and sae_weights"):
        load_sae(tmp_path / "empty")


def test_pickles_are_not_read(folder):
    (folder / "sae_weights.safetensors").rename(folder / "sae_weights.pt")
    with pytest.raises(InputError, match=r"sae_weights\.pt is a pickle, which is not read"):
        load_sae(folder)


def test_the_layout_is_told_by_files_or_forced(folder):
    assert load_sae(folder, format="saelens").d_sae == 64
    with pytest.raises(InputError, match=r"has no params\.npz, which the layout gemma-scope needs"):
        load_sae(folder, format="gemma-scope")
    with pytest.raises(InputError, match="format='zip': use one of saelens, gemma-scope"):
        load_sae(folder, format="zip")
    np.savez(folder / "params.npz", W_enc=np.ones((2, 3)))
    with pytest.raises(InputError, match="holds the files of saelens and gemma-scope: name one with format="):
        load_sae(folder)
    assert load_sae(folder, format="saelens").d_sae == 64


@pytest.mark.parametrize(
    ("ids", "layer", "sae_id", "chosen"),
    [
        (["a_layer_3_trainer_1", "a_layer_13_trainer_1", "blocks.5.hook_resid_pre"], 3, None, 0),
        (["a_layer_3_trainer_1", "a_layer_13_trainer_1", "blocks.5.hook_resid_pre"], 13, None, 1),
        (["a_layer_3_trainer_1", "a_layer_13_trainer_1", "blocks.5.hook_resid_pre"], 4, None, 2),
        (["a_layer_3_trainer_1", "a_layer_13_trainer_1"], None, "a_layer_13_trainer_1", 1),
        (["Llama3_1-8B-Base-L3R-8x", "Llama3_1-8B-Base-L13R-8x"], 13, None, 1),
        (["layers.1.mlp", "layers.11.mlp"], 11, None, 1),
        (["l1r_8x", "l11r_8x"], 11, None, 1),
        (["only one"], None, None, 0),
    ],
)
def test_one_of_many_is_picked_by_layer_or_id(ids, layer, sae_id, chosen):
    assert pick("r", ids, layer, sae_id) == ids[chosen]


def test_what_does_not_single_one_out_is_listed():
    for ids, layer, sae_id, says in (
        (["a", "b"], 3, "x", "has no SAE 'x'; it has 'a', 'b'"),
        (["a", "b"], None, None, "holds 2 SAEs: pass layer= or sae_id="),
        (["layer_0/width_16k/l0_13", "layer_0/width_16k/l0_105"], 0, None, "has 2 SAEs at block 0"),
    ):
        with pytest.raises(InputError, match=says):
            pick("r", ids, layer, sae_id)


@pytest.fixture
def remote(tmp_path, topk, monkeypatch):
    """A hub of one machine: repositories below a folder, of which only what is asked for is copied."""

    class Hub:
        home, asked = tmp_path / "hub", []

        def put(self, repo: str, folder: str, layout: str = "saelens") -> Path:
            place = self.home / repo / folder
            if layout == "saelens":
                save_sae(topk, place)
            else:
                place.mkdir(parents=True)
                tensors = {"encoder.weight": topk.W_enc.T, "encoder.bias": topk.b_enc, "W_dec": topk.W_dec}
                save_file(
                    {k: v.contiguous() for k, v in {**tensors, "b_dec": topk.b_dec}.items()}, place / "sae.safetensors"
                )
                (place / "cfg.json").write_text(json.dumps({"d_in": 32, "num_latents": 64, "k": 5}))
            (place / "optimizer_state.bin").write_bytes(b"huge")
            return place

        def snapshot_download(self, repo, *, revision, allow_patterns=(), local_files_only=False):
            if local_files_only:
                return str(tmp_path / "cache")
            self.asked.append((repo, revision, allow_patterns))
            if not (self.home / repo).is_dir():
                raise OSError(f"404: no repository {repo}\nand more lines")
            copy = tmp_path / "cache"
            for name in self.list_repo_files(repo, revision=revision):
                if name in allow_patterns:
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(self.home / repo / name, copy / name)
            copy.mkdir(exist_ok=True)
            return str(copy)

        def list_repo_files(self, repo, *, revision):
            if revision == "offline":
                raise OSError("no connection")
            root = self.home / repo
            return [str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()]

    mine = Hub()
    monkeypatch.setattr("huggingface_hub.snapshot_download", mine.snapshot_download)
    monkeypatch.setattr("huggingface_hub.list_repo_files", mine.list_repo_files)
    return mine


def test_a_hub_id_with_its_folder(remote, rows, topk, tmp_path):
    remote.put("me/saes", "layer_2")
    for asked in ({"source": "me/saes/layer_2"}, {"source": "me/saes", "sae_id": "layer_2"}, {"source": "me/saes"}):
        assert torch.equal(load_sae(**asked).encode(rows), topk.encode(rows))
    assert sorted(file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()) == [
        "cfg.json",
        "sae_weights.safetensors",
    ]
    needed = {f"layer_2/{file}" for layout in LAYOUTS.values() for file in layout.files}
    assert needed <= set(remote.asked[0][2])
    load_sae("me/saes/layer_2@v1", format="saelens")
    repo, revision, patterns = remote.asked[-1]
    assert (repo, revision) == ("me/saes", "v1")
    assert {"layer_2/cfg.json", "layer_2/sae_weights.safetensors"} <= set(patterns)
    assert not any("ae.pt" in pattern for pattern in patterns)


def test_a_repository_is_searched_by_layer(remote):
    for layer in (1, 2, 12):
        remote.put("EleutherAI/sae-x", f"layers.{layer}", "sparsify")
    (remote.home / "EleutherAI/sae-x/config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m"}))
    sae = load_sae("EleutherAI/sae-x", layer=12)
    assert (sae.layer, sae.name, sae.model_name) == (12, "EleutherAI/sae-x/layers.12", "EleutherAI/pythia-70m")
    with pytest.raises(InputError, match=r"holds 3 SAEs: pass layer= or sae_id=, one of 'layers.1'"):
        load_sae("EleutherAI/sae-x")
    with pytest.raises(InputError, match="has 0 SAEs at block 5"):
        load_sae("EleutherAI/sae-x", layer=5)


def test_without_a_connection_the_cache_is_searched(remote):
    for layer in (1, 2):
        remote.put("EleutherAI/sae-x", f"layers.{layer}", "sparsify")
    load_sae("EleutherAI/sae-x", layer=2)
    assert sorted(hub.list_files("EleutherAI/sae-x", "offline")) == ["layers.2/cfg.json", "layers.2/sae.safetensors"]


@pytest.mark.parametrize("source", ["qwen2.5-7b-instruct-andyrdt", "andyrdt/saes-qwen2.5-7b-instruct"])
def test_releases_of_sae_lens_say_repository_and_folder(remote, source):
    remote.put("andyrdt/saes-qwen2.5-7b-instruct", "resid_post_layer_15/trainer_1")
    assert load_sae(source, sae_id="resid_post_layer_15_trainer_1").layer == 2
    with pytest.raises(InputError, match="reads the output of block 2"):  # the one that the release has for block 15
        load_sae(source, layer=15)
    for repo, _, patterns in remote.asked:
        assert repo == "andyrdt/saes-qwen2.5-7b-instruct" and "resid_post_layer_15/trainer_1/ae.pt" in patterns


def test_what_is_not_on_the_hub_is_named(remote):
    with pytest.raises(
        InputError, match=r"SAE me/none cannot be fetched \(404: no repository me/none\): check its name"
    ):
        load_sae("me/none", sae_id="x")
    remote.put("me/saes", "a")
    with pytest.raises(InputError, match="me/saes/b: the repository has no SAE of a known layout there"):
        load_sae("me/saes/b")
    with pytest.raises(InputError, match="'no-such-release': neither a folder nor a sae-lens release nor a hub id"):
        load_sae("no-such-release", layer=1)
    with pytest.raises(InputError, match="holds 7 SAEs: pass layer= or sae_id="):
        load_sae("andyrdt/saes-qwen2.5-7b-instruct")
    with pytest.raises(InputError, match="has 0 SAEs at block 4"):
        load_sae("qwen2.5-7b-instruct-andyrdt", layer=4)
    for source in ("mistral-7b-res-wg", "JoshEngels/Mistral-7B-Residual-Stream-SAEs/mistral_7b_layer_8"):
        with pytest.raises(InputError, match=r"JoshEngels/Mistral-7B.* rescales its input at run time"):
            load_sae(source, layer=7)
    with pytest.raises(InputError, match=r"gemma-scope-2b-pt-transcoders/.* is no SAE of one place \(transcoder\)"):
        load_sae("gemma-scope-2b-pt-transcoders", sae_id="layer_0/width_16k/average_l0_76")
    assert not any("Mistral" in repo or "transcoders" in repo for repo, *_ in remote.asked)


def test_releases_that_only_sae_lens_reads_go_through_it(monkeypatch):
    """Goodfire's is one file of a layout that no other has; sae-lens turns it into an SAE of its own."""
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    meta = SAEMetadata(hook_name="blocks.19.hook_resid_post", model_name="meta-llama/Llama-3.1-8B-Instruct")
    native, asked = StandardSAE(StandardSAEConfig(d_in=4, d_sae=6, metadata=meta)), []
    monkeypatch.setattr("sae_lens.SAE.from_pretrained", lambda *args, **kwargs: asked.append(args) or native)
    sae = load_sae("goodfire-llama-3.1-8b-instruct", layer=19)
    assert (sae.name, sae.kind, sae.layer) == ("goodfire-llama-3.1-8b-instruct/layer_19", "standard", 19)
    assert asked == [("goodfire-llama-3.1-8b-instruct", "layer_19")]


@pytest.mark.parametrize("source", ["gpt2-small-res-jb", "jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre"])
@pytest.mark.parametrize("centred", [True, False])
def test_saes_of_a_centred_stream_read_any_stream(remote, monkeypatch, topk, rows, source, centred):
    """TransformerLens takes the mean off the residual stream of GPT-2; its old SAEs know no other."""
    repo, hook = "jbloom/GPT2-Small-SAEs-Reformatted", "blocks.8.hook_resid_pre"
    sae = replace(topk, centred=centred, hook=hook, layer=7)
    assert releases.centred_model(repo, hook)
    change(save_sae(sae, remote.home / repo / hook), metadata={"name": ""})
    loaded = load_sae(source, layer=7)
    expected = sae.encode(rows - rows.mean(-1, keepdim=True))
    torch.testing.assert_close(loaded.encode(rows), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.encode(rows + 3), expected, rtol=1e-4, atol=1e-4)
    assert loaded.normalisation == "less its mean over d_model"
    torch.testing.assert_close(loaded.decode(expected), sae.decode(expected))
