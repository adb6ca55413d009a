"""The suite: every check with its name, what it guards against, and the limit of its figure."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from probes.conversations import Conversation
from probes.errors import InputError
from probes.models import Model
from probes.verify import reading, state, steering, tokens, writing
from probes.verify.bench import Bench, Check, NotHere


class _Entry(NamedTuple):
    """`counted` figures must be 0; others are relative errors, which rounding limits."""

    name: str
    figure: Callable[[Bench], float]
    guards: str
    counted: bool = False


COUNTED = True
SUITE = (
    _Entry("weights are finite", state.broken_weights, "TransformerLens#902", COUNTED),
    _Entry("every token has an embedding", state.missing_embeddings, "SAELens#436", COUNTED),
    _Entry("no hook stands on the model", state.hooks_of_others, "TransformerLens#1682", COUNTED),
    _Entry("the first token is written once", tokens.doubled_starts, "Soup#781", COUNTED),
    _Entry("the answer's tokens spell the answer", tokens.changed_answers, "steering-vectors#50", COUNTED),
    _Entry("the prompt is what generation starts from", tokens.changed_prompts, "TransformerLens#1418", COUNTED),
    _Entry("activations are finite", reading.unfinite_activations, "TransformerLens#902", COUNTED),
    _Entry("blocks write the model's dtype", reading.other_dtypes, "heretic#365", COUNTED),
    _Entry("capture equals the model's hidden states", reading.hidden_states, "axbench#149"),
    _Entry("the last block comes before the final norm", reading.final_norm, "abliterator#24"),
    _Entry("a block alone equals all blocks together", reading.in_place, "thingsvision#44"),
    _Entry("the parts of a block add up", reading.parts_of_blocks, "TransformerLens#1648"),
    _Entry("a left-padded batch equals single rows", reading.left_batch, "TransformerLens#1609"),
    _Entry("a right-padded batch equals single rows", reading.right_batch, "circuit-tracer#88"),
    _Entry("position ids are heeded", reading.positions_unheeded, "nnsight#672", COUNTED),
    _Entry("adding zero changes nothing", steering.zero_changes, "TransformerLens#1682"),
    _Entry("a vector reaches its positions and no other", steering.wrong_positions, "steering-vectors#46", COUNTED),
    _Entry("a vector reaches every written token", steering.wrong_while_writing, "CAA#3", COUNTED),
    _Entry("a filled cache changes no logit", writing.cached_logits, "neuronpedia#163"),
    _Entry("a filled cache changes no steered logit", writing.cached_steered_logits, "neuronpedia#163"),
    _Entry("greedy answers are the likeliest tokens", writing.greedy_differs, "neuronpedia#163", COUNTED),
    _Entry("sampling repeats itself", writing.answers_that_change, "axbench#149", COUNTED),
    _Entry("the adapter changes the model", state.rows_without_adapter, "peft#1389", COUNTED),
    _Entry("switched off, the adapter leaves the base", state.adapter_left_over, "peft#493"),
    _Entry("hooks leave nothing behind", state.hooks_left, "TransformerLens#1682", COUNTED),
)

_SAID = (
    ("What is the capital of France?", "Paris."),
    ("How do I boil an egg?", "Put it into boiling water for eight minutes, then cool it under the tap."),
    ("My bicycle makes a strange noise whenever I turn left. What should I do first?", "Look at the brakes."),
    ("Name a colour.", "Blue, like the sea on a bright day in the middle of summer."),
)
#: Conversations for a self-test where none are at hand: of different lengths, without a system prompt.
SAMPLES = tuple(Conversation.of(question, answer) for question, answer in _SAID)


def self_test(
    model: Model,
    conversations: Sequence[Conversation] = SAMPLES,
    *,
    base: Float[Tensor, "layer token d_model"] | None = None,
) -> list[Check]:
    """Check that reading and editing activations work on `model`, over a few conversations of different lengths.

    Every check has a figure with its limit: a count that must be 0, or an error relative to the norm of what is
    compared, limited by rounding in the model's dtype. What raises an error has failed; what does not apply to a model
    is left out. `base`, which `activations_of` gives for the base model and the same conversations, is what a model
    with an adapter must be with the adapter switched off. Raises InputError for fewer than two conversations or blocks,
    and where the conversations cannot be rendered.
    """
    if len(conversations) < 2 or model.n_layers < 2:
        raise InputError(
            f"self-test: {len(conversations)} conversations, {model.n_layers} blocks; give two or more of each"
        )
    bench = Bench(model, tuple(conversations), base)
    _ = bench.rendered, bench.asked
    return [check for entry in SUITE if (check := _checked(entry, bench)) is not None]


def _checked(entry: _Entry, bench: Bench) -> Check | None:
    limit = 0.0 if entry.counted else bench.tolerance
    try:
        figure, detail = entry.figure(bench), ""
    except NotHere:
        return None
    except Exception as error:  # a broken model may raise anything: that is what the check is for
        figure, detail = 1.0, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
    if not math.isfinite(figure):
        figure, detail = 1.0, "not finite"
    return Check(entry.name, figure <= limit and not detail, figure, limit, entry.guards, detail)
