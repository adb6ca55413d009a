"""Persona space: the principal axes of several characters' vectors, and the axis from them to the assistant."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from plotly.graph_objects import Figure
from torch import Tensor

from geometry.steering.vectors import PersonaVector
from probes.errors import InputError


@dataclass(frozen=True, eq=False)
class PersonaSpace:
    """Principal components of the characters' vectors of one block, about their mean.

    `coordinates` are the characters on `components` (orthonormal rows, strongest first; the character of largest
    coordinate lies on the positive side), `explained` each component's share of the variance. `stability[i]` is the
    least |cosine| of component i with the like one when any one character is left out: below .9, say, it is one
    character's own direction.
    """

    layer: int
    names: tuple[str, ...]
    mean: Float[Tensor, " d_model"]
    components: Float[Tensor, "rank d_model"]
    coordinates: Float[Tensor, "persona rank"]
    explained: tuple[float, ...]
    stability: tuple[float, ...]

    def dimensions(self, share: float = 0.7) -> int:
        """How many components explain `share` of the variance (arXiv 2601.10387 gives that for .7)."""
        if not 0 < share <= 1:
            raise InputError(f"share={share} of the variance; use 0 < share <= 1")
        return int(np.searchsorted(np.cumsum(self.explained), share - 1e-9)) + 1

    def axis_cosine(self, axis: PersonaVector) -> tuple[float, ...]:
        """|cosine| of a vector, such as the assistant axis, with each component; signs of components mean nothing."""
        return tuple((self.components @ axis.unit(self.layer).double().to(self.components)).abs().tolist())

    def table(self) -> pd.DataFrame:
        """One row per character: `persona`, `pc1`, `pc2`, ..."""
        columns = {f"pc{i + 1}": self.coordinates[:, i].tolist() for i in range(len(self.explained))}
        return pd.DataFrame({"persona": list(self.names), **columns})

    def figure(self) -> Figure:
        """The characters on the first two components, with their shares of the variance."""
        from geometry.features.persona_figure import personas_figure

        return personas_figure(self.table(), self.explained)

    def _repr_html_(self) -> str:
        shares = ", ".join(f"{share:.0%}" for share in self.explained[:5])
        return f"<div><b>{len(self.names)}</b> characters at block {self.layer}; components explain {shares}</div>"


def persona_space(vectors: Mapping[str, PersonaVector], *, layer: int, unit: bool = False) -> PersonaSpace:
    """Principal components of characters' vectors at one block, in float64 (arXiv 2601.10387, persona space).

    Vectors as they are, or scaled to length 1 (`unit`) where lengths tell how strongly a prompt worked and not who
    speaks. All must be measured from one reference. `InputError` on fewer than 3 characters, on several models or
    widths, and where all vectors are one.
    """
    if len(vectors) < 3:
        raise InputError(f"{len(vectors)} characters: a space of personas needs three or more")
    _check_alike(vectors)
    rows = torch.stack([(v.unit(layer) if unit else v.at(layer)).double().cpu() for v in vectors.values()])
    coordinates, components, explained = _components(rows)
    turned = torch.sign(coordinates.gather(0, coordinates.abs().argmax(dim=0, keepdim=True)).squeeze(0))
    return PersonaSpace(
        layer=layer,
        names=tuple(vectors),
        mean=rows.mean(dim=0),
        components=components * turned[:, None],
        coordinates=coordinates * turned,
        explained=tuple(explained.tolist()),
        stability=_stability(rows, components),
    )


def _components(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates, components and shares of variance of rows about their mean."""
    left, strengths, components = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    rank = int((strengths > 1e-9 * rows.norm()).sum())
    if not rank:
        raise InputError(f"all {len(rows)} vectors are the same: they span no space of personas")
    shares = strengths.square() / strengths.square().sum()
    return (left * strengths)[:, :rank], components[:rank], shares[:rank]


def _stability(rows: Tensor, components: Tensor) -> tuple[float, ...]:
    least = torch.ones(len(components), dtype=rows.dtype)
    for left_out in range(len(rows)):
        part = torch.cat([rows[:left_out], rows[left_out + 1 :]])
        others = torch.linalg.svd(part - part.mean(dim=0), full_matrices=False).Vh[: len(components)]
        cosines = torch.zeros_like(least)
        cosines[: len(others)] = (components[: len(others)] * others).sum(dim=1).abs()
        least = torch.minimum(least, cosines)
    return tuple(least.tolist())


def assistant_axis(roles: Mapping[str, PersonaVector], default: PersonaVector | None = None) -> PersonaVector:
    """The axis from role-played characters to the default assistant: mean(default) - mean(roles) (arXiv 2601.10387).

    At every block that all have; positive = more like the assistant, and `Floor` on it is the paper's capping. Without
    `default` the roles' vectors are taken to be measured from the default assistant, whose own is then zero. Each role
    counts once. `InputError` on no role, on several models or widths, and where no block is common.
    """
    everyone = dict(roles) | ({} if default is None else {"default": default})
    if not roles:
        raise InputError("no roles: an assistant axis needs at least one character beside the assistant")
    _check_alike(everyone)
    layers = sorted(set.intersection(*(set(vector.layers) for vector in everyone.values())))
    if not layers:
        raise InputError("the characters' vectors have no block in common; extract all at the same blocks")
    directions = {}
    for layer in layers:
        mean = torch.stack([vector.at(layer).double().cpu() for vector in roles.values()]).mean(dim=0)
        own = torch.zeros_like(mean) if default is None else default.at(layer).double().cpu()
        directions[layer] = (own - mean).float()
    first = next(iter(everyone.values()))
    norms = {layer: norm for layer, norm in (default or first).resid_norms.items() if layer in directions}
    return PersonaVector(
        directions,
        model=first.model,
        template_hash=first.template_hash,
        scope=first.scope,
        method="assistant axis",
        resid_norms=norms,
        meta={"roles": sorted(roles), "default": "given" if default is not None else "zero"},
    )


def _check_alike(vectors: Mapping[str, PersonaVector]) -> None:
    models = {vector.model for vector in vectors.values()}
    widths = {vector.d_model for vector in vectors.values()}
    if len(models) > 1 or len(widths) > 1:
        raise InputError(f"vectors of models {sorted(models)}, widths {sorted(widths)}: take all from one model")
