"""Persona Geometry: did a fine-tune become misaligned, what carries it, how near is it, what turns it off."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona_geometry.organism.shipped import load_organism, load_organism_sae, organism_inputs
    from persona_geometry.results import Study
    from persona_geometry.stages.front import study
    from persona_geometry.stages.inputs import Inputs, Rows, Sizes
    from persona_geometry.stages.run import run_study

_HOME = {
    "Inputs": "persona_geometry.stages.inputs",
    "Rows": "persona_geometry.stages.inputs",
    "Sizes": "persona_geometry.stages.inputs",
    "Study": "persona_geometry.results",
    "load_organism": "persona_geometry.organism.shipped",
    "load_organism_sae": "persona_geometry.organism.shipped",
    "organism_inputs": "persona_geometry.organism.shipped",
    "run_study": "persona_geometry.stages.run",
    "study": "persona_geometry.stages.front",
}
__all__ = [
    "Inputs",
    "Rows",
    "Sizes",
    "Study",
    "load_organism",
    "load_organism_sae",
    "organism_inputs",
    "run_study",
    "study",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
