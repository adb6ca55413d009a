"""Whether two models may be compared: one architecture, one tokenizer, one chat template, one residual stream."""

from jaxtyping import Float
from torch import Tensor

from probes.conversations import template_hash
from probes.errors import InputError
from probes.models.blocks import unwrap
from probes.models.lens import architecture
from probes.models.model import Model


def check_same_family(base: Model, tuned: Model) -> None:
    """Raise InputError unless both models share architecture, width, depth, vocabulary, chat template and centring.

    TransformerLens can fold the norms of a model into its weights. That leaves the residual stream alone but where
    the norms subtract the mean (GPT-2, GPT-NeoX): there every activation loses its mean over d_model.
    """
    facts = (
        ("architecture", *(architecture(m.hf) for m in (base, tuned))),
        ("width", base.d_model, tuned.d_model),
        ("depth", base.n_layers, tuned.n_layers),
        ("vocabulary size", len(base.tokenizer), len(tuned.tokenizer)),
    )
    for what, one, other in facts:
        if one != other:
            raise InputError(
                f"{base.name} and {tuned.name} differ in {what} ({one}, {other}): give a base and its own tune"
            )
    if base.tokenizer is not tuned.tokenizer and base.tokenizer.get_vocab() != tuned.tokenizer.get_vocab():
        raise InputError(f"{base.name} and {tuned.name} have different tokenizers: give a base and its own fine-tune")
    if template_hash(base.tokenizer) != template_hash(tuned.tokenizer):
        raise InputError(f"{base.name} and {tuned.name} have different chat templates: give both the same one")
    centred = [m.name for m in (base, tuned) if is_centred(m)]
    if len(centred) == 1:
        raise InputError(
            f"{base.name} and {tuned.name}: TransformerLens has centred the weights of {centred[0]} alone, so their "
            "residual streams differ; load it without processing (from_pretrained_no_processing, no_processing=True)"
        )


def is_centred(model: Model) -> bool:
    """Whether every token's embedding has a mean of zero over d_model, as TransformerLens's folding leaves it."""
    weight: Float[Tensor, "token d_model"] = unwrap(model.hf).get_input_embeddings().weight
    if weight.is_meta:
        return False
    some = weight.detach()[:: max(1, len(weight) // 64)].float()
    return bool((some.mean(-1).abs() < 1e-3 * some.norm(dim=-1) / some.shape[-1] ** 0.5).all())
