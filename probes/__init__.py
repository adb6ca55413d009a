"""What we ask of a model: its activations and its behaviour. Public names, loaded on first use."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.activations import Activations
    from probes.ask import ask, sample
    from probes.capture import capture
    from probes.conversations import (
        Conversation,
        Message,
        Rendered,
        conversation_batches,
        load_conversations,
        render,
        save_conversations,
        template_hash,
    )
    from probes.errors import InputError
    from probes.hooks import Operator, capture_blocks, intervene, teacher_forced
    from probes.io import read_json, write_json
    from probes.judges import EndpointJudge, Judge, Margin, Verdict, margins
    from probes.linear import PersonaProbe
    from probes.models import Model, check_layer, check_same_family, find_blocks, load_model
    from probes.outcomes import Counts, Outcomes, Rate, cut, difference, minimum_detectable, pool
    from probes.progress import Progress
    from probes.questions import Question, check_disjoint, load_questions
    from probes.store import ActivationStore
    from probes.verify import Check, self_test

_HOME = {
    "Activations": "probes.activations",
    "ActivationStore": "probes.store",
    "Check": "probes.verify",
    "Conversation": "probes.conversations",
    "Counts": "probes.outcomes",
    "EndpointJudge": "probes.judges",
    "InputError": "probes.errors",
    "Judge": "probes.judges",
    "Margin": "probes.judges",
    "Message": "probes.conversations",
    "Model": "probes.models",
    "Operator": "probes.hooks",
    "Outcomes": "probes.outcomes",
    "PersonaProbe": "probes.linear",
    "Progress": "probes.progress",
    "Question": "probes.questions",
    "Rate": "probes.outcomes",
    "Rendered": "probes.conversations",
    "Verdict": "probes.judges",
    "ask": "probes.ask",
    "capture": "probes.capture",
    "capture_blocks": "probes.hooks",
    "check_disjoint": "probes.questions",
    "check_layer": "probes.models",
    "check_same_family": "probes.models",
    "conversation_batches": "probes.conversations",
    "cut": "probes.outcomes",
    "difference": "probes.outcomes",
    "find_blocks": "probes.models",
    "intervene": "probes.hooks",
    "load_conversations": "probes.conversations",
    "load_model": "probes.models",
    "load_questions": "probes.questions",
    "margins": "probes.judges",
    "minimum_detectable": "probes.outcomes",
    "pool": "probes.outcomes",
    "read_json": "probes.io",
    "render": "probes.conversations",
    "sample": "probes.ask",
    "save_conversations": "probes.conversations",
    "self_test": "probes.verify",
    "teacher_forced": "probes.hooks",
    "template_hash": "probes.conversations",
    "write_json": "probes.io",
}
__all__ = [
    "ActivationStore",
    "Activations",
    "Check",
    "Conversation",
    "Counts",
    "EndpointJudge",
    "InputError",
    "Judge",
    "Margin",
    "Message",
    "Model",
    "Operator",
    "Outcomes",
    "PersonaProbe",
    "Progress",
    "Question",
    "Rate",
    "Rendered",
    "Verdict",
    "ask",
    "capture",
    "capture_blocks",
    "check_disjoint",
    "check_layer",
    "check_same_family",
    "conversation_batches",
    "cut",
    "difference",
    "find_blocks",
    "intervene",
    "load_conversations",
    "load_model",
    "load_questions",
    "margins",
    "minimum_detectable",
    "pool",
    "read_json",
    "render",
    "sample",
    "save_conversations",
    "self_test",
    "teacher_forced",
    "template_hash",
    "write_json",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """A package whose public functions win over submodules of the same name (`ask`, `capture`)."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
