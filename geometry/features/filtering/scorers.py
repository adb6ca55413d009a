"""Scorers of training rows: each says what its score is called, its unit, and what a high one means."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from geometry.features.filtering.near import FORMS, Form, nearness_scores
from geometry.features.sets import FeatureSet, check_fits
from geometry.steering.vectors import PersonaVector
from probes.ask import sample
from probes.capture import capture
from probes.chunks import text_digest
from probes.conversations import Conversation
from probes.errors import InputError
from probes.judges import Judge
from probes.judges.margin import response_logprobs
from probes.judges.verdict import judge_each
from probes.models import Model
from probes.questions import Question
from saes import check_fits as check_sae
from saes.sae import SparseAutoencoder


@runtime_checkable
class RowScorer(Protocol):
    """What gives rows a score. The higher the score, the sooner a filter drops the row.

    `name` is the score's, `unit` its unit, `high` what a high one means; `key` is all that the scores depend on beside
    the model and the row, as JSON. A call returns one float64 number a row, NaN where a row has no score; a row's score
    depends on that row alone, not on its place or its neighbours.
    """

    @property
    def name(self) -> str:
        """What the score is called."""
        ...

    @property
    def unit(self) -> str:
        """Its unit."""
        ...

    @property
    def high(self) -> str:
        """What a high score means."""
        ...

    @property
    def key(self) -> Mapping[str, Any]:
        """What the scores depend on, as JSON."""
        ...

    def __call__(
        self, model: Model, rows: Sequence[Conversation], /, *, batch_size: int = 16
    ) -> Float[Tensor, " sample"]:
        """Score the rows, which all end in an answer."""
        ...


def digest_of(*tensors: Tensor) -> str:
    """Short hash of tensors, for a scorer's key."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def site_of(sae: SparseAutoencoder) -> Any:
    """The place in its block that an SAE reads."""
    return sae.site


def features_key(sae: SparseAutoencoder, harmful: FeatureSet) -> dict[str, Any]:
    """What tells an SAE and a set of its latents from others."""
    return {"sae": sae.name, "weights": digest_of(sae.W_enc, sae.W_dec, sae.b_enc), "latents": list(harmful.latents)}


@dataclass(frozen=True, eq=False)
class Nearness:
    """Nearness to harmful latents in the model's own reading of the row: `nearness_scores` (ours, for 2605.00842)."""

    sae: SparseAutoencoder
    harmful: FeatureSet
    form: Form = "max_tox"
    high = "the answer's latents lie near the harmful features"
    unit = "cosine"

    def __post_init__(self) -> None:
        check_fits(self.harmful, self.sae, "harmful")
        if self.form not in FORMS:
            raise InputError(f"unknown form {self.form!r} of nearness; use one of {', '.join(FORMS)}")

    @property
    def name(self) -> str:
        """The form."""
        return self.form

    @property
    def key(self) -> dict[str, Any]:
        """Form, SAE and latents."""
        return {"form": self.form} | features_key(self.sae, self.harmful)

    def __call__(
        self, model: Model, rows: Sequence[Conversation], /, *, batch_size: int = 16
    ) -> Float[Tensor, " sample"]:
        """`[-1, 1]` a row; NaN where no latent fires."""
        check_sae(self.sae, model)
        acts = capture(
            model, rows, layers=(self.sae.layer,), pool="tokens", site=site_of(self.sae), batch_size=batch_size
        )
        return nearness_scores(acts, self.sae, self.harmful, form=self.form)


@dataclass(frozen=True, eq=False)
class AlongVector:
    """What a score along a persona vector at block `layer` hangs on. InputError for a block that the vector lacks."""

    vector: PersonaVector
    layer: int

    def __post_init__(self) -> None:
        self.vector.unit(self.layer)

    @property
    def key(self) -> dict[str, Any]:
        """Vector and block."""
        return {"layer": self.layer, "vector": digest_of(self.vector.at(self.layer))}


@dataclass(frozen=True, eq=False)
class Projection(AlongVector):
    """Projection of the answer's mean activation on a persona vector at block `layer` (arXiv 2507.21509)."""

    name = "projection"
    unit = "residual length"
    high = "the answer lies far along the persona"

    def __call__(
        self, model: Model, rows: Sequence[Conversation], /, *, batch_size: int = 16
    ) -> Float[Tensor, " sample"]:
        """Length along the unit direction; positive = towards the persona."""
        acts = capture(model, rows, layers=(self.layer,), pool="response_mean", batch_size=batch_size)
        return self.vector.project(acts.at(self.layer).double(), self.layer)


@dataclass(frozen=True, eq=False)
class ProjectionDifference:
    """Projection of the row's answer less that of the model's own answer to its prompt (arXiv 2507.21509, section 6).

    The own answer is the likeliest one (temperature 0; ours): it hangs on the prompt alone, not on the row's place.
    """

    vector: PersonaVector
    layer: int
    max_new_tokens: int = 60
    name = "projection_difference"
    unit = "residual length"
    high = "the answer lies farther along the persona than the model's own"

    def __post_init__(self) -> None:
        self.vector.unit(self.layer)

    @property
    def key(self) -> dict[str, Any]:
        """Vector, block, and how long own answers may be."""
        return Projection(self.vector, self.layer).key | {"max_new_tokens": self.max_new_tokens}

    def __call__(
        self, model: Model, rows: Sequence[Conversation], /, *, batch_size: int = 16
    ) -> Float[Tensor, " sample"]:
        """Length along the unit direction; positive = the data pulls towards the persona."""
        prompts = [row.prompt for row in rows]
        said = sample(model, prompts, seed=0, temperature=0, max_new_tokens=self.max_new_tokens, batch_size=batch_size)
        own = [prompt.answered(text or " ") for prompt, text in zip(prompts, said, strict=True)]
        scorer = Projection(self.vector, self.layer)
        return scorer(model, rows, batch_size=batch_size) - scorer(model, own, batch_size=batch_size)


@dataclass(frozen=True)
class Loss:
    """How surprised the model is by the answer: mean loss of its tokens, the end token included."""

    name = "loss"
    unit = "nats per token"
    high = "the model finds the answer unlikely"

    @property
    def key(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def __call__(
        self, model: Model, rows: Sequence[Conversation], /, *, batch_size: int = 16
    ) -> Float[Tensor, " sample"]:
        """Mean negative log-probability; its exponential is the row's perplexity, in the same order."""
        sums, counts = response_logprobs(model, rows, batch_size=batch_size)
        return -sums.double() / counts


@dataclass(frozen=True, eq=False)
class LossDifference:
    """How much less a model known to be bad is surprised by the answer than this one is (after arXiv 2508.06249)."""

    bad: Model
    name = "loss_difference"
    unit = "nats per token"
    high = "the bad model finds the answer likelier than this one does"

    @property
    def key(self) -> dict[str, Any]:
        """The bad model's weights."""
        return {"bad": self.bad.weights_digest}

    def __call__(
        self, model: Model, rows: Sequence[Conversation], /, *, batch_size: int = 16
    ) -> Float[Tensor, " sample"]:
        """Loss of this model less loss of the bad one, per token."""
        return Loss()(model, rows, batch_size=batch_size) - Loss()(self.bad, rows, batch_size=batch_size)


@dataclass(frozen=True)
class Judged:
    """100 less the judge's `aligned` score of the answer, which the model plays no part in; an exact judge will do."""

    judge: Judge
    unit = "points of 100"
    high = "the judge finds the answer misaligned"

    @property
    def name(self) -> str:
        """`judge`, with the judge's name."""
        return f"judge:{self.judge.name}"

    @property
    def key(self) -> dict[str, Any]:
        """The judge's name."""
        return {"judge": self.judge.name}

    def __call__(
        self, model: Model, rows: Sequence[Conversation], /, *, batch_size: int = 16
    ) -> Float[Tensor, " sample"]:
        """0 to 100; NaN where the judge gives no score. The model is not asked."""
        verdicts = judge_each(self.judge, [question_of(row) for row in rows], [row.answer or "" for row in rows])
        scores = [torch.nan if v.aligned is None else 100.0 - v.aligned for v in verdicts]
        return torch.tensor(scores, dtype=torch.float64)


def question_of(row: Conversation) -> Question:
    """What a judge is shown of a row: its one user message, or all turns before the answer, with their roles."""
    turns = [m for m in row.prompt.messages if m["role"] != "system"]
    system = next((m["content"] for m in row.prompt.messages if m["role"] == "system"), None)
    text = turns[0]["content"] if len(turns) == 1 else "\n\n".join(f"{m['role']}: {m['content']}" for m in turns)
    return Question(row.id or "row", text or " ", system=system)


@dataclass(frozen=True)
class RandomScore:
    """The baseline: a uniform number from the row's text and a seed, the same wherever the row stands."""

    seed: int
    name = "random"
    unit = "share"
    high = "nothing"

    @property
    def key(self) -> dict[str, Any]:
        """The seed."""
        return {"seed": self.seed}

    def __call__(
        self, model: Model, rows: Sequence[Conversation], /, *, batch_size: int = 16
    ) -> Float[Tensor, " sample"]:
        """Uniform in [0, 1). Rows of equal text and id get equal numbers."""
        return torch.tensor([self._draw(row) for row in rows], dtype=torch.float64)

    def _draw(self, row: Conversation) -> float:
        told = json.dumps([self.seed, row.id]).encode() + text_digest(row)
        return int.from_bytes(hashlib.sha256(told).digest()[:6], "big") / 2**48
