"""Geometry: where persona features lie, how near to one another, and what happens when they are steered or removed."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geometry.features.distances import nearest, pairwise_cosine, set_distance
    from geometry.features.filtering import score_rows
    from geometry.features.maps import decoder_map
    from geometry.features.nulls import GeometryTable, compare_sets
    from geometry.features.sets import FeatureSet, identify_features
    from geometry.steering.arms import ask_many
    from geometry.steering.doses import Controls, Dose, DoseCurve, dose_response
    from geometry.steering.export import export
    from geometry.steering.export.gguf import read_gguf, write_gguf
    from geometry.steering.export.safetensors import read_safetensors, write_safetensors
    from geometry.steering.extract import contrast_vector, finetuning_shift, mean_difference
    from geometry.steering.latent_operators import AddLatent, ClampLatent
    from geometry.steering.levels import Levels, projection_levels, projection_quantile
    from geometry.steering.operators import Ablate, Add, Cap, Floor, SetProjection
    from geometry.steering.per_row import AddPerRow, PerRow
    from geometry.steering.random_controls import (
        edit_sizes,
        random_controls,
        random_covariance,
        random_latent_controls,
        random_latents,
        random_like,
        random_subspaces,
    )
    from geometry.steering.screen import CausalScreen, ScreenGrid, causal_screen
    from geometry.steering.sources import from_latent, probe_vector, shift_subspace
    from geometry.steering.traits import Trait, persona_vector
    from geometry.steering.vectors import PersonaVector, Subspace
    from geometry.steering.writers import Writers, direction_writers

_FEATURES = {
    "FeatureSet": "geometry.features.sets",
    "GeometryTable": "geometry.features.nulls",
    "compare_sets": "geometry.features.nulls",
    "decoder_map": "geometry.features.maps",
    "identify_features": "geometry.features.sets",
    "nearest": "geometry.features.distances",
    "pairwise_cosine": "geometry.features.distances",
    "score_rows": "geometry.features.filtering",
    "set_distance": "geometry.features.distances",
}
_STEERING = {
    "Ablate": "geometry.steering.operators",
    "Add": "geometry.steering.operators",
    "AddLatent": "geometry.steering.latent_operators",
    "AddPerRow": "geometry.steering.per_row",
    "Cap": "geometry.steering.operators",
    "CausalScreen": "geometry.steering.screen",
    "ClampLatent": "geometry.steering.latent_operators",
    "Controls": "geometry.steering.doses",
    "Dose": "geometry.steering.doses",
    "DoseCurve": "geometry.steering.doses",
    "Floor": "geometry.steering.operators",
    "Levels": "geometry.steering.levels",
    "PerRow": "geometry.steering.per_row",
    "PersonaVector": "geometry.steering.vectors",
    "SetProjection": "geometry.steering.operators",
    "Subspace": "geometry.steering.vectors",
    "Trait": "geometry.steering.traits",
    "Writers": "geometry.steering.writers",
    "ask_many": "geometry.steering.arms",
    "ScreenGrid": "geometry.steering.screen",
    "causal_screen": "geometry.steering.screen",
    "contrast_vector": "geometry.steering.extract",
    "direction_writers": "geometry.steering.writers",
    "dose_response": "geometry.steering.doses",
    "edit_sizes": "geometry.steering.random_controls",
    "export": "geometry.steering.export",
    "finetuning_shift": "geometry.steering.extract",
    "from_latent": "geometry.steering.sources",
    "mean_difference": "geometry.steering.extract",
    "persona_vector": "geometry.steering.traits",
    "probe_vector": "geometry.steering.sources",
    "projection_levels": "geometry.steering.levels",
    "projection_quantile": "geometry.steering.levels",
    "random_controls": "geometry.steering.random_controls",
    "random_covariance": "geometry.steering.random_controls",
    "random_latent_controls": "geometry.steering.random_controls",
    "random_latents": "geometry.steering.random_controls",
    "random_like": "geometry.steering.random_controls",
    "random_subspaces": "geometry.steering.random_controls",
    "read_gguf": "geometry.steering.export.gguf",
    "read_safetensors": "geometry.steering.export.safetensors",
    "shift_subspace": "geometry.steering.sources",
    "write_gguf": "geometry.steering.export.gguf",
    "write_safetensors": "geometry.steering.export.safetensors",
}
_HOME = _FEATURES | _STEERING
__all__ = [
    "Ablate",
    "Add",
    "AddLatent",
    "AddPerRow",
    "Cap",
    "CausalScreen",
    "ClampLatent",
    "Controls",
    "Dose",
    "DoseCurve",
    "FeatureSet",
    "Floor",
    "GeometryTable",
    "Levels",
    "PerRow",
    "PersonaVector",
    "ScreenGrid",
    "SetProjection",
    "Subspace",
    "Trait",
    "Writers",
    "ask_many",
    "causal_screen",
    "compare_sets",
    "contrast_vector",
    "decoder_map",
    "direction_writers",
    "dose_response",
    "edit_sizes",
    "export",
    "finetuning_shift",
    "from_latent",
    "identify_features",
    "mean_difference",
    "nearest",
    "pairwise_cosine",
    "persona_vector",
    "probe_vector",
    "projection_levels",
    "projection_quantile",
    "random_controls",
    "random_covariance",
    "random_latent_controls",
    "random_latents",
    "random_like",
    "random_subspaces",
    "read_gguf",
    "read_safetensors",
    "score_rows",
    "set_distance",
    "shift_subspace",
    "write_gguf",
    "write_safetensors",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
