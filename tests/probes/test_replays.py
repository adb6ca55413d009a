"""Edits in training: gradients, and parts of a pass that gradient checkpointing runs a second time."""

import pytest
import torch

from probes import Conversation, intervene, render
from probes.activations import SITES
from tests.probes.operators import STEP, Change, inputs, push, registered, rows


class Run:
    """Losses and gradients of a model in training, checkpointed or not, with a step that is trained too."""

    def __init__(self, model, *, checkpointed=None):
        self.model, self.step = model, torch.nn.Parameter(STEP.clone())
        model.hf.train()
        if checkpointed is not None:
            model.hf.activation_checkpointing_enable({"use_reentrant": checkpointed})
            model.hf.enable_input_require_grads()

    def loss(self, side, *, sites=SITES):
        rendered, step = rows(self.model, side), self.step
        operators = [Change(lambda x: 0.7 * x + step, site, (0, 2), "last_prompt") for site in sites]
        with intervene(self.model, *operators):
            logits = self.model.hf(rendered.input_ids, **inputs(rendered)).logits
        return (logits * rendered.attention_mask[..., None]).square().mean()

    def gradients(self):
        named = [*self.model.hf.named_parameters(), ("step", self.step)]
        return {name: value.grad for name, value in named if value.grad is not None}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize(
    ("name", "reentrant"), [("llama", False), ("llama", True), ("gemma2", False), ("olmo2", False), ("gpt2", True)]
)
def test_checkpointing_changes_no_gradient(fresh_model, name, reentrant):
    """Two passes with different masks, then one backward pass, after the contexts and inside another one."""
    quiet = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0} if name == "gpt2" else {}
    runs = [Run(fresh_model(name, **quiet)), Run(fresh_model(name, **quiet), checkpointed=reentrant)]
    for run in runs:
        before = registered(run.model)
        loss = run.loss("left") + run.loss("right", sites=("attn_out",))
        assert registered(run.model) == before
        with intervene(run.model, push("attn_out"), push("mlp_out", (0,))):  # not in force when the passes were run
            loss.backward()
    plain, checkpointed = (run.gradients() for run in runs)
    assert plain.keys() == checkpointed.keys() and "step" in plain
    for key, wanted in plain.items():
        assert torch.allclose(checkpointed[key], wanted, atol=1e-4 * float(wanted.abs().max()) + 1e-9), key
    functions = {type(block._gradient_checkpointing_func).__name__ for block in runs[1].model.blocks}
    assert functions == {"partial"}


def test_checkpointing_switched_on_inside_a_context(fresh_model):
    """The pass is remembered too where training begins inside; what lies outside of a context stays as it is."""
    run, plain = Run(fresh_model("llama")), Run(fresh_model("llama"))
    with intervene(run.model, push("mlp_out")), intervene(run.model, push("mlp_out", step=2 * STEP)):
        run.model.hf.activation_checkpointing_enable()
        run.loss("left").backward()
        run.loss("right").backward()
    with intervene(plain.model, push("mlp_out", step=3 * STEP)):
        (plain.loss("left") + plain.loss("right")).backward()
    found, wanted = run.gradients(), plain.gradients()
    assert all(torch.allclose(found[k], wanted[k], atol=1e-4 * float(wanted[k].abs().max())) for k in wanted)
    assert all(type(block._gradient_checkpointing_func).__name__ == "partial" for block in run.model.blocks)


@pytest.mark.parametrize("site", SITES)
def test_gradients_are_those_of_the_edited_function(fresh_model, site):
    """Against differences: the gradient by the step, in float64, where it starts from nothing."""
    model = fresh_model("gpt2")
    model.hf.double()
    rendered = render(model.tokenizer, [Conversation.of("How are you?")])
    step = torch.zeros(32, dtype=torch.float64, requires_grad=True)

    def outputs(step):
        with intervene(model, push(site, (1,), "last_prompt", step=step)):
            return model.hf(rendered.input_ids, **inputs(rendered)).logits[:, -1, :3]

    assert torch.autograd.gradcheck(outputs, step, fast_mode=True, atol=1e-6)
    (gradient,) = torch.autograd.grad(outputs(step).sum(), step)
    assert gradient.abs().max() > 1e-3


def test_training_steers_as_a_plain_hook_does(fresh_model):
    """The gradients of a model that is trained while steered are those with a hook of torch's own."""
    run, plain = Run(fresh_model("llama")), Run(fresh_model("llama"))
    with intervene(run.model, push(layers=(1,))):
        run.loss("left", sites=()).backward()
    hook = plain.model.blocks[1].register_forward_hook(
        lambda _, __, out: out + STEP * rows(plain.model).attention_mask[..., None]
    )
    plain.loss("left", sites=()).backward()
    hook.remove()
    found, wanted = run.gradients(), plain.gradients()
    assert found.keys() == wanted.keys() and all(torch.allclose(found[k], wanted[k], atol=1e-6) for k in wanted)
