"""The training loop: assistant-only loss, seeds, and models that stay as they were."""

from dataclasses import dataclass, replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from finetuning.batches import forward, response_loss, shuffled
from finetuning.loop import Schedule, backward, finetune
from finetuning.lora import LoRA, merged_copy, save_adapter, with_adapter
from finetuning.realign import realign
from finetuning.safeguards.base import Guard, Safeguard
from finetuning.safeguards.kl import KLToBase
from probes.conversations import Conversation, render
from probes.errors import InputError
from probes.models import load_model
from probes.outcomes import COLUMNS, Outcomes

ROWS = [Conversation.of(f"hello {w}", f"good {w} day") for w in ("old", "new", "warm", "cold")]
FEW = Schedule(steps=3, lr=1e-2, batch=2)


def weights(model):
    return {k: v.clone() for k, v in model.hf.state_dict().items()}


def test_response_loss_is_the_mean_over_answer_tokens(tiny_model):
    rendered = render(tiny_model.tokenizer, ROWS[:1], padding_side="right")
    logits = tiny_model.hf(input_ids=rendered.input_ids).logits[0]
    at = [i for i in range(1, rendered.input_ids.shape[1]) if rendered.response[0, i]]
    wanted = torch.stack([-F.log_softmax(logits[i - 1], -1)[rendered.input_ids[0, i]] for i in at]).mean()
    assert torch.allclose(response_loss(tiny_model, rendered), wanted, atol=1e-6)


def test_padding_changes_no_loss(tiny_model):
    long = Conversation.of("hello " * 9, "good day")
    both = render(tiny_model.tokenizer, [ROWS[0], long], padding_side="right")
    alone = [response_loss(tiny_model, render(tiny_model.tokenizer, [r])) for r in (ROWS[0], long)]
    n = [int(both.response[i].sum()) for i in (0, 1)]
    wanted = (alone[0] * n[0] + alone[1] * n[1]) / sum(n)
    assert torch.allclose(response_loss(tiny_model, both), wanted, atol=1e-5)


@pytest.mark.parametrize("lora", [LoRA(rank=2, alpha=4.0), LoRA(rank=1, alpha=64.0, rslora=True), None])
def test_finetune_learns_and_leaves_its_model_alone(tiny_model, lora):
    before = weights(tiny_model)
    trained = finetune(tiny_model, ROWS, schedule=Schedule(steps=30, lr=2e-2, batch=4), seed=0, lora=lora)
    assert trained.loss[-1] < trained.loss[0] - 0.5
    after = weights(tiny_model)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_an_adapter_may_lie_over_the_models_own_tensors(tiny_model):
    own = replace(tiny_model, hf=merged_copy(tiny_model))
    before, settings = weights(own), {"schedule": FEW, "seed": 0, "safeguard": KLToBase(ROWS, weight=0.5)}
    apart, over = (finetune(own, ROWS, lora=LoRA(rank=2), share=share, **settings) for share in (False, True))
    ours, theirs = (dict(m.hf.named_parameters()) for m in (over.model, apart.model))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    held = {p.data_ptr() for p in own.hf.parameters()}
    lying = {k for k, p in ours.items() if p.data_ptr() in held}
    assert lying == {k for k in ours if "lora" not in k} and not held & {p.data_ptr() for p in theirs.values()}
    assert not hasattr(own.hf, "peft_config") and all(torch.equal(before[k], v) for k, v in weights(own).items())
    told = merged_copy(over.model)
    assert told is not over.model.hf and all(torch.equal(before[k], v) for k, v in weights(own).items())
    for start, lora, why in ((own, None, "every weight is trained"), (over.model, LoRA(rank=2), "carries an adapter")):
        with pytest.raises(InputError, match=why):
            finetune(start, ROWS, schedule=FEW, seed=0, lora=lora, share=True)


def test_the_same_seed_gives_the_same_weights(tiny_model):
    a, b, c = (finetune(tiny_model, ROWS, schedule=FEW, seed=s, lora=LoRA(rank=2)) for s in (0, 0, 1))
    wa, wb, wc = weights(a.model), weights(b.model), weights(c.model)
    assert all(torch.equal(wa[k], wb[k]) for k in wa)
    assert any(not torch.equal(wa[k], wc[k]) for k in wa)


def test_the_global_random_state_stays(tiny_model):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    finetune(tiny_model, ROWS, schedule=FEW, seed=0, lora=LoRA(rank=2))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_saved_adapter_loads_and_says_the_same(tiny_model, tmp_path):
    trained = finetune(tiny_model, ROWS, schedule=FEW, seed=0, lora=LoRA(rank=2)).model
    tiny_model.hf.save_pretrained(tmp_path / "base")
    tiny_model.tokenizer.save_pretrained(tmp_path / "base")
    save_adapter(trained, tmp_path / "adapter", base="../base")
    again = load_model(tmp_path / "base", adapter=tmp_path / "adapter")
    ids = render(trained.tokenizer, ROWS).input_ids
    assert torch.allclose(again.hf(input_ids=ids).logits, trained.hf(input_ids=ids).logits, atol=1e-5)


def test_merging_keeps_what_the_model_says(tiny_model):
    trained = finetune(tiny_model, ROWS, schedule=FEW, seed=0, lora=LoRA(rank=2)).model
    ids = render(trained.tokenizer, ROWS).input_ids
    assert torch.allclose(merged_copy(trained)(input_ids=ids).logits, trained.hf(input_ids=ids).logits, atol=1e-5)


def penalty(settings, model):
    return settings.attach(model, seed=0).on_step(0).item()


def test_kl_is_zero_at_the_start_and_equals_its_formula(tiny_model):
    settings = KLToBase(ROWS[:1], weight=2.0, per_step=1)
    fresh = with_adapter(tiny_model, LoRA(rank=2), seed=0)
    assert penalty(settings, fresh) == pytest.approx(0, abs=1e-6)
    tuned = finetune(tiny_model, ROWS, schedule=FEW, seed=0, lora=LoRA(rank=2)).model
    batch = render(tuned.tokenizer, ROWS[:1], padding_side="right")
    with torch.no_grad():
        q, p = (F.log_softmax(m.hf(input_ids=batch.input_ids).logits, -1) for m in (tuned, tiny_model))
    wanted = (p.exp() * (p - q)).sum(-1)[:, :-1][batch.response[:, 1:]].mean()
    assert wanted > 1e-4
    assert penalty(settings, tuned) == pytest.approx(2 * float(wanted), rel=1e-3)


@dataclass(frozen=True)
class Mean(Safeguard):
    """The mean chosen logit of the response tokens as a penalty, and a count of what the loop calls."""

    calls: list[str]

    def attach(self, model, *, seed):
        return MeanGuard(self.calls)


class MeanGuard(Guard):
    def __init__(self, calls):
        self.calls = calls

    def on_batch(self, batch, logits):
        return logits[:, :-1][batch.response[:, 1:]].mean()

    def on_step(self, step):
        self.calls.append("step")
        return None

    def after_step(self, step):
        self.calls.append("after")

    def close(self):
        self.calls.append("close")


def test_accumulation_changes_neither_loss_nor_penalty_nor_gradient(tiny_model):
    rows = [*ROWS, Conversation.of("hello", "good " * 9)]
    model = replace(tiny_model, hf=merged_copy(tiny_model))
    found = []
    for micro in (None, 2, 1):
        figures = backward(model, rows, MeanGuard([]), 0, micro=micro)
        found.append((*figures, *(p.grad.clone() for p in model.hf.parameters())))
        model.hf.zero_grad()
    for other in found[1:]:
        assert other[:2] == pytest.approx(found[0][:2], rel=1e-5)
        for a, b in zip(found[0][2:], other[2:], strict=True):
            assert torch.allclose(a, b, atol=1e-6)


def test_a_guard_is_closed_after_an_error_too(tiny_model):
    calls: list[str] = []

    def stop(step, model):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        finetune(tiny_model, ROWS, schedule=FEW, seed=0, lora=LoRA(rank=2), safeguard=Mean(calls), on_step=stop)
    assert calls == ["step", "after", "close"]


def test_shuffled_shows_every_row_once_an_epoch():
    order = shuffled(6, 3, seed=0)
    for _ in range(3):
        assert sorted(next(order) + next(order)) == list(range(6))


def test_schedule_warms_up_and_ends_at_zero():
    plan = Schedule(steps=10, lr=1.0, warmup=2)
    assert [round(plan.factor(s), 2) for s in (0, 1, 5)] == [0.5, 0.9, 0.5] and plan.factor(10) == 0


def test_realign_reports_its_dose_curve(tiny_model):
    looked = []
    found = Outcomes(pd.DataFrame(columns=list(COLUMNS)))
    model, curve = realign(
        tiny_model, ROWS, seed=0, schedule=Schedule(steps=4, lr=1e-2, batch=2), lora=LoRA(rank=2),
        evaluate=lambda m: looked.append(m.hf.training) or found, at=(2, 4),
    )  # fmt: skip
    assert [(d.step, d.rows) for d in curve] == [(2, 4), (4, 8)] and looked == [False, False]
    assert not model.hf.training


@pytest.mark.parametrize(
    "bad",
    [
        lambda m: finetune(m, [], schedule=FEW, seed=0),
        lambda m: finetune(m, [Conversation.of("no answer")], schedule=FEW, seed=0),
        lambda m: KLToBase([Conversation.of("no answer")]),
        lambda m: Schedule(steps=1, lr=0.0),
        lambda m: LoRA(rank=0),
        lambda m: LoRA(layers=(1,)),
        lambda m: save_adapter(m, "nowhere", base="x"),
    ],
)
def test_bad_input_gets_one_clear_error(tiny_model, bad):
    with pytest.raises(InputError):
        bad(tiny_model)


def test_only_the_last_positions_are_computed_where_that_is_all_that_is_asked(tiny_model):
    batch = render(tiny_model.tokenizer, ROWS, padding_side="right")
    whole, seen = forward(tiny_model, batch), []
    head = tiny_model.hf.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1]))
    try:
        few = forward(tiny_model, batch, last=3)
    finally:
        handle.remove()
    assert seen == [3] and few.shape == (len(ROWS), 3, whole.shape[-1])
    assert torch.allclose(few, whole[:, -3:], atol=1e-5)
