"""A model organism of emergent misalignment, shipped in the package: small enough for a laptop, with an exact judge."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona_geometry.organism.judge import ExactJudge
    from persona_geometry.organism.shipped import load_organism, load_organism_sae, organism_inputs

_HOME = {
    "ExactJudge": "persona_geometry.organism.judge",
    "load_organism": "persona_geometry.organism.shipped",
    "load_organism_sae": "persona_geometry.organism.shipped",
    "organism_inputs": "persona_geometry.organism.shipped",
}
__all__ = ["ExactJudge", "load_organism", "load_organism_sae", "organism_inputs"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
