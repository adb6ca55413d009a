"""An SAE as its files say it, and what the readers of all layouts share: tensors, checks, folding into weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import InputError
from probes.io import read_json
from saes.formats.places import Place
from saes.sae import Kind

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Published:
    """Weights by the names and in the orientation of `SparseAutoencoder`, and what the files say about their use.

    `weights` holds `W_enc`, `W_dec`, `b_enc`, `b_dec` and, where the kind has one, `threshold`. `hook` is the place in
    the files' own words and `place` what it means; None where the files do not say.
    """

    weights: Mapping[str, Tensor]
    kind: Kind
    centred: bool
    k: int | None = None
    hook: str = ""
    place: Place | None = None
    model_name: str = ""
    normalisation: str = "none"
    name: str = ""


def configuration(file: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    """Read a JSON configuration. Raises InputError where it is none or lacks one of the keys `needed`."""
    config = read_json(file)
    missing = [key for key in needed if not isinstance(config, dict) or key not in config]
    if missing:
        raise InputError(
            f"{file} is not an SAE configuration of this layout (no {missing[0]!r}): save the SAE again, or name its "
            "layout with format="
        )
    return config


def tensors(file: Path) -> Weights:
    """Read a safetensors file. Raises InputError where it is damaged or a pickle."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(file, error) from error


def damaged(file: Path, error: Exception) -> InputError:
    """What to raise for a file that a reader could not read."""
    reason = str(error).splitlines()[0] if str(error) else repr(error)
    return InputError(f"{file} cannot be read ({reason}): the file is damaged or of another kind; fetch it again")


def needed(file: Path, found: Mapping[str, Tensor], names: tuple[str, ...]) -> list[Tensor]:
    """The tensors of these names. Raises InputError where one is missing."""
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"{file} has no tensor {missing[0]!r}, only {', '.join(sorted(found)[:8])}: the file is incomplete, or of "
            "another layout (name it with format=)"
        )
    return [found[name] for name in names]


def checked(file: Path, weights: Mapping[str, Tensor], d_model: int | None = None, d_sae: int | None = None) -> Weights:
    """The weights in float32 (float64 stays), contiguous; a single threshold stands for all latents.

    `d_model` and `d_sae` are the sizes that the configuration says. Raises InputError for other shapes, transposed
    matrices, values that are no numbers and ones that are not finite.
    """
    width, latents = weights["W_enc"].shape if weights["W_enc"].ndim == 2 else (0, 0)
    d_model, d_sae = d_model or width, d_sae or latents
    shapes = {"W_enc": (d_model, d_sae), "W_dec": (d_sae, d_model), "b_enc": (d_sae,), "b_dec": (d_model,)}
    shapes["threshold"] = (d_sae,)
    clean: Weights = {}
    for name, value in weights.items():
        if name == "threshold" and value.numel() == 1:
            value = value.reshape(1).expand(d_sae)
        _require(file, name, value, shapes[name])
        value = value.to(value.dtype if value.dtype == torch.float64 else torch.float32).contiguous()
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{file}: {name} holds a value that is not finite (NaN or infinity): fetch the file again")
        clean[name] = value
    return clean


def _require(file: Path, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if not value.is_floating_point():
        raise InputError(f"{file}: {name} holds {value.dtype}, not numbers with a fraction: these are no SAE's weights")
    if tuple(value.shape) == shape:
        return
    if len(shape) == 2 and tuple(value.shape) == shape[::-1]:
        raise InputError(
            f"{file}: {name} is transposed for this layout (shape {tuple(value.shape)} as read, expected {shape}): it "
            "was written by another version or program; name its layout with format="
        )
    raise InputError(
        f"{file}: {name} has shape {tuple(value.shape)} as read, but {shape} is expected: weights and configuration do "
        "not belong together; fetch both again"
    )


def fold_decoder_norm(weights: Mapping[str, Tensor]) -> Weights:
    """Unit decoder rows; encoder, bias and threshold take the norms: latents times these, the same reconstruction."""
    norms = weights["W_dec"].norm(dim=-1).clamp(min=1e-8)
    folded = {"W_enc": weights["W_enc"] * norms, "b_enc": weights["b_enc"] * norms}
    if "threshold" in weights:
        folded["threshold"] = weights["threshold"] * norms
    return {**weights, **folded, "W_dec": weights["W_dec"] / norms[:, None]}


def fold_scale(weights: Mapping[str, Tensor], scale: float) -> Weights:
    """For an SAE of `scale * x` whose reconstruction is divided by `scale`: one of x, with the same latents."""
    return {
        **weights,
        "W_enc": weights["W_enc"] * scale,
        "W_dec": weights["W_dec"] / scale,
        "b_dec": weights["b_dec"] / scale,
    }


def fold_affine(
    weights: Mapping[str, Tensor],
    mean: Float[Tensor, " d_model"],
    matrix: Float[Tensor, "d_model d_model"],
    inverse: Float[Tensor, "d_model d_model"],
    *,
    centred: bool,
) -> Weights:
    """For an SAE of `(x - mean) @ matrix`, its reconstruction mapped back: one of x, with the same latents."""
    wide = {name: value.double() for name, value in weights.items()}
    w_enc = matrix.double() @ wide["W_enc"]
    folded = {
        "W_enc": w_enc,
        "b_enc": wide["b_enc"] if centred else wide["b_enc"] - mean.double() @ w_enc,
        "W_dec": wide["W_dec"] @ inverse.double(),
        "b_dec": wide["b_dec"] @ inverse.double() + mean.double(),
    }
    return {name: folded.get(name, wide[name]).to(value.dtype) for name, value in weights.items()}


def fold_centring(found: Published) -> Published:
    """For an SAE of `x - mean(x)`, the mean over d_model: one of x, whose reconstruction keeps the mean of zero."""
    weights = found.weights
    w_enc = weights["W_enc"] - weights["W_enc"].mean(0)
    lost = weights["b_dec"] @ (w_enc - weights["W_enc"]) if found.centred else 0
    return replace(
        found,
        weights={**weights, "W_enc": w_enc, "b_enc": weights["b_enc"] + lost},
        normalisation="less its mean over d_model",
    )


def taken(file: Path, found: Mapping[str, Tensor], names: Mapping[str, str]) -> Weights:
    """Tensors under other names: `names` says which tensor of the file each is. InputError where one is missing."""
    return dict(zip(names, needed(file, found, tuple(names.values())), strict=True))


def gate_as_threshold(
    gate: Float[Tensor, "d_model d_sae"],
    r_mag: Float[Tensor, " d_sae"],
    b_gate: Float[Tensor, " d_sae"],
    b_mag: Float[Tensor, " d_sae"],
) -> Weights:
    """A gate that shares its weights with the magnitudes is a threshold on them (arXiv 2404.16014, section 3.2).

    With q = x @ gate, the latent is relu(e^r q + b_mag) where q + b_gate > 0. With p = e^r q + b_mag that is
    p > b_mag - e^r b_gate.
    """
    scale = r_mag.exp()
    return {"W_enc": gate * scale, "b_enc": b_mag, "threshold": b_mag - scale * b_gate}
