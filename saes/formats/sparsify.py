"""EleutherAI's sparsify: a folder named after a module, such as `layers.10`, with `cfg.json` and `sae.safetensors`.

From eai-sparsify 1.3.3, `sparse_coder.py` (encode, decode, save_to_disk) and `fused_encoder.py`: latents are the k
largest of relu((x - b_dec) @ encoder.weight.T + encoder.bias); the reconstruction is latents @ W_dec + b_dec, with
W_dec [num_latents, d_in]. The folder's name is the module's path below the base model; its output is read
(`trainer.py`).
"""

from pathlib import Path

from probes.errors import InputError
from probes.io import read_json
from saes.formats.places import place_of_hook
from saes.formats.published import Published, checked, configuration, needed, tensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
FILES, EXTRA = (CONFIG, WEIGHTS), ("../config.json",)


def read(folder: Path, label: str) -> Published:
    """Read one SAE of sparsify; the run's `config.json` beside the folder, where it is, says the model."""
    config = configuration(folder / CONFIG, ("d_in", "k"))
    _check_is_an_sae(folder, config)
    hook = label.rstrip("/").rpartition("/")[2]
    if hook == "embed_tokens":
        raise InputError(f"{folder} is an SAE of token embeddings, which are no site of a block: take one of a layer")
    file = folder / WEIGHTS
    found = tensors(file)
    if "W_skip" in found:
        raise _refused(folder, "W_skip in its weights")
    w_enc, b_enc, w_dec, b_dec = needed(file, found, ("encoder.weight", "encoder.bias", "W_dec", "b_dec"))
    d_in = int(config["d_in"])
    d_sae = int(config.get("num_latents") or 0) or d_in * int(config.get("expansion_factor") or 0) or None
    weights = {"W_enc": w_enc.T, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec}
    place = place_of_hook(hook)
    beside = folder.parent / "config.json"
    run = read_json(beside) if beside.is_file() else {}
    return Published(
        checked(file, weights, d_in, d_sae),
        "topk",
        centred=True,
        k=int(config["k"]),
        hook=hook if place else "",
        place=place,
        model_name=str(run.get("model") or "") if isinstance(run, dict) else "",
    )


def _check_is_an_sae(folder: Path, config: dict[str, object]) -> None:
    for key, meaning in (("transcode", "a transcoder"), ("skip_connection", "a transcoder with a skip connection")):
        if config.get(key):
            raise _refused(folder, f"{key} is set: {meaning}")
    if config.get("activation", "topk") != "topk" or config.get("signed"):
        kind = "signed top-k" if config.get("signed") else config["activation"]
        raise InputError(f"SAE {folder} uses {kind!r} latents; sparsify's 'topk' is read here: take an SAE with that")


def _refused(folder: Path, why: str) -> InputError:
    return InputError(f"{folder} is no SAE ({why}): it maps one place of the model to another; take an SAE")
