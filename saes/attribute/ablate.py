"""Ablation of latents one by one: the true change of the loss that attribution estimates."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from probes.activations import Site
from probes.conversations import Conversation
from probes.errors import InputError
from probes.judges.margin import response_logprobs
from probes.models import Model
from probes.passes import Positions
from saes.attribute.compute import paired
from saes.attribute.setting import Form, Reference, Setting, setting_for
from saes.sae import SparseAutoencoder


@dataclass(frozen=True, eq=False)
class Without:
    """An operator that takes a share of one latent out of the activations: h' = h - share (level - usual) d.

    The rest of the activation, and what the SAE does not explain, stay as they were: no reconstruction is put in.
    """

    setting: Setting
    latent: int
    usual: float
    share: float = 1.0

    @property
    def layers(self) -> tuple[int, ...]:
        """The SAE's block."""
        return (self.setting.sae.layer,)

    @property
    def site(self) -> Site:
        """The SAE's site."""
        return self.setting.sae.site

    @property
    def positions(self) -> Positions:
        """Where it acts."""
        return self.setting.positions

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"], *, layer: int, mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the activations without the latent where `mask` is true."""
        del layer
        h = activations[mask].float()
        sae = self.setting.sae
        if self.setting.form == "latent":
            level, row = sae.encode_some(h, [self.latent])[:, 0], sae.W_dec[self.latent]
        else:
            row = torch.nn.functional.normalize(sae.W_dec[self.latent], dim=-1)
            level = h.to(row) @ row
        step = einsum(level - self.usual, row, "sample, d_model -> sample d_model") * self.share
        return activations.index_put((mask,), (h - step.to(h)).to(activations.dtype))


def ablation_effects(
    model: Model,
    sae: SparseAutoencoder,
    conversations: Sequence[Conversation],
    latents: Sequence[int],
    *,
    reference: Reference = "mean",
    form: Form = "latent",
    positions: Positions = "all",
    share: float = 1.0,
    batch_size: int = 8,
) -> Float[Tensor, " latent"]:
    """True change of the answers' loss (nats per answer token, mean over conversations) when a latent is taken out.

    Each latent alone, at `positions`, down to the reference: what `attribute_latents` with the same settings estimates,
    in its sign (positive: without the latent the answers are less likely). Its contribution is subtracted from the
    original activations; the reconstruction is not spliced in. `share` takes only a part of it out. One pass over the
    conversations a latent, and one without. InputError for an SAE that does not fit, and for latents it has not.
    """
    setting = setting_for(model, sae, form, reference, positions)
    sae.check_latents(latents)
    if not conversations:
        raise InputError("ablation: no conversations given; give at least one with an answer")
    weights = torch.full((len(conversations),), 1 / len(conversations), dtype=torch.float64)
    return _changes(model, setting, Weighed(conversations, weights), latents, share=share, batch_size=batch_size)


def delta_ablation(
    model: Model,
    sae: SparseAutoencoder,
    undesired: Sequence[Conversation],
    desired: Sequence[Conversation],
    latents: Sequence[int],
    *,
    reference: Reference = "mean",
    form: Form = "latent",
    positions: Positions = "all",
    share: float = 1.0,
    batch_size: int = 8,
) -> Float[Tensor, " latent"]:
    """True change of the undesired answers' loss less that of the desired ones when a latent is taken out.

    What `delta_attribution` with the same settings estimates, in its sign (positive: the latent makes the undesired
    answers likelier than the desired ones), weights and errors; how a latent is taken out: see `ablation_effects`. The
    contrast follows the first order far better than one side's loss does: there a model's own answers lie near the
    least loss it has, so that whatever is taken out raises it.
    """
    setting = setting_for(model, sae, form, reference, positions)
    sae.check_latents(latents)
    rows, weights = list[Conversation](), list[float]()
    prompts = paired(undesired, desired)
    for prompt in prompts:
        for side, sign in zip(prompt, (1, -1), strict=True):
            rows += side
            weights += [sign / len(side) / len(prompts)] * len(side)
    weighed = Weighed(rows, torch.tensor(weights, dtype=torch.float64))
    return _changes(model, setting, weighed, latents, share=share, batch_size=batch_size)


@dataclass(frozen=True, eq=False)
class Weighed:
    """Conversations and what each one's loss per answer token counts for."""

    rows: Sequence[Conversation]
    weights: Float[Tensor, " sample"]


def _changes(
    model: Model, setting: Setting, weighed: Weighed, latents: Sequence[int], *, share: float, batch_size: int
) -> Float[Tensor, " latent"]:
    """Change of the weighed loss when each latent alone is taken out."""
    usual = setting.usual(model, weighed.rows, batch_size)

    def loss(*operators: Without) -> Tensor:
        sums, counts = response_logprobs(model, weighed.rows, operators=operators, batch_size=batch_size)
        return -(weighed.weights * sums.double() / counts).sum()

    before = loss()
    after = [loss(Without(setting, int(i), float(usual[i]), share)) - before for i in latents]
    return torch.stack(after) if after else torch.zeros(0, dtype=torch.float64)
