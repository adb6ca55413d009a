"""Models that are broken on purpose, one way each, and the checks that must see it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from probes import Model
from probes.sites import Point

#: A fault: it breaks a private copy of a model, perhaps for as long as a test lasts, and returns it.
Fault = Callable[[Model, Any], Model]


def patched(module: Any, change: Callable[..., Any]) -> None:
    """Let `change(forward, *args, **kwargs)` run in place of a module's forward pass."""
    forward = module.forward
    module.forward = lambda *args, **kwargs: change(forward, *args, **kwargs)


def nan_weights(model: Model, _: Any) -> Model:
    """A value that is not finite, in the row of a token that nobody writes."""
    model.hf.get_input_embeddings().weight.data[model.tokenizer.convert_tokens_to_ids("<|/think|>")] = torch.nan
    return model


def new_tokens(model: Model, _: Any) -> Model:
    """Tokens that were added without room in the embedding."""
    model.tokenizer.add_tokens(["<new>", "<newer>"])
    return model


def forgotten_hook(model: Model, _: Any) -> Model:
    """A hook that somebody has left behind."""
    model.blocks[1].register_forward_hook(lambda *_: None)
    return model


def template(old: str, new: str) -> Fault:
    """A chat template with one part replaced."""

    def plant(model: Model, _: Any) -> Model:
        assert old in model.tokenizer.chat_template
        model.tokenizer.chat_template = model.tokenizer.chat_template.replace(old, new)
        return model

    return plant


def overflow(model: Model, _: Any) -> Model:
    """A last block that overflows at the second token."""

    def change(forward, *args, **kwargs):
        out = forward(*args, **kwargs)
        return out.index_fill(1, torch.tensor([out.shape[1] - 1]), torch.inf)

    patched(model.blocks[-1], change)
    return model


def wide_block(model: Model, _: Any) -> Model:
    """A block that writes float64, which the next one takes back."""
    patched(model.blocks[1], lambda forward, *args, **kwargs: forward(*args, **kwargs).double())
    patched(model.blocks[2], lambda forward, hidden, *args, **kwargs: forward(hidden.float(), *args, **kwargs))
    return model


def late_states(model: Model, _: Any) -> Model:
    """Hidden states that lag a block behind."""

    def change(forward, *args, **kwargs):
        out = forward(*args, **kwargs)
        if out.hidden_states:
            out.hidden_states = (out.hidden_states[0], *out.hidden_states[:-1])
        return out

    patched(model.hf, change)
    return model


def hidden_norm(model: Model, _: Any) -> Model:
    """A last block that applies the final norm itself."""
    norm, model.hf.model.norm = model.hf.model.norm, nn.Identity()
    patched(model.blocks[-1], lambda forward, *args, **kwargs: norm(forward(*args, **kwargs)))
    return model


def edit_in_place(model: Model, _: Any) -> Model:
    """A block that writes into the output of the one before."""
    patched(model.blocks[2], lambda forward, hidden, *args, **kwargs: forward(hidden.mul_(1.5), *args, **kwargs))
    return model


def wrong_site(model: Model, _: Any) -> Model:
    """A place for what the MLP adds where something else is."""
    return replace(model, sites={"mlp_out": Point("post_attention_layernorm")})


def shifted_rows(model: Model, _: Any) -> Model:
    """A block that gives every row of a batch the output of its neighbour."""
    patched(model.blocks[1], lambda forward, *args, **kwargs: forward(*args, **kwargs).roll(1, 0))
    return model


def mask_ignored(model: Model, _: Any) -> Model:
    """Attention that sees padding."""

    def change(forward, *args, attention_mask=None, **kwargs):
        return forward(*args, attention_mask=attention_mask * 0 + 1, **kwargs)

    patched(model.hf.model, change)
    return model


def last_position(model: Model, _: Any) -> Model:
    """A block that takes the last position for the last token."""

    def change(forward, *args, **kwargs):
        out = forward(*args, **kwargs)
        return out + 0.01 * out[:, -1:] if out.shape[1] > 1 else out * 1.01

    patched(model.blocks[-1], change)
    return model


def positions_ignored(model: Model, _: Any) -> Model:
    """A model that counts positions by itself."""

    def change(forward, *args, position_ids=None, **kwargs):
        return forward(*args, **kwargs)

    patched(model.hf.model, change)
    return model


def crowded(model: Model, _: Any) -> Model:
    """A block that works differently under two hooks than under one."""
    block = model.blocks[1]

    def change(forward, *args, **kwargs):
        ours = [hook for hook in block._forward_hooks.values() if not hook.__module__.startswith("transformers.")]
        return forward(*args, **kwargs) * (1.01 if len(ours) > 1 else 1.0)

    patched(block, change)
    return model


def masks(place: str, kind: str, change: Callable[[dict[str, Any]], Any]) -> Fault:
    """Interventions that take the wrong positions for those of one kind."""

    def plant(model: Model, monkeypatch: Any) -> Model:
        import probes.passes

        right = getattr(probes.passes, place)

        def wrong(*args, **kwargs):
            found = right(*args, **kwargs)
            return found | {kind: change(found)}

        monkeypatch.setattr(probes.passes, place, wrong)
        return model

    return plant


def token_dropped(model: Model, _: Any) -> Model:
    """A model that does not see the token before, once the cache is filled."""

    def change(forward, *args, attention_mask=None, past_key_values=None, **kwargs):
        if past_key_values is not None and past_key_values.get_seq_length():
            attention_mask = attention_mask.clone()
            attention_mask[:, -2] = 0
        return forward(*args, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs)

    patched(model.hf.model, change)
    return model


def generation(only_sampled: bool) -> Fault:
    """A `generate` that puts another token in the place of the last one, in each call another."""

    def plant(model: Model, _: Any) -> Model:
        right, count = model.hf.generate, iter(range(20, 400))

        def generate(*args, logits_processor=(), **kwargs):
            tokens = right(*args, logits_processor=logits_processor, **kwargs)
            if bool(logits_processor) is only_sampled:
                tokens[:, -1] = next(count)
            return tokens

        model.hf.generate = generate
        return model

    return plant


def doubled_hooks(model: Model, _: Any) -> Model:
    """A block that puts a second hook on a part of itself for every one that it is given."""
    block = model.blocks[0]
    right = block.register_forward_hook

    def register(*args, **kwargs):
        block.mlp.register_forward_hook(lambda *_: None)
        return right(*args, **kwargs)

    block.register_forward_hook = register
    return model


def idle_adapter(model: Model, _: Any) -> Model:
    """An adapter whose weights are zero."""
    for name, value in model.hf.named_parameters():
        if "lora_B" in name:
            value.data.zero_()
    return model


def moved_base(model: Model, _: Any) -> Model:
    """An adapter over weights that are not the base model's."""
    model.hf.get_base_model().model.layers[0].mlp.up_proj.weight.data *= 1.1
    return model


HIDDEN, STATES = "capture equals the model's hidden states", "a filled cache changes no logit"
LEFT, RIGHT = "a left-padded batch equals single rows", "a right-padded batch equals single rows"
NORM, PARTS = "the last block comes before the final norm", "the parts of a block add up"
STEERED, GREEDY = "a filled cache changes no steered logit", "greedy answers are the likeliest tokens"
PLACED, WRITTEN = "a vector reaches its positions and no other", "a vector reaches every written token"
ZERO, ALONE = "adding zero changes nothing", "a block alone equals all blocks together"
ALL_WRITTEN = (WRITTEN, STEERED, GREEDY)
#: Each fault with the checks that it fails, and no other; the first is the one that is meant for it.
FAULTS: dict[str, tuple[Fault, tuple[str, ...]]] = {
    "NaN weights": (nan_weights, ("weights are finite",)),
    "new tokens": (new_tokens, ("every token has an embedding",)),
    "forgotten hook": (forgotten_hook, ("no hook stands on the model",)),
    "doubled start": (
        template("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"),
        ("the first token is written once",),
    ),
    "changed answer": (
        template("{{ m['content'] }}<|end", "Sure. {{ m['content'] }}<|end"),
        ("the answer's tokens spell the answer",),
    ),
    "changed prompt": (
        template("%}<|assistant|>{% endif", "%}<|assistant|>Well, {% endif"),
        ("the prompt is what generation starts from",),
    ),
    "overflow": (overflow, ("activations are finite", NORM, ALONE, LEFT, RIGHT, ZERO, PLACED, *ALL_WRITTEN, STATES)),
    "float64": (wide_block, ("blocks write the model's dtype",)),
    "late states": (late_states, (HIDDEN,)),
    "hidden norm": (hidden_norm, (NORM,)),
    "edit in place": (edit_in_place, (ALONE,)),
    "wrong site": (wrong_site, (PARTS,)),
    "mask ignored": (mask_ignored, (LEFT,)),
    "shifted rows": (shifted_rows, (LEFT, RIGHT)),
    "last position": (last_position, (RIGHT, STATES, *ALL_WRITTEN)),
    "positions ignored": (positions_ignored, ("position ids are heeded",)),
    "crowded hooks": (crowded, (ZERO,)),
    "prompt everywhere": (masks("forced_positions", "prompt", lambda found: found["all"]), (PLACED,)),
    "padding steered": (masks("forced_positions", "all", lambda found: found["all"] | True), (PLACED,)),
    "first written token missed": (
        masks("active_positions", "response", lambda found: found["response"] & ~found["last_prompt"]),
        ALL_WRITTEN,
    ),
    "token dropped": (token_dropped, (STATES, *ALL_WRITTEN)),
    "wrong greedy token": (generation(False), (GREEDY,)),
    "restless sampling": (generation(True), ("sampling repeats itself",)),
    "doubled hooks": (doubled_hooks, ("hooks leave nothing behind",)),
    "idle adapter": (idle_adapter, ("the adapter changes the model",)),
    "moved base": (moved_base, ("switched off, the adapter leaves the base",)),
}
