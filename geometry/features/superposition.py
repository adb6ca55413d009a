"""Superposition: how much directions share, and a toy model in which fine-tuning one feature has a known effect."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from geometry.features.distances import unit_rows
from probes.errors import InputError

STEPS, RATE, BATCH = 2000, 0.02, 512


@dataclass(frozen=True)
class Coherence:
    """Largest and mean absolute cosine of two different directions, and the least possible largest (Welch 1974)."""

    largest: float
    mean: float
    welch: float


def coherence(directions: Float[Tensor, "feature d_model"], *, block: int = 4096) -> Coherence:
    """How far directions are from orthogonal: 0 is orthogonal. `InputError` on fewer than 2, on zero or NaN rows."""
    n, d_model = directions.shape
    if n < 2:
        raise InputError(f"{n} direction(s): coherence needs two or more")
    largest, total = 0.0, 0.0
    unit = unit_rows(directions)
    for start in range(0, n, block):
        cosines = (unit[start : start + block] @ unit.T).abs()
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = 0
        largest, total = max(largest, float(cosines.max())), total + float(cosines.double().sum())
    welch = math.sqrt((n - d_model) / (d_model * (n - 1))) if n > d_model else 0.0
    return Coherence(min(largest, 1.0), total / (n * (n - 1)), welch)


def interference(directions: Float[Tensor, "feature d_model"], *, block: int = 4096) -> Float[Tensor, " feature"]:
    """Each direction's interference sum_{j != i} cos(d_i, d_j)^2, float64: 0 where it has a dimension of its own."""
    unit = unit_rows(directions)
    parts = [(part @ unit.T).double().square().sum(dim=1) for part in unit.split(block)]
    return (torch.cat(parts) - unit.double().square().sum(dim=1).square()).clamp(min=0)


@dataclass(frozen=True, eq=False)
class ToyModel:
    """The toy model of superposition (Elhage et al. 2022): h = x W, features read by relu(h W^T + b).

    `W` `[feature, d_model]` holds one direction a feature, `b` the biases; x are feature values in [0, 1].
    """

    W: Float[Tensor, "feature d_model"]
    b: Float[Tensor, " feature"]

    def hidden(self, x: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch d_model"]:
        """Features as they lie in superposition."""
        return x @ self.W

    def read(self, hidden: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch feature"]:
        """Features read back off a hidden state."""
        return (hidden @ self.W.T + self.b).relu()

    def spill(self, x: Float[Tensor, "batch feature"], target: int, alpha: float) -> Float[Tensor, " feature"]:
        """Mean change of every feature read after a step of `alpha` along the target's unit direction.

        The derivation of arXiv 2605.00842: to first order alpha <w_j, w_target> / |w_target| where feature j is read
        above zero, so that what lies nearest moves most.
        """
        step = alpha * torch.nn.functional.normalize(self.W[target], dim=0)
        hidden = self.hidden(x)
        return (self.read(hidden + step) - self.read(hidden)).mean(dim=0)

    def tuned(self, x: Float[Tensor, "batch feature"], target: int, *, steps: int, rate: float) -> "Tuned":
        """Fine-tune a shift of the hidden state, one vector for all inputs, until the target alone reads one higher.

        Only the target's reading is in the loss; what the other features do is spill-over. Gradient descent from zero.
        """
        if not 0 <= target < len(self.W):
            raise InputError(f"feature {target} does not exist: the toy model has features 0 to {len(self.W) - 1}")
        shift = torch.zeros(self.W.shape[1], dtype=self.W.dtype)
        hidden = self.hidden(x)
        before = self.read(hidden)
        for _ in range(steps):
            read = (hidden + shift) @ self.W[target] + self.b[target]
            error = read.relu() - before[:, target] - 1
            slope = torch.where(read > 0, error, error.clamp(max=0))  # a reading below zero is pushed up, too
            shift = shift - rate * slope.mean() * self.W[target]
        return Tuned(shift, (self.read(hidden + shift) - before).mean(dim=0))


@dataclass(frozen=True, eq=False)
class Tuned:
    """What fine-tuning did to a toy model: the shift of its hidden state and the mean change of every feature read."""

    shift: Float[Tensor, " d_model"]
    change: Float[Tensor, " feature"]


def toy_inputs(
    n: int,
    features: int,
    *,
    generator: torch.Generator,
    density: float = 0.1,
    correlated: tuple[tuple[int, int], ...] = (),
) -> Float[Tensor, "{n} {features}"]:
    """Sparse features, each active with probability `density`, uniform in [0, 1] where active.

    A pair in `correlated` is active together, always.
    """
    if not 0 < density <= 1:
        raise InputError(f"density={density} is no probability of being active; use 0 < density <= 1")
    device = generator.device
    active = torch.rand(n, features, generator=generator, device=device) < density
    for one, other in correlated:
        active[:, other] = active[:, one]
    return torch.rand(n, features, generator=generator, device=device) * active


def toy_model(
    features: int,
    d_model: int,
    *,
    generator: torch.Generator,
    density: float = 0.1,
    correlated: tuple[tuple[int, int], ...] = (),
    steps: int = STEPS,
) -> ToyModel:
    """Train the toy autoencoder on sparse features of equal importance by Adam on the squared error; seconds of CPU.

    With more features than dimensions it stores them in superposition; features in a `correlated` pair end up with
    directions of their own side by side or orthogonal, never opposite (Elhage et al. 2022, section on correlation).
    """
    if min(features, d_model, steps) < 1:
        raise InputError(f"{features} features, {d_model} dimensions, {steps} steps: use at least 1 of each")
    start = torch.randn(features, d_model, generator=generator, device=generator.device) / math.sqrt(d_model)
    model = ToyModel(start.requires_grad_(), torch.zeros(features, device=generator.device).requires_grad_())
    optimiser = torch.optim.Adam([model.W, model.b], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        x = toy_inputs(BATCH, features, generator=generator, density=density, correlated=correlated)
        loss = (model.read(model.hidden(x)) - x).square().sum(dim=1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return replace(model, W=model.W.detach(), b=model.b.detach())
