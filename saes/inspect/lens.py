"""The logit lens: the tokens that a latent's decoder direction makes likelier and unlikelier."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probes.errors import InputError
from probes.models import Model, unwrap
from saes.fits import check_fits
from saes.inspect.texts import single_text
from saes.sae import SparseAutoencoder


def logit_lens(
    sae: SparseAutoencoder, model: Model, latents: Sequence[int], *, k: int = 10, largest: bool = True
) -> dict[int, list[tuple[str, float]]]:
    """For each latent the `k` tokens whose logits its decoder direction raises most (`largest=False`: lowers most).

    The unit direction goes through the final norm and the unembedding, and figures are relative to the mean over all
    tokens. The final norm rescales, so figures compare within one latent only; later blocks are left out, as in any
    logit lens.
    """
    check_fits(sae, model)
    sae.check_latents(latents)
    directions = sae.directions[torch.as_tensor(list(latents), dtype=torch.long, device=sae.device)]
    logits = _unembedded(model, directions)
    k = min(k, logits.shape[-1])
    values, ids = (logits - logits.mean(-1, keepdim=True)).topk(k, dim=-1, largest=largest)
    texts = [[single_text(model.tokenizer, token) for token in row] for row in ids.tolist()]
    return {int(latent): list(zip(texts[i], values[i].tolist(), strict=True)) for i, latent in enumerate(latents)}


@torch.no_grad()
def _unembedded(model: Model, directions: Float[Tensor, "feature d_model"]) -> Float[Tensor, "feature vocabulary"]:
    norm, head = _final_norm(model), unwrap(model.hf).get_output_embeddings()
    x = directions.to(head.weight.device, head.weight.dtype)
    x = (norm(x) - norm(-x)) / 2  # the odd part: a LayerNorm's bias belongs to no direction
    return (x @ head.weight.T).float().cpu()


def _final_norm(model: Model) -> nn.Module:
    """The norm after the last block: the module beside the list of blocks."""
    blocks = model.blocks
    for parent in unwrap(model.hf).modules():
        children = dict(parent.named_children())
        if any(child is blocks for child in children.values()):
            norms = [child for name, child in children.items() if "norm" in name or name.startswith("ln_f")]
            if len(norms) == 1:
                return norms[0]
    raise InputError(f"{model.name!r}: no single norm stands beside its blocks, so there is no logit lens for it")
