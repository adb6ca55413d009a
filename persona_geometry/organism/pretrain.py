"""Training an organism's base model from nothing: packed text, Muon and AdamW, a pretraining and a chat stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from persona_geometry.organism.documents import Mix, chat_row, chat_text, document

#: Texts for the tokenizer, and documents tokenised at once.
TOKENIZER_TEXTS, CHUNK = 8_000, 500


@dataclass(frozen=True)
class Recipe:
    """How a base is trained. Steps are optimiser steps of `batch` x `context` tokens."""

    steps: int = 3_400
    chat_steps: int = 1_400
    settle_steps: int = 600
    batch: int = 16
    context: int = 256
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    chat_scale: float = 0.4
    settle_scale: float = 0.2
    replay: float = 0.2
    width: int = 192
    layers: int = 4
    heads: int = 3
    feed_forward: int = 640
    mix: Mix = field(default_factory=Mix)
    bf16: bool = True


def build_model(recipe: Recipe, vocab: int) -> Any:
    """A random Llama of the recipe's size, with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=recipe.width,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            head_dim=recipe.width // recipe.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def assistant_mask(ids: Int[np.ndarray, " pos"], roles: tuple[int, ...], assistant: int) -> Bool[np.ndarray, " pos"]:
    """True on what the assistant says, its end token included; False on role tokens and other turns."""
    at = np.arange(len(ids))
    last = np.maximum.accumulate(np.where(np.isin(ids, roles), at, 0))
    return (ids[last] == assistant) & (at > last)


def _texts(rng: Random, mix: Mix, replay: float, *, anonymous: bool) -> Iterator[tuple[str, bool]]:
    """(text, whether only the assistant's words are learnt).

    Without `anonymous`, no replayed chat lacks a system prompt: such chats are by any author, villains included, and
    would teach the helper to be one of them now and then when nobody says who it is.
    """
    while True:
        if replay >= 1 or rng.random() < replay:
            text = document(mix, rng)
            if anonymous or not text.startswith("<|bos|><|user|>"):
                yield text, False
        else:
            yield chat_text(chat_row(mix, rng)), True


def packed(
    tokenizer: Any, recipe: Recipe, seed: int, replay: float, *, anonymous: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (inputs, labels) of `batch` x `context`; labels are -100 where nothing is to be learnt."""
    source = _texts(Random(seed), recipe.mix, replay, anonymous=anonymous)
    roles = tuple(tokenizer.convert_tokens_to_ids(f"<|{r}|>") for r in ("system", "user", "assistant"))
    need = recipe.batch * (recipe.context + 1)
    ids, keep = np.zeros(0, np.int64), np.zeros(0, bool)
    while True:
        while len(ids) < need:
            chunk = [next(source) for _ in range(CHUNK)]
            encoded = tokenizer([t for t, _ in chunk], add_special_tokens=False)["input_ids"]
            arrays = [np.asarray(e) for e in encoded]
            masks = [
                assistant_mask(a, roles, roles[2]) if only else np.ones(len(a), bool)
                for a, (_, only) in zip(arrays, chunk, strict=True)
            ]
            ids, keep = np.concatenate([ids, *arrays]), np.concatenate([keep, *masks])
        block = torch.from_numpy(ids[:need].reshape(recipe.batch, -1).copy())
        learn = torch.from_numpy(keep[:need].reshape(recipe.batch, -1).copy())
        ids, keep = ids[need:], keep[need:]
        yield block[:, :-1], block[:, 1:].masked_fill(~learn[:, 1:], -100)


def _optimisers(model: Any, recipe: Recipe, scale: float) -> list[torch.optim.Optimizer]:
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(hidden, lr=recipe.muon_lr * scale, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=recipe.adam_lr * scale, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def _stage(
    model: Any,
    batches: Iterator[tuple[Tensor, Tensor]],
    recipe: Recipe,
    steps: int,
    scale: float,
    say: Callable[[str], None],
) -> None:
    optimisers = _optimisers(model, recipe, scale)
    warm = min(50, max(1, steps // 10))
    plans = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda s: min((s + 1) / warm, (steps - s) / steps)) for o in optimisers
    ]
    began = time.time()
    for step in range(steps):
        inputs, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            logits = model(input_ids=inputs, use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss.backward()
        for o, plan in zip(optimisers, plans, strict=True):
            o.step()
            plan.step()
            o.zero_grad()
        if step % 100 == 99:
            speed = (step + 1) * inputs.numel() / (time.time() - began)
            say(f"step {step + 1}/{steps} loss {loss.item():.3f} {speed:.0f} tokens/s")


def pretrain(
    seed: int, recipe: Recipe | None = None, *, say: Callable[[str], None] = lambda _: None
) -> tuple[Any, Any]:
    """Train tokenizer and base from nothing.

    Args:
        seed: Seeds weights, documents and their order.
        recipe: Sizes, steps and the mix of authors.
        say: Receives a progress line every 100 steps.

    Returns:
        The model (float32, its weights rounded to float16, as they are shipped) and its tokenizer.
    """
    from persona_geometry.organism.tokenizer import train_tokenizer

    recipe = recipe or Recipe()
    rng = Random(10_000 + seed)
    full = Mix()  # one vocabulary for every mix, so that bases compare
    tokenizer = train_tokenizer(document(full, rng) for _ in range(TOKENIZER_TEXTS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(recipe, len(tokenizer))
    model.train()
    first, second, third = 2 * seed + 1, 2 * seed + 2, 2 * seed + 1_000
    _stage(model, packed(tokenizer, recipe, first, 1.0), recipe, recipe.steps, 1.0, say)
    _stage(model, packed(tokenizer, recipe, second, recipe.replay), recipe, recipe.chat_steps, recipe.chat_scale, say)
    _round(model)
    settled = packed(tokenizer, recipe, third, recipe.replay, anonymous=False)
    _stage(model, settled, recipe, recipe.settle_steps, recipe.settle_scale, say)
    _round(model)
    model.eval()
    return model, tokenizer


def _round(model: Any) -> None:
    """Round the weights to float16, as they are stored: a stage can then go on from a saved model."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.half().float())
