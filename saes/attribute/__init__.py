"""Attribution of what a model writes to latents, by gradient, and the ablations that it estimates."""

from saes.attribute.ablate import ablation_effects as ablation_effects
from saes.attribute.ablate import delta_ablation as delta_ablation
from saes.attribute.compute import attribute_latents as attribute_latents
from saes.attribute.compute import delta_attribution as delta_attribution
from saes.attribute.table import Attribution as Attribution
