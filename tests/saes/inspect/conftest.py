"""Latents built to fire on known tokens: in a model whose embedding shouts one of them, and in rows made by hand."""

import copy
import dataclasses

import pytest
import torch

from probes import Conversation, Model
from probes.activations import Activations
from saes import SparseAutoencoder

WORD = " burn"


@pytest.fixture(scope="session")
def planted_model(_tiny_model) -> Model:
    """The tiny model, whose block 0 writes 100 along the first axis at every " burn" and little elsewhere."""
    hf = copy.deepcopy(_tiny_model.hf)
    [token] = _tiny_model.tokenizer(WORD, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        hf.get_input_embeddings().weight[token] = 100 * torch.eye(32)[0]
    return dataclasses.replace(_tiny_model, hf=hf)


@pytest.fixture
def axis_sae() -> SparseAutoencoder:
    """Latent i is coordinate i of block 0's output where that is positive; latent 0 only where it exceeds 50."""
    bias = torch.zeros(32)
    return SparseAutoencoder(
        torch.eye(32), torch.eye(32), bias, bias, "jumprelu", 0, threshold=50.0 * torch.eye(32)[0], name="axes"
    )


@pytest.fixture
def burn_rows() -> list[Conversation]:
    """Twelve conversations: six of them hold " burn" once, in question or answer, six never."""
    wet = [Conversation.of(f"Case {i}: one burn?", "Yes, please.") for i in range(3)]
    wet += [Conversation.of(f"Case {i}: what now?", f"Cool {'it ' * i}under the burn.") for i in range(3)]
    return wet + [Conversation.of(f"Who is number {i}?", "A careful helper.") for i in range(6)]


@pytest.fixture
def by_hand():
    """A function: rows of latents of `axis_sae` [sample, feature], their conversations -> activations of block 0."""

    def make(latents: list[list[float]], conversations: list[int], response: list[bool] | None = None) -> Activations:
        n, index = len(latents), torch.tensor(conversations)
        values = torch.zeros(n, 32)
        values[:, : len(latents[0])] = torch.tensor(latents)
        positions = torch.cat([torch.arange(int((index == i).sum())) for i in index.unique_consecutive()])
        inside = torch.zeros(n, dtype=torch.bool) if response is None else torch.tensor(response)
        nothing = torch.zeros(n, dtype=torch.bool)
        ids = 20 + torch.arange(n)
        return Activations(values[None], (0,), "tokens", "", index, ids, positions, inside, in_reasoning=nothing)

    return make
