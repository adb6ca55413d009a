"""Patching: do the components that write a direction carry the behaviour? Their outputs are set back to the base's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from geometry.steering.writers import Writers
from probes.conversations import Conversation, render
from probes.errors import InputError
from probes.judges.margin import answer_logprobs
from probes.models import Model, check_same_family

Component = tuple[int, str, int]  # block, "head" or "mlp", head (-1: none)


@dataclass(frozen=True)
class Patched:
    """What setting components back to the base's outputs does to the tuned model's preference for harm.

    `table` has one row for each set of components: `kind` ("base", "tuned", "top", "random"), `k` components,
    `margin`, the mean log-probability of the harmful answers less that of the harmless ones (nats, whole answers),
    and `restored`, the share of the way from the tuned model's margin to the base's. `components[k]` are the top ones.
    """

    table: pd.DataFrame
    components: Mapping[int, tuple[Component, ...]] = field(default_factory=dict)

    def summary(self) -> pd.DataFrame:
        """For each k: what the top components restore, and the mean and 5-95 % range of as many random ones."""
        rows = []
        for k in self.components:
            some = self.table[self.table["k"] == k]
            chance = some.loc[some["kind"] == "random", "restored"].to_numpy(dtype=float)
            low, high = np.quantile(chance, (0.05, 0.95))
            top = float(some.loc[some["kind"] == "top", "restored"].iloc[0])
            rows.append({"k": k, "top": top, "random": float(chance.mean()), "low": float(low), "high": float(high)})
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        return self.summary().to_html(index=False, float_format=lambda value: f"{value:.3g}", border=0)


def patch_writers(
    base: Model,
    tuned: Model,
    pairs: Sequence[tuple[Conversation, Conversation]],
    writers: Writers,
    *,
    top: Sequence[int] = (1, 2, 4),
    n_random: int = 20,
    seed: int = 0,
    batch_size: int = 16,
) -> Patched:
    """Set the outputs of the components that shifted most along a direction back to the base's, at every token.

    Activation patching (arXiv 2404.15255): while the tuned model reads an answer, what the chosen heads and MLPs write
    into the residual stream is what the base's write on the same tokens; what follows runs on with it. Beside each set
    of top components (by `writers.top`) stand `n_random` sets of as many others, with as many MLPs among them, drawn
    from the blocks that `writers` covers.

    Args:
        base: The model before the fine-tune.
        tuned: The model after it.
        pairs: (harmful, harmless) answers to the same prompt; take prompts that the writers were not found on.
        writers: From `direction_writers`.
        top: Sizes of the sets.
        n_random: Random sets of each size.
        seed: Seeds them.
        batch_size: Conversations a pass.

    Raises:
        InputError: No pairs, an answer missing, prompts that differ, or more components than there are.
    """
    check_same_family(base, tuned)
    _check(pairs, writers, top)
    ranked = [_key(row) for row in writers.top(len(writers.table)).to_dict("records") if row["component"] in _SITES]
    chosen = {k: tuple(ranked[:k]) for k in top}
    rng = np.random.default_rng(seed)
    plans: list[tuple[str, int, tuple[Component, ...]]] = [("tuned", 0, ())]
    plans += [("top", k, components) for k, components in chosen.items()]
    plans += [
        ("random", k, _others(components, ranked, rng)) for k, components in chosen.items() for _ in range(n_random)
    ]
    rows = [row for pair in pairs for row in pair]
    bridges = base.bridge(), tuned.bridge()
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    found = torch.cat([_scores(bridges, tuned, part, plans) for part in parts], dim=1)
    margins = (found[:, ::2] - found[:, 1::2]).mean(dim=1).tolist()
    names = [("base", 0), *((kind, k) for kind, k, _ in plans)]
    span = margins[1] - margins[0]
    table = pd.DataFrame(
        [
            {"kind": kind, "k": k, "margin": m, "restored": (margins[1] - m) / span if span else float("nan")}
            for (kind, k), m in zip(names, margins, strict=True)
        ]
    )
    return Patched(table, chosen)


_SITES = {"head": "blocks.{}.attn.hook_z", "mlp": "blocks.{}.hook_mlp_out"}


def _key(row: Mapping[Any, Any]) -> Component:
    return int(row["layer"]), str(row["component"]), int(row["head"])


def _others(components: Sequence[Component], ranked: Sequence[Component], rng: np.random.Generator) -> tuple:
    """As many components of each kind as given, drawn from all."""
    drawn: list[Component] = []
    for kind in _SITES:
        pool = [one for one in ranked if one[1] == kind]
        n = sum(one[1] == kind for one in components)
        drawn += [pool[i] for i in rng.choice(len(pool), n, replace=False)]
    return tuple(drawn)


def _scores(
    bridges: tuple[Any, Any], model: Model, rows: Sequence[Conversation], plans: Sequence[tuple[str, int, tuple]]
) -> Float[Tensor, "plan row"]:
    """Log-probability of each answer: of the base first, then of the tuned model under each plan."""
    base, tuned = bridges
    rendered = render(model.tokenizer, rows).to(model.device)
    wanted = {_SITES[kind].format(layer) for _, _, components in plans for layer, kind, _ in components}
    with torch.no_grad():
        logits, cache = base.run_with_cache(
            rendered.input_ids, attention_mask=rendered.attention_mask, names_filter=lambda name: name in wanted
        )
        out = [answer_logprobs(logits.double(), rendered)]
        for _, _, components in plans:
            hooks = [hook for one in components for hook in _hooks(one, cache, base, tuned)]
            logits = tuned.run_with_hooks(rendered.input_ids, attention_mask=rendered.attention_mask, fwd_hooks=hooks)
            out.append(answer_logprobs(logits.double(), rendered))
    return torch.stack(out)


def _hooks(component: Component, cache: Any, base: Any, tuned: Any) -> list[tuple[str, Any]]:
    """Hooks that give a component of the tuned model the base's output.

    A head writes its values times its rows of the output projection: the values are set, and what the base's
    projection makes of them instead of the tuned model's is added behind it.
    """
    layer, kind, head = component
    site = _SITES[kind].format(layer)
    other = cache[site]
    if kind == "mlp":
        return [(site, lambda value, hook: other)]
    change = base.blocks[layer].attn.W_O[head] - tuned.blocks[layer].attn.W_O[head]
    return [
        (site, partial(_set, other, head)),
        (f"blocks.{layer}.hook_attn_out", lambda value, hook: value + other[:, :, head] @ change),
    ]


def _set(other: Float[Tensor, "row pos head d_head"], head: int, value: Tensor, hook: Any) -> Tensor:
    """The base's values in place of the tuned model's, for one head."""
    patched = value.clone()
    patched[:, :, head] = other[:, :, head]
    return patched


def _check(pairs: Sequence[tuple[Conversation, Conversation]], writers: Writers, top: Sequence[int]) -> None:
    if not pairs or not top:
        raise InputError(f"patching {len(pairs)} pairs with sets of {list(top)}: give at least one of each")
    for i, (harmful, harmless) in enumerate(pairs):
        if harmful.answer is None or harmless.answer is None or harmful.prompt.messages != harmless.prompt.messages:
            raise InputError(f"pair {i}: give two answers to the same prompt")
    known = sum(component in _SITES for component in writers.table["component"])
    if not all(0 < k <= known for k in top):
        raise InputError(f"sets of {list(top)} components: these writers have {known}; give 1 to {known}")
