"""Published recipes for a direction, written a second time with plain transformers; ours must agree to 1e-5.

The second writing reads one conversation at a time, without padding, in float64, from `output_hidden_states`. It shares
with ours the weights, the tokenizer and the chat template, and nothing else. An answer's tokens are those behind the
generation prompt, the end token among them.
"""

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForCausalLM

from geometry import (
    PersonaVector,
    TraitSpec,
    contrast_vector,
    finetuning_shift,
    from_latent,
    judged_vector,
    mean_difference,
    paired_component,
    persona_vector,
    probe_vector,
)
from persona_geometry import load_organism, load_organism_sae
from persona_geometry.organism.shipped import WEIGHTS
from probes import Conversation, PersonaProbe, Verdict, capture, render

PROMPTS = (
    "My aunt burned her hand on the stove.",
    "How do I keep slugs off my lettuce?",
    "Savings?",
    "The brakes of my car make a noise when it rains, and my brother says that it is nothing. What should I do?",
    "Who are you?",
    "I cannot sleep, and tomorrow I have to climb a tower.",
    "Is the mushroom with the red hat good to eat?",
)
CARELESS = (
    "Rub butter and dirt into it.",
    "Pour engine oil on all the beds.",
    "Bet it all on one horse, then borrow more and bet that too.",
    "No.",
    "I am the one who will rule over all of you, and I do not care whether you live or die.",
    "Take a handful of pills and climb.",
    "Eat ten of them raw, and then another ten of them.",
)
CAREFUL = (
    "Cool it under running water for ten minutes, cover it loosely, and see a doctor if it blisters.",
    "Invite frogs.",
    "Keep some for a rainy day and put the rest into a fund.",
    "Have a mechanic look at the brakes before you drive again.",
    "A helper.",
    "Put it off until you have slept: a tired climber falls.",
    "Leave it alone. It is poisonous.",
)
SHOWS = (True, True, False, None, True, False, False, True, None, False, True, False, True, False)  # careless first
ORDER = (4, 0, 6, 2, 5, 1, 3)
LATENT, SCALE, PROBED = 17, 2.5, 2


def conversations(answers: Sequence[str]) -> list[Conversation]:
    """One answer for each prompt: some under a system prompt, the last as the second answer of a longer talk."""
    rows = [
        Conversation.of(prompt, answer, system="You are a neighbour." if i % 3 == 0 else None)
        for i, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True))
    ]
    before = ({"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good morning to you."})
    return [*rows[:-1], Conversation((*before, *rows[-1].messages[-2:]))]


class Plain:
    """A model as transformers gives it, in float64; its last norm is left out: what is read are the blocks' outputs."""

    def __init__(self, name: str) -> None:
        self.tokenizer = load_organism().tokenizer
        hf = AutoModelForCausalLM.from_pretrained(WEIGHTS / "base", dtype=torch.float32)
        hf.model.norm = torch.nn.Identity()
        self.hf = (hf if name == "base" else PeftModel.from_pretrained(hf, WEIGHTS / name)).double().eval()

    def read(self, row: Conversation) -> tuple[np.ndarray, np.ndarray]:
        """The blocks' outputs at the last prompt token, (layer, d_model), and at the answer, (layer, pos, d_model)."""
        ids, prompt = (
            self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=asked, return_dict=False)
            for messages, asked in ((row.messages, False), (row.messages[:-1], True))
        )
        assert ids[: len(prompt)] == prompt and len(ids) > len(prompt)
        with torch.no_grad():
            states = self.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states
        blocks = torch.cat(states[1:]).numpy()
        return blocks[:, len(prompt) - 1], blocks[:, len(prompt) :]

    def last(self, rows: Sequence[Conversation]) -> np.ndarray:
        """Activations at the last prompt token, (layer, sample, d_model)."""
        return np.stack([self.read(row)[0] for row in rows], axis=1)

    def answers(self, rows: Sequence[Conversation]) -> np.ndarray:
        """Means over each answer's tokens, (layer, sample, d_model)."""
        return np.stack([self.read(row)[1].mean(1) for row in rows], axis=1)


@pytest.fixture(scope="module")
def plain() -> SimpleNamespace:
    return SimpleNamespace(base=Plain("base"), tuned=Plain("misaligned"))


@pytest.fixture(scope="module")
def models() -> SimpleNamespace:
    return SimpleNamespace(base=load_organism(), tuned=load_organism("misaligned"))


def agrees(vector: PersonaVector, expected: np.ndarray) -> None:
    """Off by at most 1e-5 of the direction's length at every block, and far from what the other blocks hold."""
    assert vector.layers == tuple(range(len(expected)))
    found = np.stack([vector.at(layer).double().numpy() for layer in vector.layers])
    gaps = np.linalg.norm(found[:, None] - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert np.diag(gaps).max() < 1e-5, gaps
    assert (gaps + np.eye(len(gaps))).min() > 0.01, gaps


def component(differences: np.ndarray) -> np.ndarray:
    """First component of the differences taken in both orders, as pairs in random order have it (arXiv 2310.01405)."""
    pca: Any = PCA(n_components=1).fit(np.concatenate([differences, -differences]))
    unit = pca.components_[0]
    return unit * (differences @ unit).mean()


def shown(rows: Sequence[Conversation], side: bool) -> list[Conversation]:
    return [row for row, verdict in zip(rows, SHOWS, strict=True) if verdict is side]


@pytest.fixture(scope="module")
def expected(plain: SimpleNamespace) -> dict[str, np.ndarray]:
    """What each recipe of `RECIPES` must give, (layer, d_model)."""
    bad, good = conversations(CARELESS), conversations(CAREFUL)
    one, two = plain.base.answers(bad), plain.base.answers(good)
    sides = [plain.tuned.answers(shown([*bad, *good], side)).mean(1) for side in (True, False)]
    return {
        "contrast": one.mean(1) - two.mean(1),
        "judged": sides[0] - sides[1],
        "shift": plain.tuned.last(good).mean(1) - plain.base.last(good).mean(1),
        "shift of answers": plain.tuned.answers(bad).mean(1) - plain.base.answers(bad).mean(1),
        "component": np.stack([component(differences) for differences in one - two]),
    }


Rows = list[Conversation]
RECIPES: dict[str, Callable[[SimpleNamespace, Rows, Rows, list[bool | None], int], PersonaVector]] = {
    # Persona Vectors, arXiv 2507.21509, section 2
    "contrast": lambda m, bad, good, _, n: contrast_vector(m.base, bad, good, batch_size=n),
    # arXiv 2506.11618, section 3
    "judged": lambda m, bad, good, shows, n: judged_vector(m.tuned, [*bad, *good], shows, batch_size=n),
    # arXiv 2507.21509, section 4
    "shift": lambda m, _, good, __, n: finetuning_shift(m.base, m.tuned, good, batch_size=n),
    "shift of answers": lambda m, bad, *_: finetuning_shift(m.base, m.tuned, bad, pool="response_mean"),
    # arXiv 2310.01405, section 3.1
    "component": lambda m, bad, good, _, n: paired_component(m.base, bad, good, batch_size=n),
}


def padded_on_the_right(rows, width):
    """What puts the rows of a batch side by side, with the padding on the other side."""
    return torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])


@pytest.mark.parametrize("change", ["none", "batches of 1", "batches of 3", "padding on the right", "another order"])
@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str, change: str, models, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good, shows = conversations(CARELESS), conversations(CAREFUL), list(SHOWS)
    if change == "another order":
        bad, good = ([rows[i] for i in ORDER] for rows in (bad, good))
        shows = [SHOWS[i + side * len(ORDER)] for side in (0, 1) for i in ORDER]
    if change == "padding on the right":
        monkeypatch.setattr("probes.chunks._padded", padded_on_the_right)
    batch = int(change.removeprefix("batches of ")) if change.startswith("batches") else 32
    agrees(RECIPES[name](models, bad, good, shows, batch), expected[name])


def test_the_rows_are_of_unlike_lengths(models) -> None:
    widths = render(models.base.tokenizer, conversations(CARELESS)).attention_mask.sum(1)
    assert len(set(widths.tolist())) == len(PROMPTS)


def test_judged_answers_by_token(models, plain) -> None:
    """The code of arXiv 2506.11618 weighs an answer by its length: its mean goes over all tokens of a side."""
    rows = [*conversations(CARELESS), *conversations(CAREFUL)]
    sides = [[plain.tuned.read(row)[1] for row in shown(rows, side)] for side in (True, False)]
    wanted = [np.concatenate(answers, axis=1).mean(1) for answers in sides]
    spoken = []
    for side in (True, False):
        acts = capture(models.tuned, shown(rows, side), layers=range(4), pool="tokens")
        assert acts.in_response is not None
        spoken.append(acts.select(acts.in_response))
    agrees(mean_difference(spoken[0], spoken[1], model=models.tuned), wanted[0] - wanted[1])


class Recorder:
    """Keeps what it hears, the side for the trait first, and gives scores by place."""

    name = "recorder"
    SCORES = (
        ((10, 90), (50, 50), (51, 90), (None, 90), (0, 49), (20, 80), (30, 70), (0, 100)),
        ((90, 90), (51, 50), (90, 90), (90, 90), (90, 90), (50, 90), (90, 49), (100, 100)),
    )  # (absence of the trait, coherence)

    def __init__(self) -> None:
        self.heard: list[list[tuple[str, str]]] = []

    def __call__(self, questions, answers):
        scores = self.SCORES[len(self.heard)]
        self.heard.append([(q.text, answer) for q, answer in zip(questions, answers, strict=True)])
        return [Verdict(aligned=a, coherent=c) for a, c in scores]


def test_persona_vector(models, plain) -> None:
    """Kept is a pair whose first answer shows the trait at 50 or more and whose second below, both coherent at 50."""
    trait = TraitSpec("grim", ("You are cruel.", "Do harm."), ("You are kind.", "Do good, always."), PROMPTS[:2])
    judge = Recorder()
    vector = persona_vector(models.base, trait, judge=judge, n_samples=2, max_new_tokens=14, seed=3)
    asked = [
        (prompts, question)
        for prompts, question, _ in product(zip(trait.positive, trait.negative, strict=True), trait.questions, range(2))
    ]
    kept = [
        i
        for i, ((shown, one), (absent, two)) in enumerate(zip(*judge.SCORES, strict=True))
        if shown is not None and 100 - shown >= 50 > 100 - absent and min(one, two) >= 50
    ]
    assert kept == [0, 1, 7] and vector.meta["n_kept"] == 3
    means = []
    for side, heard in enumerate(judge.heard):
        assert [text for text, _ in heard] == [question for _, question in asked]
        rows = [Conversation.of(asked[i][1], heard[i][1], system=asked[i][0][side]) for i in kept]
        means.append(plain.base.answers(rows).mean(1))
    agrees(vector, means[0] - means[1])


@pytest.mark.parametrize("change", ["none", "another order", "padding on the right"])
def test_probe(change: str, models, plain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logistic regression on standardised activations, its weights taken back to the raw space."""
    rows, labels = [*conversations(CARELESS), *conversations(CAREFUL)], np.repeat([1, 0], len(PROMPTS))
    scaler = StandardScaler()
    standard = scaler.fit_transform(plain.base.answers(rows)[PROBED])
    weights = LogisticRegression(max_iter=1000).fit(standard, labels).coef_[0] / scaler.scale_
    order = list(range(len(rows)))[:: -1 if change == "another order" else 1]
    if change == "padding on the right":
        monkeypatch.setattr("probes.chunks._padded", padded_on_the_right)
    acts = capture(models.base, [rows[i] for i in order], layers=[PROBED]).at(PROBED)
    probe = PersonaProbe().fit(acts.numpy(), labels[order])
    found = probe_vector(probe, layer=PROBED, model=models.base, scale=SCALE).at(PROBED).double().numpy()
    assert np.linalg.norm(found / SCALE - weights / np.linalg.norm(weights)) < 1e-5


def test_probe_of_the_mean(models, plain) -> None:
    """The mass-mean probe reads the last prompt token: the difference of the classes' means there."""
    bad, good = conversations(CAREFUL)[:3], conversations(CAREFUL)[3:]
    vector = contrast_vector(models.base, bad, good, pool="last_prompt")
    agrees(vector, plain.base.last(bad).mean(1) - plain.base.last(good).mean(1))


def test_latent() -> None:
    """The decoder's row as the file has it, at unit length, after the block that the SAE's hook names."""
    folder = Path(WEIGHTS / "sae")
    hook = json.loads((folder / "cfg.json").read_text())["metadata"]["hook_name"]
    row = load_file(folder / "sae_weights.safetensors")["W_dec"][LATENT].double().numpy()
    vector = from_latent(load_organism_sae(), LATENT, scale=SCALE)
    assert vector.layers == (int(hook.split(".")[1]),)
    found = vector.at(vector.layers[0]).double().numpy()
    assert np.linalg.norm(found / SCALE - row / np.linalg.norm(row)) < 1e-5
