"""What is attributed to latents: in which form, against which level, at which positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from probes.capture import capture
from probes.chunks import TokenScope
from probes.conversations import Conversation
from probes.errors import InputError
from probes.models import Model
from probes.passes import POSITIONS, Positions, forced_positions
from saes.fits import check_fits
from saes.rows import block_rows
from saes.sae import SparseAutoencoder

#: What of a latent is taken away: its activation times its decoder row, or the whole component along that row.
Form = Literal["latent", "direction"]
Reference = Literal["mean", "zero"]
#: Conversations read at a time.
GROUP = 64


@dataclass(frozen=True, eq=False)
class Setting:
    """What is attributed: to an SAE's latents, in which form, against which level, at which positions."""

    sae: SparseAutoencoder
    form: Form
    reference: Reference
    positions: Positions

    def __post_init__(self) -> None:
        given = {"form": get_args(Form), "reference": get_args(Reference), "positions": POSITIONS}
        for name, known in given.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name}={getattr(self, name)!r}: use one of {', '.join(known)}")

    def rows(self) -> Float[Tensor, "d_sae d_model"]:
        """What a unit of each latent writes."""
        return self.sae.W_dec if self.form == "latent" else self.sae.directions

    def levels(self, x: Float[Tensor, "sample d_model"]) -> Float[Tensor, "sample d_sae"]:
        """How much of each latent is there: its activation, or the component along its direction."""
        if self.form == "latent":
            return self.sae.encode(x)
        return x.to(self.sae.device, self.sae.dtype) @ self.sae.directions.T

    def usual(self, model: Model, conversations: Sequence[Conversation], batch_size: int) -> Float[Tensor, " d_sae"]:
        """The level that counts as taken out: 0, or the mean over all tokens of the conversations that are edited."""
        total, n = torch.zeros(self.sae.d_sae, dtype=torch.float64), 0
        if self.reference == "zero":
            return total.to(self.sae.device, self.sae.dtype)
        scope = TokenScope("edited", lambda rendered: forced_positions(rendered)[self.positions], single=True)
        site = self.sae.site
        for start in range(0, len(conversations), GROUP):
            some = conversations[start : start + GROUP]
            acts = capture(model, some, layers=[self.sae.layer], pool=scope, site=site, batch_size=batch_size)
            for rows in acts.at(self.sae.layer).split(block_rows(self.sae.d_sae)):
                total += self.levels(rows).sum(0, dtype=torch.float64).cpu()
                n += len(rows)
        return (total / n).to(self.sae.device, self.sae.dtype)


def setting_for(
    model: Model, sae: SparseAutoencoder, form: Form, reference: Reference, positions: Positions
) -> Setting:
    """A setting whose SAE fits the model; InputError where it does not."""
    setting = Setting(sae, form, reference, positions)
    check_fits(sae, model)
    return setting
