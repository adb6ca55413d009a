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
from typing import Any, Literal, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from geometry.steering.latent_operators import AddLatent, ClampLatent
from geometry.steering.levels import Levels, projection_quantile
from geometry.steering.operators import Ablate, Add, Cap, Floor, SetProjection, per_block
from geometry.steering.vectors import PersonaVector, Subspace
from probes.activations import Activations
from probes.capture import capture
from probes.conversations import Conversation
from probes.errors import InputError
from probes.hooks import Operator
from probes.models import Model
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
    scaled = [{layer: (drawn[layer][i] * vector.norm(layer)).float() for layer in drawn} for i in range(n)]
    return [_instead(vector, rows, "random covariance draw") for rows in scaled]


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
    *,
    without: Sequence[int] = (),
) -> list[tuple[int, ...]]:
    """`n` sets of random latents that fire about as often as the latents `like`, one for each of these.

    Each is drawn from the `max(20, 2 n)` latents whose firing rate is nearest on a log scale, but for `like` itself and
    those `without`: latents over which a persona is split fire alike, and would be drawn as one another's controls.
    """
    wanted = (like,) if isinstance(like, int) else tuple(like)
    sae.check_latents((*wanted, *without))
    free = torch.ones(sae.d_sae, dtype=torch.bool)
    free[[*wanted, *without]] = False
    near = max(20, 2 * _counted(n))
    if int(free.sum()) < len(wanted):
        raise InputError(f"{len(wanted)} of {sae.d_sae} latents leave too few for a random set: give fewer")
    logs = stats.freq.double().clamp(min=0.5 / max(1, stats.n)).log()
    sets = []
    for _ in range(n):
        taken, chosen = free.clone(), list[int]()
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
    sizes: Mapping[int, float] | None = None,
    activations: Activations | None = None,
    kind: Kind = "norm",
) -> list[Operator]:
    """`n` operators with random directions in place of an operator's own, matched in energy; `ask_many` runs them
    together.

    `Add` keeps strength and unit. An operator that *sets* a projection (`SetProjection`, `Ablate`) cannot simply keep
    its target, which means nothing on another direction; and random edits that are tuned to the treatment's size at
    every position never settle: the treatment changes the text, the text what is left to edit, whereas on a random
    direction each block finds all of it left to do. So the energy is fixed once, in one of two ways.

    With `sizes`, the root-mean-square edits of the treated run (`edit_sizes`), controls add random directions of just
    that length at every edited position, with a random sign. This is the fair comparison, and works for any operator
    with a vector.

    With `activations` of the model before treatment, at the edited positions, controls set projections too: where the
    treatment moves the mean projection from m to t, the control moves that on its random direction from its own mean m'
    to m' + (t - m), with a random sign common to all blocks. It also takes the direction's variance away, and does not
    ease off once the treatment has changed the text, so it is the harsher one. For a subspace, the displacement has the
    same length and a random heading. `Cap` and `Floor` cut their random direction at the quantile at which they cut
    their own.
    """
    if isinstance(operator, Ablate) and isinstance(operator.target, Subspace) and sizes is None:
        return _subspace_controls(operator, operator.target, n, generator, _needed(activations))
    vector = _vector_of(operator)
    if kind == "covariance":
        drawn = random_covariance(_needed(activations), vector, n, generator)
    elif kind == "norm":
        drawn = random_like(vector, n, generator)
    else:
        raise InputError(f"kind {kind!r}: use 'norm' or 'covariance'")
    signs = [int(sign) for sign in torch.randint(2, (n,), generator=generator) * 2 - 1]
    if sizes is not None:
        steps = [_sized(one, sizes) * sign for one, sign in zip(drawn, signs, strict=True)]
        return [Add(step, strength=1.0, unit="raw", positions=operator.positions) for step in steps]
    remake = _REMAKE[type(operator)]
    return [remake(operator, one, sign, activations) for one, sign in zip(drawn, signs, strict=True)]


def random_projections(
    operator: SetProjection, n: int, generator: torch.Generator, *, base: Activations, tuned: Activations
) -> list[SetProjection]:
    """`n` copies of a projection edit that obey the same rule on random directions instead: each sets the projection to
    reference + dose x shift, where reference and shift are what the two models' activations (at the edited positions)
    show on that random direction.

    It tells whether taking *any* direction to its place on the base's scale would do. Since two models differ little
    along most directions, such an edit is small: ask `edit_sizes`, and set size-matched steps (`random_controls`)
    beside it.
    """
    drawn = random_like(operator.vector.only(*operator.layers), n, generator)
    means = [[_mean_projections(v, operator.layers, acts) for acts in (base, tuned)] for v in drawn]
    levels = [Levels(low, {layer: high[layer] - low[layer] for layer in low}) for low, high in means]
    return [replace(operator, vector=v, levels=found) for v, found in zip(drawn, levels, strict=True)]


@torch.no_grad()
def edit_sizes(
    model: Model, operator: Operator, conversations: Sequence[Conversation], *, batch_size: int = 32
) -> dict[int, float]:
    """Root-mean-square norm of what an operator changes at each of its blocks, while it acts, in residual-stream units.

    `conversations` are read with the operator in force: let them be answers written under it. Each block is measured
    with the edits of the earlier blocks in place, over the response's tokens, the last of the prompt, or all of them.
    """
    pool = "last_prompt" if operator.positions == "last_prompt" else "tokens"
    found = {}
    for layer in operator.layers:
        earlier = tuple(other for other in operator.layers if other < layer)
        acting = [replace(cast(Any, operator), layers=earlier)] if earlier else []
        with model.intervene(*acting):
            acts = capture(model, conversations, layers=[layer], pool=pool, batch_size=batch_size)
        told = acts.in_response if operator.positions == "response" else None
        rows = acts.at(layer) if told is None else acts.at(layer)[told]
        before = rearrange(rows, "sample d_model -> 1 sample d_model")
        after = operator(before, layer=layer, mask=torch.ones(before.shape[:2], dtype=torch.bool))
        found[layer] = float((after - before).double().square().sum(-1).mean().sqrt())
    return found


def displacement(operator: SetProjection | Ablate, activations: Activations) -> dict[int, float]:
    """How far an operator moves the mean projection on its own direction, block by block: target minus present mean."""
    vector = operator.vector if isinstance(operator, SetProjection) else operator.target
    assert isinstance(vector, PersonaVector)
    present = _mean_projections(vector, operator.layers, activations)
    return {i: float(operator.frames[i].low[0]) - present[i] for i in operator.layers}


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
    length = (operator.frames[layer].low - target.project(mean)).norm()
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


def _vector_of(operator: Operator) -> PersonaVector:
    """The vector that an operator acts along, at its own blocks; for a subspace, its first dimension."""
    target = getattr(operator, "target" if isinstance(operator, Ablate) else "vector", None)
    if isinstance(target, Subspace):
        return PersonaVector(dict.fromkeys(operator.layers, target.basis[0]), model="")
    if not isinstance(target, PersonaVector):
        raise InputError(f"no random direction for {type(operator).__name__}: use random_latent_controls for latents")
    return target.only(*operator.layers)


def _sized(vector: PersonaVector, sizes: Mapping[int, float]) -> PersonaVector:
    missing = [layer for layer in vector.layers if layer not in sizes]
    if missing:
        raise InputError(
            f"sizes: none given for block {missing[0]}, only for {sorted(sizes)}; measure it with edit_sizes"
        )
    return replace(vector, directions={layer: vector.unit(layer) * sizes[layer] for layer in vector.layers})


def _needed(activations: Activations | None) -> Activations:
    if activations is None or not len(activations):
        raise InputError("this random control needs activations= of the edited model, at the operator's blocks")
    return activations


def _counted(n: int) -> int:
    if n < 1:
        raise InputError(f"{n} random controls: give at least 1")
    return n
