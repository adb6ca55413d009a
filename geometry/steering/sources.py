"""Vectors and subspaces from other sources: judged answers, paired differences, a fitted probe, an SAE latent."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from geometry.steering.extract import contrast_vector, every_layer, provenance, residual_norms
from geometry.steering.vectors import Number, PersonaVector, Subspace
from probes.activations import Pool
from probes.capture import capture
from probes.conversations import Conversation, template_hash
from probes.errors import InputError
from probes.linear import LinearProbe
from probes.models import Model, check_same_family
from saes.fits import need_resid_post
from saes.sae import SparseAutoencoder


def judged_vector(
    model: Model,
    conversations: Sequence[Conversation],
    shows: Sequence[bool | None],
    *,
    layers: Sequence[int] | None = None,
    batch_size: int = 32,
) -> PersonaVector:
    """Mean response activation of a model's answers that show a trait, minus that of its answers that do not.

    One model wrote all of them, under the same prompts (arXiv 2506.11618, section 3: a misaligned model's misaligned
    and aligned answers). `shows` is the judge's word on each; None leaves an answer out. Raises InputError where one
    side has no answer.
    """
    if len(shows) != len(conversations):
        raise InputError(f"{len(conversations)} answers and {len(shows)} verdicts: give one for each")
    sides = [[c for c, shown in zip(conversations, shows, strict=True) if shown is side] for side in (True, False)]
    if not all(sides):
        counts = " and ".join(str(len(side)) for side in sides)
        raise InputError(f"judged vector: {counts} answers with and without the trait; both sides need some")
    vector = contrast_vector(model, sides[0], sides[1], layers=layers, batch_size=batch_size)
    return replace(vector, method="judged answers")


def paired_component(
    model: Model,
    positive: Sequence[Conversation],
    negative: Sequence[Conversation],
    *,
    layers: Sequence[int] | None = None,
    pool: Pool = "response_mean",
    batch_size: int = 32,
) -> PersonaVector:
    """First principal component of the paired differences positive minus negative at each block (uncentred).

    As in representation engineering (arXiv 2310.01405, section 3.1). The sign is that of the mean difference, the
    length the mean projection of the differences on the component; `meta["explained"]` holds its share of the squared
    differences by block. Raises InputError where the sides are not paired.
    """
    if len(positive) != len(negative) or len(positive) < 2:
        raise InputError(f"{len(positive)} and {len(negative)} conversations: give pairs, two or more")
    layers = every_layer(model, layers)
    acts = [capture(model, rows, layers=layers, pool=pool, batch_size=batch_size) for rows in (positive, negative)]
    directions, shares = {}, {}
    for layer in layers:
        differences = acts[0].at(layer).double() - acts[1].at(layer).double()
        _, strengths, components = torch.linalg.svd(differences, full_matrices=False)
        length = (differences @ components[0]).mean()
        directions[layer] = (components[0] * length).float()
        shares[str(layer)] = float(strengths[0].square() / strengths.square().sum())
    return PersonaVector(
        directions,
        model=model.name,
        template_hash=template_hash(model.tokenizer),
        scope=pool,
        method="first component of paired differences",
        resid_norms=residual_norms(model, negative, layers=layers, pool=pool, batch_size=batch_size),
        meta=provenance(model) | {"explained": shares},
    )


def probe_vector(probe: LinearProbe, *, layer: int, model: Model, scale: Number | None = 1.0) -> PersonaVector:
    """The unit normal of a fitted probe's boundary times `scale`: it points to the probe's positive class.

    With `scale=None` it is as long as the classes' means lie apart along it. Raises InputError for a probe that is not
    fitted, of another width, or without a direction.
    """
    if not hasattr(probe, "coef_"):
        raise InputError("probe is not fitted: call fit(X, y) first")
    every_layer(model, [layer])
    normal = torch.as_tensor(probe.coef_[0], dtype=torch.float64)
    if normal.numel() != model.d_model or not normal.any():
        raise InputError(
            f"probe of width {normal.numel()}, norm {normal.norm():g}, for {model.name} of width "
            f"{model.d_model}: give one that was fitted to activations of this model and tells its classes apart"
        )
    gap = float(torch.as_tensor(probe.direction_, dtype=torch.float64).norm())
    return PersonaVector(
        {layer: (normal / normal.norm() * (gap if scale is None else scale)).float()},
        model=model.name,
        template_hash=template_hash(model.tokenizer),
        method="linear probe",
        meta=provenance(model),
    )


def from_latent(sae: SparseAutoencoder, latent: int, scale: Number = 1.0) -> PersonaVector:
    """The unit decoder row of one SAE latent times `scale`, at the SAE's block: it points to where the latent fires.

    Raises InputError for an SAE of another site than the blocks' outputs.
    """
    need_resid_post(sae, "a persona vector")
    sae.check_latents([latent])
    return PersonaVector(
        {sae.layer: sae.directions[latent].cpu() * scale},
        model=sae.model_name,
        method=f"latent {latent} of {sae.name or 'an SAE'}",
        meta={"sae": sae.name, "latent": latent},
    )


def shift_subspace(
    base: Model,
    tuned: Model,
    conversations: Sequence[Conversation],
    *,
    layer: int,
    rank: int,
    pool: Pool = "last_prompt",
) -> Subspace:
    """The `rank` leading dimensions of the conversation-wise differences tuned minus base (uncentred SVD) after one
    block.

    `meta["explained"]` holds each dimension's share of the squared differences. Raises InputError where the differences
    span less.
    """
    check_same_family(base, tuned)
    acts = [capture(model, conversations, layers=[layer], pool=pool).at(layer).double() for model in (tuned, base)]
    differences = acts[0] - acts[1]
    _, strengths, directions = torch.linalg.svd(differences, full_matrices=False)
    found = int((strengths > 1e-6 * strengths[0]).sum()) if strengths[0] > 0 else 0
    if not 1 <= rank <= found:
        raise InputError(f"rank {rank}: the differences of {len(differences)} conversations span {found} dimensions")
    shares = (strengths.square() / strengths.square().sum())[:rank]
    meta = {"method": f"shift to {tuned.name}", "model": base.name, "explained": [float(share) for share in shares]}
    return Subspace(layer, directions[:rank].float(), meta)
