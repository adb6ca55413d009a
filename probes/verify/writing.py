"""Checks of writing: the same logits and tokens with a cache as without, steered or not; sampling that repeats."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.ask import sample
from probes.cache import buffered_cache
from probes.conversations import Rendered
from probes.generate import Sampling, end_tokens, generate
from probes.hooks import Operator, intervene, teacher_forced
from probes.models import Model, evaluating, text_config, unwrap
from probes.verify.bench import Bench, NotHere, error, run
from probes.verify.operators import Push

#: Tokens that are written in each check.
NEW = 4


def stepped(model: Model, asked: Rendered) -> tuple[Int[Tensor, "batch new"], Float[Tensor, "batch new vocabulary"]]:
    """Greedy tokens with the logits that chose them, one forward pass a token over a filled cache."""
    hf, ids, mask = unwrap(model.hf), asked.input_ids, asked.attention_mask
    if not hf._supports_default_dynamic_cache():
        raise NotHere
    cache, positions = buffered_cache(text_config(hf), ids.shape[1] + NEW), asked.position_ids
    tokens, logits = [], []
    with evaluating(model):
        for _ in range(NEW):
            out = hf(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
            logits.append(out.logits[:, -1].float())
            tokens.append(logits[-1].argmax(-1))
            ids, mask = tokens[-1][:, None], torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = mask.sum(-1, keepdim=True) - 1
    return torch.stack(tokens, dim=1), torch.stack(logits, dim=1)


def extended(asked: Rendered, tokens: Int[Tensor, "batch new"]) -> Rendered:
    """Left-padded prompts with the tokens that were written after them, as a response."""
    old, new = asked.attention_mask, torch.ones_like(tokens)
    nothing, prompt = torch.zeros_like(new, dtype=torch.bool), torch.zeros_like(old, dtype=torch.bool)
    return Rendered(
        torch.cat([asked.input_ids, tokens], dim=1),
        torch.cat([old, new], dim=1),
        torch.cat([asked.prompt, nothing], dim=1),
        torch.cat([prompt, ~nothing], dim=1),
        torch.cat([asked.last_prompt, nothing], dim=1),
        asked.template_hash,
    )


def cached_logits(bench: Bench) -> float:
    """Logits with a filled cache, against those of one pass over everything."""
    return _cached(bench)


def cached_steered_logits(bench: Bench) -> float:
    """The same while a vector steers a block in the middle."""
    return _cached(bench, Push.at(bench, bench.middle, "response"))


def greedy_differs(bench: Bench) -> float:
    """Tokens that `generate` writes at temperature 0, steered and not, and that a pass without cache would not."""
    push = Push.at(bench, bench.middle, "response")
    return float(sum(_unlikely(bench, operators) for operators in ((), (push,))))


def answers_that_change(bench: Bench) -> float:
    """Conversations that two rounds of sampling with one seed answer differently."""
    rounds = [sample(bench.model, bench.rows, seed=0, max_new_tokens=NEW) for _ in range(2)]
    return float(sum(one != other for one, other in zip(*rounds, strict=True)))


def _cached(bench: Bench, *operators: Operator) -> float:
    with intervene(bench.model, *operators):
        tokens, logits = stepped(bench.model, bench.asked)
        theirs = _whole_logits(bench.model, extended(bench.asked, tokens))
    return error(logits, theirs)


def _whole_logits(model: Model, whole: Rendered) -> Float[Tensor, "batch new vocabulary"]:
    """Logits that chose the response's tokens, in one pass without cache."""
    with teacher_forced(whole):
        logits = run(model, whole).logits
    new = int(whole.response[0].sum())
    return logits[:, -new - 1 : -1].float()


def _unlikely(bench: Bench, operators: tuple[Operator, ...]) -> int:
    """Tokens of greedy answers, up to their end, that fall short of the best logit by more than rounding."""
    draws = torch.from_numpy(np.zeros((len(bench.rows), NEW), dtype=np.float32))
    tokens = generate(bench.model, bench.asked, Sampling(0, 0, NEW), draws, operators)
    with intervene(bench.model, *operators):
        logits = _whole_logits(bench.model, extended(bench.asked, tokens))
    short = logits.amax(-1) - logits.gather(-1, tokens[..., None])[..., 0]
    ends = torch.isin(tokens, torch.tensor(end_tokens(bench.model), dtype=tokens.dtype, device=tokens.device)).int()
    written = ends.cumsum(-1) - ends == 0
    return int((~(short <= bench.tolerance * logits.norm(dim=-1)) & written).sum())
