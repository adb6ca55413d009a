"""A fitted probe with the place that it reads: made from activations, written to a folder, read again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from probes.activations import SITES, Activations, Site
from probes.errors import InputError
from probes.io import atomic_file, atomic_folder, read_json, write_json
from probes.linear.areas import upper_class
from probes.linear.calibrated import CalibratedProbe
from probes.linear.estimators import LdaProbe, LinearProbe, LogisticProbe, MeanDifferenceProbe, RidgeProbe
from probes.linear.folds import fresh
from probes.linear.sweep import grouped, samples

FORMAT = "persona-geometry/probe/1"
WEIGHTS, CARD = "probe.safetensors", "probe.json"
KINDS: dict[str, type[LinearProbe]] = {
    "logistic": LogisticProbe,
    "mean-difference": MeanDifferenceProbe,
    "lda": LdaProbe,
    "ridge": RidgeProbe,
    "calibrated": CalibratedProbe,
}
_TENSORS = ("coef", "intercept", "direction")
_FACTS: dict[str, type] = {"layer": int, "site": str, "pool": str, "model": str, "template_hash": str, "meta": dict}


@dataclass(frozen=True, eq=False)
class LayerProbe:
    """A fitted probe that reads the activations at one site of the 0-based block `layer`.

    `pool` says which tokens it was fitted to, `model` and `template_hash` whose; `meta` holds what else is known (how
    many samples, which figures, what the classes are called). The score is positive for the upper class, `positive`.
    """

    probe: LinearProbe
    layer: int
    site: Site = "resid_post"
    pool: str = ""
    model: str = ""
    template_hash: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not hasattr(self.probe, "coef_"):
            raise InputError("the probe is not fitted: call fit(X, y) first")
        if self.layer < 0 or self.site not in SITES:
            raise InputError(
                f"layer {self.layer}, site {self.site!r}: give a block from 0 and one of {', '.join(SITES)}"
            )

    @property
    def d_model(self) -> int:
        """Width of the activations that it reads."""
        return self.probe.coef_.shape[1]

    @property
    def positive(self) -> Any:
        """What a positive score stands for: `meta["positive"]`, or else the upper class."""
        return self.meta.get("positive", self.probe.classes_[1].item())

    def scores(self, activations: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """Scores in float64 of activations of its site and block, positive for the upper class."""
        values = activations.detach().double()
        weights = values.new_tensor(self.probe.coef_[0].tolist())
        return values @ weights + float(self.probe.intercept_[0])

    def __repr__(self) -> str:
        return f"LayerProbe({type(self.probe).__name__}, block {self.layer}, {self.site}, {self.model or 'no model'})"


def fit_probe(
    activations: Activations,
    labels: Any,
    *,
    layer: int,
    estimator: LinearProbe | None = None,
    groups: Any = None,
    model: str = "",
    meta: Mapping[str, Any] | None = None,
) -> LayerProbe:
    """Fit `estimator` (a LogisticProbe by default) to all samples of one block.

    `labels` (n_samples,) are of two classes; `groups` (n_samples,), a conversation by default, are what a
    CalibratedProbe keeps whole when it scales its scores. Raises InputError for a block that was not captured.
    """
    upper_class(labels, len(activations))
    probe, X = fresh(estimator or LogisticProbe()), samples(activations, layer)
    if isinstance(probe, CalibratedProbe):
        probe.fit(X, np.asarray(labels), groups=grouped(groups, activations.conversation_index.cpu().numpy()))
    else:
        probe.fit(X, np.asarray(labels))
    return LayerProbe(
        probe, layer, activations.site, activations.pool, model, activations.template_hash, dict(meta or {})
    )


def save_probe(probe: LayerProbe, folder: str | Path) -> Path:
    """Write `probe.safetensors` (coef [d_model], intercept [1], direction [d_model]; float64) and `probe.json`.

    The folder is made whole or not at all; other files of an older one are lost with it. Raises InputError where the
    probe's classes or settings have no JSON form.
    """
    fitted = probe.probe
    facts = {name: getattr(probe, name) for name in _FACTS}
    card = {"format": FORMAT, "layer_means": "output site of the 0-based decoder block", **facts}
    classes = fitted.classes_.tolist()
    tensors = {name: np.ascontiguousarray(np.ravel(getattr(fitted, f"{name}_")), dtype=float) for name in _TENSORS}
    card |= {"estimator": _described(fitted), "classes": classes, "d_model": probe.d_model}
    with atomic_folder(folder) as temporary:
        with atomic_file(temporary / WEIGHTS) as file:
            save_file(tensors, file)
        write_json(temporary / CARD, card)
    return Path(folder)


def load_probe(folder: str | Path) -> LayerProbe:
    """Read what `save_probe` wrote; scores are equal to the last bit. No code in the files is run.

    Raises InputError for files that are missing, damaged, or at odds with one another.
    """
    folder = Path(folder)
    card = _card(folder / CARD)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / WEIGHTS}: not readable ({str(error)[:120]}); write it with save_probe") from None
    width = card["d_model"]
    shapes = {name: tensors[name].shape for name in _TENSORS if name in tensors}
    if shapes != {"coef": (width,), "intercept": (1,), "direction": (width,)}:
        raise InputError(f"{folder / WEIGHTS}: holds {shapes}, the card says width {width}; write it again")
    if not all(np.isfinite(tensors[name]).all() for name in _TENSORS):
        raise InputError(f"{folder / WEIGHTS}: a number is not finite; write it again")
    fitted = _made(card["estimator"], folder)
    fitted.classes_, fitted.n_features_in_ = np.asarray(card["classes"]), width
    fitted.coef_, fitted.intercept_ = tensors["coef"][None], tensors["intercept"]
    fitted.direction_ = tensors["direction"]
    return LayerProbe(fitted, **{name: card[name] for name in _FACTS})


def estimator_named(name: str) -> LinearProbe:
    """A probe that is not fitted, by the name that files and the command line use. Raises InputError for another."""
    if name not in KINDS:
        raise InputError(f"estimator {name!r}: use one of {', '.join(KINDS)}")
    return KINDS[name]()  # pyright: ignore[reportAbstractUsage]


def _card(file: Path) -> dict[str, Any]:
    """The card, once every entry is of its type."""
    card = read_json(file)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise InputError(f"{file}: not of the format {FORMAT}; write it with save_probe")
    for name, kind in {**_FACTS, "d_model": int, "classes": list, "estimator": dict}.items():
        if not isinstance(card.get(name), kind):
            raise InputError(f"{file}: {name} is {str(card.get(name))[:40]!r}, no {kind.__name__}; write it again")
    if card["site"] not in SITES or len(card["classes"]) != 2:
        raise InputError(f"{file}: site {card['site']!r}, classes {str(card['classes'])[:60]}; write it again")
    return card


def _described(estimator: LinearProbe) -> dict[str, Any]:
    names = {kind: name for name, kind in KINDS.items()}
    if type(estimator) not in names:
        raise InputError(
            f"{type(estimator).__name__}: not one of the probes that have a file format: {', '.join(KINDS)}"
        )
    settings = estimator.get_params(deep=False)
    known = {key: _described(value) if isinstance(value, LinearProbe) else value for key, value in settings.items()}
    return {"name": names[type(estimator)], "settings": known}


def _made(described: Mapping[str, Any], place: Path) -> LinearProbe:
    settings = described.get("settings")
    made = estimator_named(str(described.get("name")))
    known = made.get_params(deep=False)
    for key, value in (settings if isinstance(settings, dict) else {}).items():
        if key not in known:
            raise InputError(f"{place / CARD}: {described['name']} has no setting {key!r}; write it again")
        setattr(made, key, _made(value, place) if isinstance(value, dict) else value)
    return made
