"""What is trained, for how long and on which rows: one value, with defaults that follow from width and data."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from probes.errors import InputError
from saes.rows import Where

Architecture = Literal["topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "gated", "standard"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)

#: Architectures that are told how many latents a row may use; the others are told what a latent costs.
COUNTED: tuple[Architecture, ...] = ("topk", "batchtopk", "matryoshka_batchtopk", "jumprelu")
#: Those among them of which exactly so many are active, in a row or in a batch.
SPARSE = COUNTED[:3]


@dataclass(frozen=True, kw_only=True)
class SAERecipe:
    """How an SAE is trained, all of it: the same recipe, seed, rows and thread count give the same bytes.

    `k` latents are active: in every row ("topk", arXiv 2406.04093), on average over a batch ("batchtopk", 2412.06410;
    "matryoshka_batchtopk", 2503.17547, whose nested dictionaries have the `widths` given, by default a sixteenth to all
    of `d_sae`), or about (`k` is the target of the quadratic penalty of "jumprelu", 2407.14435 and Gemma Scope 2).
    "gated" (2404.16014) and "standard" (L1) know no k: `sparsity` is the coefficient of their L1 penalty, and of
    jumprelu's. Rows are scaled to a mean norm of sqrt(d_model) while training, so that `lr` and `sparsity` mean the
    same in any model.

    Rows: `where` as in `capture` ("all", "response", "prompt"); the first `skip_first` tokens of a conversation and
    rows whose norm is over `max_norm` times the median are left out (the published persona SAEs use 8 and 10;
    None keeps all). `HeldOut(held_out)` of the conversations are not trained on and test the result.
    `order_seed` draws the order of the rows, the same for all SAEs of one pass.

    Of the three that choose k: `unit_rows` keeps decoder rows at length 1 and takes the part of their gradient that
    would lengthen them away, as 2406.04093 does and sae-lens does not (without it rows grow, and learn more slowly the
    longer they are); `revive` weighs the auxiliary loss of silent latents (1/32 there, 1 in sae-lens).
    """

    architecture: str = "topk"
    d_sae: int
    k: int = 0
    steps: int
    lr: float
    batch: int
    sparsity: float = 0.0
    widths: tuple[int, ...] = ()
    where: Where = "all"
    skip_first: int = 0
    max_norm: float | None = 10.0
    held_out: float = 0.02
    order_seed: int = 0
    unit_rows: bool = True
    revive: float = 1 / 32

    @classmethod
    def for_(cls, d_model: int, n_tokens: int, *, architecture: str = "topk", **changes: Any) -> "SAERecipe":
        """A recipe for `n_tokens` rows of width `d_model`, with the fields in `changes` set to what they say.

        d_sae: 16 d_model, halved while there are fewer than 50 rows for each latent, down to 2 d_model. k: the power
        of two nearest to sqrt(d_model). batch: n_tokens / 64 as a power of two, 256 to 4,096. steps: one pass over the
        rows, or as many as make 2,000 steps, at most 20. lr: 2e-4 sqrt(2^14 / d_sae) (sparsify's rule), times 4 where
        there are fewer than 20,000 steps. InputError for a field that does not exist or a size that does not fit.
        """
        _check_names(changes)
        d_sae = int(changes.get("d_sae", 16 * d_model))
        while "d_sae" not in changes and d_sae > 2 * d_model and n_tokens < 50 * d_sae:
            d_sae //= 2
        batch = int(changes.get("batch", min(4096, max(256, _power(n_tokens / 64)))))
        a_pass = math.ceil(max(1, n_tokens) / max(1, batch))
        steps = int(changes.get("steps", min(max(a_pass, 2_000), 20 * a_pass)))
        lr = 2e-4 * math.sqrt(2**14 / max(1, d_sae)) * (4 if steps < 20_000 else 1)
        made = {"d_sae": d_sae, "batch": batch, "steps": steps, "lr": lr, "architecture": architecture}
        if architecture in COUNTED:
            made["k"] = min(d_sae, _power(math.sqrt(d_model)))
        if architecture in _COSTS:
            made["sparsity"] = _COSTS[architecture]
        return cls(**made | changes)

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InputError(f"architecture {self.architecture!r}: use one of {', '.join(ARCHITECTURES)}")
        if self.architecture in COUNTED and not 0 < self.k <= self.d_sae:
            raise InputError(f"k={self.k} active latents of d_sae={self.d_sae}: give 1 to {self.d_sae}")
        if self.architecture in _COSTS and not (math.isfinite(self.sparsity) and self.sparsity > 0):
            raise InputError(f"sparsity={self.sparsity}: {self.architecture} needs a positive coefficient")
        if min(self.steps, self.batch, self.d_sae) < 1 or not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(
                f"steps={self.steps}, batch={self.batch}, d_sae={self.d_sae}, lr={self.lr}: all must be positive"
            )
        if self.skip_first < 0 or not 0 <= self.held_out <= 0.5:
            raise InputError(
                f"skip_first={self.skip_first}, held_out={self.held_out}: give 0 or more, and a share of 0 to 0.5"
            )
        if not (math.isfinite(self.revive) and self.revive >= 0):
            raise InputError(f"revive={self.revive}: give 0 or more, the weight of the auxiliary loss")
        if self.max_norm is not None and not self.max_norm > 1:
            raise InputError(f"max_norm={self.max_norm}: give more than 1 median, or None to keep every row")
        object.__setattr__(self, "widths", self._nested())

    def with_(self, **changes: Any) -> "SAERecipe":
        """The same recipe but for these fields. InputError as for a new one."""
        _check_names(changes)
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Every field, as JSON takes it."""
        return asdict(self) | {"widths": list(self.widths)}

    def _nested(self) -> tuple[int, ...]:
        """The widths of a Matryoshka SAE, ascending to `d_sae`; none for the others."""
        if self.architecture != "matryoshka_batchtopk":
            return ()
        widths = tuple(self.widths) or tuple(w for w in (self.d_sae // part for part in (16, 8, 4, 2)) if w)
        widths = tuple(dict.fromkeys((*widths, self.d_sae)))
        if list(widths) != sorted(widths) or widths[0] < 1:
            raise InputError(f"widths={widths}: give ascending numbers of latents, up to d_sae={self.d_sae}")
        return widths


_COSTS: dict[str, float] = {"jumprelu": 1.0, "gated": 2.0, "standard": 2.0}


def _power(value: float) -> int:
    """The power of two nearest to `value` on a logarithmic scale, at least 1."""
    return 2 ** max(0, round(math.log2(max(value, 1))))


def _check_names(changes: dict[str, Any]) -> None:
    known = [field.name for field in fields(SAERecipe)]
    for name in changes:
        if name not in known:
            raise InputError(f"{name}={changes[name]!r}: a recipe has no such setting; it has {', '.join(known)}")
