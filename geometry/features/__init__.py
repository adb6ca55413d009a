"""Feature sets of an SAE: which latents data fires, how near two sets lie, which rows lie near a harmful one."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geometry.features.distances import (
        Neighbours,
        SetDistance,
        distance_table,
        nearest,
        pairwise_cosine,
        set_distance,
        similarity_to,
    )
    from geometry.features.draws import FrequencyMatched
    from geometry.features.figures import features_figure, geometry_figure, map_figure
    from geometry.features.filtering import RowSplit, drop_nearest, projection_scores, score_rows
    from geometry.features.maps import DecoderMap, decoder_map, neighbourhood
    from geometry.features.nulls import GeometryTable, compare_sets
    from geometry.features.sets import FeatureSet, identify_features

_HOME = {
    "DecoderMap": "geometry.features.maps",
    "FeatureSet": "geometry.features.sets",
    "FrequencyMatched": "geometry.features.draws",
    "GeometryTable": "geometry.features.nulls",
    "Neighbours": "geometry.features.distances",
    "RowSplit": "geometry.features.filtering",
    "SetDistance": "geometry.features.distances",
    "compare_sets": "geometry.features.nulls",
    "decoder_map": "geometry.features.maps",
    "distance_table": "geometry.features.distances",
    "drop_nearest": "geometry.features.filtering",
    "features_figure": "geometry.features.figures",
    "geometry_figure": "geometry.features.figures",
    "identify_features": "geometry.features.sets",
    "map_figure": "geometry.features.figures",
    "nearest": "geometry.features.distances",
    "neighbourhood": "geometry.features.maps",
    "pairwise_cosine": "geometry.features.distances",
    "projection_scores": "geometry.features.filtering",
    "score_rows": "geometry.features.filtering",
    "set_distance": "geometry.features.distances",
    "similarity_to": "geometry.features.distances",
}
__all__ = [
    "DecoderMap",
    "FeatureSet",
    "FrequencyMatched",
    "GeometryTable",
    "Neighbours",
    "RowSplit",
    "SetDistance",
    "compare_sets",
    "decoder_map",
    "distance_table",
    "drop_nearest",
    "features_figure",
    "geometry_figure",
    "identify_features",
    "map_figure",
    "nearest",
    "neighbourhood",
    "pairwise_cosine",
    "projection_scores",
    "score_rows",
    "set_distance",
    "similarity_to",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
