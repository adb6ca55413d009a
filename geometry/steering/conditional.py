"""A conditional operator: another operator that acts only where a direction or a probe fires."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, get_args

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from geometry.steering.operators import wide
from geometry.steering.vectors import Number, PersonaVector
from probes.edits import site_of
from probes.errors import InputError
from probes.hooks import Operator, Positions, active_positions
from probes.linear import LinearProbe

Decision = Literal["prompt_mean", "last_prompt", "token"]
Masks = Mapping[str, Bool[Tensor, "batch pos"]]


class _Memory:
    """What was decided last. Mutable, and shared by all copies bound from one `When`: a generation is many passes."""

    fired: Tensor | None = None
    rows: tuple[int, ...] | None = None
    context: object = None

    def recall(self, rows: tuple[int, ...] | None, context: object) -> Tensor | None:
        """The decisions for conversations `rows`, or for the batch as it was in this context; None where unknown."""
        if self.fired is None:
            return None
        if rows is None or self.rows is None:
            return self.fired if rows == self.rows and context is self.context else None
        place = {row: at for at, row in enumerate(self.rows)}
        return self.fired[[place[row] for row in rows]] if set(rows) <= set(place) else None


@dataclass(frozen=True, eq=False)
class When:
    """Let `operator` act only where `condition` fires at block `layer` (the idea of CAST, arXiv 2409.05907).

    The score of a token is its projection on the vector's unit direction, in units of the residual stream, or a
    fitted probe's score for its positive class (its log odds, where the probe gives probabilities); it fires above
    `threshold`, or below it with `side="below"`. The threshold of a probe is 0 where none is given; for a vector take,
    say, `projection_quantile` of ordinary prompts. (CAST itself thresholds a cosine.)

    `decide` says who decides. "prompt_mean": the mean score over the prompt's tokens decides for the whole
    conversation, prompt and answer. "last_prompt": the score of its last token does. In a generation both are settled
    when the prompt is read and kept for all generated tokens. "token": each token decides for itself, generated
    ones as they are read.

    The operator keeps its own positions and acts where those and the condition meet. `layer` must not lie behind its
    first block: so the condition sees the stream before the operator (at the same block, the output as operators before
    this one left it), and what it decides is what a pass over the finished text decides. Prefer one `When` around a
    `PerRow` to many inside it, which is refused. Called directly, without `intervene`, `mask` stands for the prompt
    and for the operator's positions at once.

    One instance remembers its last decisions: do not run two generations with it at the same time.
    """

    operator: Operator
    condition: PersonaVector | LinearProbe
    _: KW_ONLY
    layer: int
    decide: Decision
    threshold: Number | None = None
    side: Literal["above", "below"] = "above"
    layers: tuple[int, ...] = field(init=False)
    positions: Positions = field(init=False)
    reader: Float[Tensor, " d_model"] = field(init=False, repr=False)
    limit: float = field(init=False, repr=False)
    memory: _Memory = field(init=False, repr=False, default_factory=_Memory)
    rows: tuple[int, ...] | None = field(init=False, repr=False, default=None)
    masks: Masks | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.decide not in get_args(Decision) or self.side not in ("above", "below"):
            raise InputError(
                f"decide={self.decide!r}, side={self.side!r}: use {', '.join(get_args(Decision))}; above or below"
            )
        if site_of(self.operator) != "resid_post":
            raise InputError(
                f"an operator at {site_of(self.operator)} inside When, which reads and changes the outputs of blocks: "
                "use one that acts there, such as one on an SAE of resid_post"
            )
        if self.layer > min(self.operator.layers):
            raise InputError(
                f"condition at block {self.layer} behind the operator's block {min(self.operator.layers)}: what it "
                "reads would hang on what it decides; read at that block or before it"
            )
        reader, limit = _reader(self.condition, self.layer, self.threshold)
        object.__setattr__(self, "reader", reader)
        object.__setattr__(self, "limit", limit)
        object.__setattr__(self, "layers", tuple(sorted({self.layer, *self.operator.layers})))
        object.__setattr__(self, "positions", self.operator.positions if self.decide == "token" else "all")

    def for_rows(self, indices: Sequence[int]) -> "When":
        """The same for a batch that holds the conversations `indices`: decisions are kept by conversation."""
        return self._bound(rows=tuple(indices), operator=_bind(self.operator, "for_rows", indices))

    def for_pass(self, masks: Masks) -> "When":
        """The same for a pass in which `masks` say, kind by kind, which positions are which."""
        return self._bound(masks=masks, operator=_bind(self.operator, "for_pass", masks))

    def __call__(
        self, activations: Float[Tensor, "batch pos d_model"], *, layer: int, mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the activations edited by the operator where `mask` is true and the condition holds."""
        if layer == self.layer:
            self._settle(activations, mask)
        if layer not in self.operator.layers:
            return activations
        where = mask if self.masks is None else mask & self.masks[self.operator.positions].to(mask.device)
        return self.operator(activations, layer=layer, mask=where & self._fired(mask))

    def scores(self, activations: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
        """How far each token's score lies beyond the threshold, on the side that fires: positive means fired."""
        values = wide(activations.detach())
        score = einsum(values, self.reader.to(values), "batch pos d_model, d_model -> batch pos") - self.limit
        return score if self.side == "above" else -score

    def _settle(self, activations: Float[Tensor, "batch pos d_model"], mask: Bool[Tensor, "batch pos"]) -> None:
        """Decide for this pass, or leave the decision of an earlier pass where this one holds no prompt."""
        scores = self.scores(activations)
        if self.decide == "token":
            fired = scores > 0
        else:
            prompt = (mask if self.masks is None else self.masks["prompt"]).to(mask.device)
            if not bool(prompt.any()):
                return
            read = prompt if self.decide == "prompt_mean" else active_positions(prompt, past=0)["last_prompt"]
            mean = torch.where(read, scores, 0).double().sum(-1) / read.sum(-1).clamp(min=1)
            fired = rearrange((mean > 0) & read.any(-1), "batch -> batch 1")
        self.memory.fired, self.memory.rows, self.memory.context = fired, self.rows, self.masks

    def _fired(self, mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos_or_one"]:
        """What was decided, for the rows of this pass."""
        fired = self.memory.recall(self.rows, self.masks)
        if fired is None or len(fired) != len(mask) or (self.decide == "token" and fired.shape != mask.shape):
            raise InputError(
                f"condition at block {self.layer} has not been decided for these rows: enter `intervene` before the "
                "prompt is read, and keep the batch as it is"
            )
        return fired.to(mask.device)

    def _bound(self, **parts: Any) -> "When":
        part = copy(self)
        for name, value in parts.items():
            object.__setattr__(part, name, value)
        return part


def _bind(operator: Any, method: str, value: Any) -> Any:
    return getattr(operator, method)(value) if hasattr(operator, method) else operator


def _reader(
    condition: PersonaVector | LinearProbe, layer: int, threshold: Number | None
) -> tuple[Float[Tensor, " d_model"], float]:
    """What scores are read with, and where they fire: <h, reader> > limit."""
    if isinstance(condition, PersonaVector):
        if threshold is None:
            raise InputError("condition on a vector without threshold: give one in units of the residual stream")
        return condition.unit(layer), float(threshold)
    if not hasattr(condition, "coef_"):
        raise InputError("condition: the probe is not fitted; call fit(X, y) first")
    limit = float(threshold or 0) - float(condition.intercept_[0])
    return torch.as_tensor(condition.coef_[0], dtype=torch.float32), limit
