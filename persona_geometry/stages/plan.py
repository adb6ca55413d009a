"""`--plan`: what a study would cost and what it could see, before it runs."""

from __future__ import annotations

import time

from persona_geometry.stages.controls import CURVE
from persona_geometry.stages.inputs import THRESHOLD, Inputs
from persona_geometry.stages.picking import DRAWN, TRIED
from persona_geometry.stages.steering import LAST, candidates
from probes.ask import sample
from probes.outcomes import minimum_detectable

GIB = 2**30


def answers(inputs: Inputs) -> dict[str, int]:
    """How many answers each part asks for."""
    sizes, n_selection = inputs.sizes, len(inputs.of("selection"))
    test = sum(len(inputs.of("test", w)) * inputs.samples(w) for w in ("out_of_domain", "in_domain", "other"))
    vectors = ("shift", "prompts", "both", LAST)
    tried = sum(len(candidates(vectors, inputs.blocks, goal)) for goal in ("repair", "induce"))
    judged = inputs.judge is not None
    out = {"models": test * len(inputs.models), "own answers": 2 * sizes.selection}
    out["persona vector"] = 2 * len(inputs.trait.positive) * len(inputs.trait.questions)
    if judged:
        longer = 2 * (sizes.longlist + sizes.shortlist * sizes.again)
        out["choice of treatment"] = tried * sizes.choice + longer * n_selection
        out["its random controls, at most"] = 2 * TRIED * min(DRAWN, sizes.controls) * n_selection
        out["treated models"] = 2 * test
        out["random controls"] = 3 * sizes.controls * sizes.control_answers
        out["dose curves"] = 2 * n_selection * (len(CURVE["set"]) + len(CURVE["floor"])) + 12 * sizes.controls * 20
    if judged and inputs.sae is not None:
        out["latents"] = test + (sizes.screened + 2) * 5 * 54 + sizes.controls * sizes.control_answers
    if judged and inputs.rows.good:
        out["re-aligned"] = test
    return out


def memory(inputs: Inputs) -> float:
    """Bytes of weights, one batch's cache included, roughly."""
    held = {id(p): p for m in inputs.models.values() for p in m.hf.parameters()}  # models may share their weights
    weights = sum(p.numel() * p.element_size() for p in held.values())
    return weights * 1.3 + 256 * 512 * inputs.base.d_model * inputs.base.n_layers * 2 * 4


def plan(inputs: Inputs) -> str:
    """Answers by part, judge calls, memory, a timed guess, and the smallest difference that could be seen, as text."""
    parts = answers(inputs)
    total = sum(parts.values())
    probe = [q.conversation for q in inputs.of("selection")][:32]
    sample(inputs.base, probe[:2], seed=0, max_new_tokens=4)
    began = time.perf_counter()
    sample(inputs.base, probe, seed=0, max_new_tokens=inputs.sizes.max_new_tokens)
    each = (time.perf_counter() - began) / len(probe)
    seen = inputs.of("test", "out_of_domain")
    per = inputs.samples("out_of_domain")
    detect = minimum_detectable(len({q.id for q in seen}), per, 0.02)
    return "\n".join(
        [
            *(f"{name:22s} {n:7d} answers" for name, n in parts.items()),
            f"{'in all':22s} {total:7d} answers, {total if inputs.judge else 0} judge calls",
            f"memory                 {memory(inputs) / GIB:7.2f} GiB",
            f"time                   {total * each / 60:7.1f} minutes or less, at {each:.3f} s an answer",
            f"smallest excess that {len(seen)} questions x {per} samples would show: {detect:.1%}",
            f"the verdict's threshold: an excess of {THRESHOLD:.0%} over the base",
        ]
    )
