"""Vectors and subspaces from other sources: a fitted probe, an SAE latent, the leading dimensions of a shift."""

from collections.abc import Sequence

import torch

from geometry.steering.extract import every_layer, provenance
from geometry.steering.vectors import Number, PersonaVector, Subspace
from probes.activations import Pool
from probes.capture import capture
from probes.conversations import Conversation, template_hash
from probes.errors import InputError
from probes.linear import PersonaProbe
from probes.models import Model, check_same_family
from saes.sae import SparseAutoencoder


def probe_vector(probe: PersonaProbe, *, layer: int, model: Model, scale: Number = 1.0) -> PersonaVector:
    """The unit normal of a fitted probe's boundary times `scale`: it points to the probe's positive class."""
    if not hasattr(probe, "direction_"):
        raise InputError("probe is not fitted: call fit(X, y) first")
    every_layer(model, [layer])
    direction = torch.as_tensor(probe.direction_, dtype=torch.float32) * scale
    return PersonaVector(
        {layer: direction},
        model=model.name,
        template_hash=template_hash(model.tokenizer),
        method="linear probe",
        meta=provenance(model),
    )


def from_latent(sae: SparseAutoencoder, latent: int, scale: Number = 1.0) -> PersonaVector:
    """The unit decoder row of one SAE latent times `scale`, at the SAE's block: it points to where the latent fires."""
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
