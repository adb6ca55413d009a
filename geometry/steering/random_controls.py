"""Random controls: directions, subspaces and latents that match a treatment in all but their meaning.

An effect counts only beside what random edits of the same size do. Three families: "norm", random directions of equal
norm; "covariance", directions drawn from the activations' own covariance, which lie where activations vary; and random
SAE latents of like firing rate. A direction's blocks are never drawn separately: "norm" turns the whole vector by one
random rotation, so that norms and the angles between blocks stay; "covariance" takes the same mixture of samples at
every block. Independent draws would be a stronger treatment than the one they control for, since what block 2 received
would not be known to block 3.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from geometry.steering.latent_operators import AddLatent, ClampLatent
from geometry.steering.levels import Levels, projection_quantile
from geometry.steering.operators import Ablate, Add, Cap, Floor, SetProjection, per_block
from geometry.steering.vectors import PersonaVector, Subspace
from probes.activations import Activations
from probes.errors import InputError
from probes.hooks import Operator
from saes.latents import LatentStats
from saes.sae import SparseAutoencoder

Kind = Literal["norm", "covariance"]


def random_like(vector: PersonaVector, n: int, generator: torch.Generator) -> list[PersonaVector]:
    """`n` random rotations of a vector: the norm at every block and the cosines between blocks are its own."""
    stack = torch.stack([vector.at(layer).cpu().double() for layer in vector.layers])
    own, mixing = torch.linalg.qr(stack.T)
    rank = own.shape[1]
    found = []
    for _ in range(_counted(n)):
        frame = torch.linalg.qr(torch.randn(vector.d_model, rank, generator=generator, dtype=torch.float64)).Q
        turned = (frame @ mixing).T.float()
        found.append(_instead(vector, dict(zip(vector.layers, turned, strict=True)), "random rotation"))
    return found


def random_covariance(
    activations: Activations, vector: PersonaVector, n: int, generator: torch.Generator
) -> list[PersonaVector]:
    """`n` Gaussian draws with the covariance of `activations` at every block, each scaled to the vector's norm there.

    A draw is a random mixture of the centred samples, the same mixture at all blocks.
    """
    if len(activations) < 2:
        raise InputError(f"covariance of {len(activations)} activations: give at least 2")
    centred = {layer: activations.at(layer).double() for layer in vector.layers}
    centred = {layer: values - values.mean(0) for layer, values in centred.items()}
    weights = torch.randn(_counted(n), len(activations), generator=generator, dtype=torch.float64)
    drawn = {layer: torch.nn.functional.normalize(weights @ values, dim=-1) for layer, values in centred.items()}
    return [
        _instead(
            vector, {layer: (drawn[layer][i] * vector.norm(layer)).float() for layer in drawn}, "random covariance draw"
        )
        for i in range(n)
    ]


def random_subspaces(like: Subspace, n: int, generator: torch.Generator) -> list[Subspace]:
    """`n` uniformly random subspaces of the same rank at the same block."""
    shape = like.basis.shape
    draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(_counted(n))]
    return [Subspace.spanned(like.layer, rows, method="random") for rows in draws]


def random_latents(
    sae: SparseAutoencoder,
    stats: LatentStats,
    like: int | Sequence[int],
    n: int,
    generator: torch.Generator,
) -> list[tuple[int, ...]]:
    """`n` sets of random latents that fire about as often as the latents `like`, one for each of these.

    Each is drawn from the `max(20, 2 n)` latents whose firing rate is nearest on a log scale; `like` itself is
    excluded.
    """
    wanted = (like,) if isinstance(like, int) else tuple(like)
    sae.check_latents(wanted)
    free = torch.ones(sae.d_sae, dtype=torch.bool)
    free[list(wanted)] = False
    near = max(20, 2 * _counted(n))
    if int(free.sum()) < len(wanted):
        raise InputError(f"{len(wanted)} of {sae.d_sae} latents leave too few for a random set: give fewer")
    logs = stats.freq.double().clamp(min=0.5 / max(1, stats.n)).log()
    sets = []
    for _ in range(n):
        taken = free.clone()
        chosen = []
        for latent in wanted:
            distance = (logs - logs[latent]).abs().masked_fill(~taken, torch.inf)
            pool = distance.argsort(stable=True)[: min(near, int(taken.sum()))]
            pick = int(pool[torch.randint(len(pool), (1,), generator=generator)])
            taken[pick] = False
            chosen.append(pick)
        sets.append(tuple(chosen))
    return sets


def random_latent_controls(
    operator: AddLatent | ClampLatent, stats: LatentStats, n: int, generator: torch.Generator
) -> list[Operator]:
    """`n` copies of an operator on latents that act on random latents of like firing rate instead."""
    sets = random_latents(operator.sae, stats, operator.indices, n, generator)
    return [replace(operator, latents=latents) for latents in sets]


def random_controls(
    operator: Operator,
    n: int,
    generator: torch.Generator,
    *,
    activations: Activations | None = None,
    kind: Kind = "norm",
) -> list[Operator]:
    """`n` copies of an operator with random directions in place of its own, matched in energy; `ask_many` runs them
    together.

    `Add` keeps strength and unit. An operator that *sets* a projection (`SetProjection`, `Ablate`) cannot simply keep
    its target, which means nothing on another direction; and random edits tuned to the same size at every position
    never settle, because each block finds its direction disturbed anew. So the energy is fixed once, from the treated
    direction: with `activations` of the model that is edited, at the positions that are edited, the treatment moves the
    mean projection from m to t, and the control moves the mean projection on its random direction from that direction's
    own mean m' to m' + (t - m), with a random sign common to all blocks. For a subspace the displacement has the same
    length and a random heading. `Cap` and `Floor` cut their random direction at the quantile at which they cut their
    own.
    """
    if isinstance(operator, Ablate) and isinstance(operator.target, Subspace):
        return _subspace_controls(operator, operator.target, n, generator, _needed(activations))
    remake = _REMAKE.get(type(operator))
    if remake is None:
        raise InputError(f"no random control for {type(operator).__name__}: use random_latent_controls for latents")
    vector: PersonaVector = getattr(operator, "target" if isinstance(operator, Ablate) else "vector")
    vector = vector.only(*operator.layers)
    if kind == "covariance":
        drawn = random_covariance(_needed(activations), vector, n, generator)
    elif kind == "norm":
        drawn = random_like(vector, n, generator)
    else:
        raise InputError(f"kind {kind!r}: use 'norm' or 'covariance'")
    signs = torch.randint(2, (n,), generator=generator) * 2 - 1
    return [remake(operator, v, int(s), activations) for v, s in zip(drawn, signs, strict=True)]


def displacement(operator: SetProjection | Ablate, activations: Activations) -> dict[int, float]:
    """How far an operator moves the mean projection on its own direction, block by block: target minus present mean."""
    vector = operator.vector if isinstance(operator, SetProjection) else operator.target
    assert isinstance(vector, PersonaVector)
    present = _mean_projections(vector, operator.layers, activations)
    return {i: float(operator.frames[i][1][0]) - present[i] for i in operator.layers}


def _settled(operator: Operator, vector: PersonaVector, sign: int, activations: Activations | None) -> Operator:
    assert isinstance(operator, SetProjection | Ablate)
    acts = _needed(activations)
    own = _mean_projections(vector, operator.layers, acts)
    shift = {layer: sign * moved for layer, moved in displacement(operator, acts).items()}
    levels = Levels(own, shift)
    return SetProjection(vector, levels, dose=1.0, positions=operator.positions, layers=operator.layers)


def _added(operator: Operator, vector: PersonaVector, sign: int, activations: Activations | None) -> Operator:
    assert isinstance(operator, Add)
    return replace(operator, vector=vector * float(sign))


def _bounded(operator: Operator, vector: PersonaVector, sign: int, activations: Activations | None) -> Operator:
    assert isinstance(operator, Cap | Floor)
    acts = _needed(activations)
    what = "ceiling" if isinstance(operator, Cap) else "floor"
    turned, bounds = vector * float(sign), {}
    for layer in operator.layers:
        bound = per_block(getattr(operator, what), layer, what)
        below = operator.vector.project(acts.at(layer).double(), layer) <= bound
        bounds[layer] = projection_quantile(acts, turned.only(layer), float(below.double().mean()))[layer]
    return replace(operator, **{"vector": turned, what: bounds})


_REMAKE: Mapping[type, Callable[[Operator, PersonaVector, int, Activations | None], Operator]] = {
    Add: _added,
    Ablate: _settled,
    SetProjection: _settled,
    Cap: _bounded,
    Floor: _bounded,
}


def _subspace_controls(
    operator: Ablate, target: Subspace, n: int, generator: torch.Generator, activations: Activations
) -> list[Operator]:
    layer = operator.layers[0]
    if len(operator.layers) > 1:
        raise InputError(f"random subspaces at blocks {operator.layers}: make one operator for each block")
    mean = activations.at(layer).double().mean(0).float()
    length = (operator.frames[layer][1] - target.project(mean)).norm()
    controls: list[Operator] = []
    for other in random_subspaces(target, n, generator):
        heading = torch.randn(other.rank, generator=generator)
        to = other.project(mean) + length * heading / heading.norm()
        controls.append(Ablate(other, to=to, positions=operator.positions, layers=operator.layers))
    return controls


def _mean_projections(vector: PersonaVector, layers: Sequence[int], activations: Activations) -> dict[int, float]:
    return {layer: float(vector.project(activations.at(layer).double().mean(0), layer)) for layer in layers}


def _instead(vector: PersonaVector, directions: Mapping[int, Float[Tensor, " d_model"]], method: str) -> PersonaVector:
    return replace(vector, directions=directions, method=method, split_half={})


def _needed(activations: Activations | None) -> Activations:
    if activations is None or not len(activations):
        raise InputError("this random control needs activations= of the edited model, at the operator's blocks")
    return activations


def _counted(n: int) -> int:
    if n < 1:
        raise InputError(f"{n} random controls: give at least 1")
    return n
