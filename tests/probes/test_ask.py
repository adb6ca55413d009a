"""Sampling and judging: reproducible, pure, unsteered by what the model's configuration says."""

import copy
import sys

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from probes import Connection, Conversation, Endpoint, InputError, Question, Verdict, ask, load_model, render, sample
from probes.generate import Sampling, end_tokens, generate
from tests.probes.server import said, serving


class Length:
    """Judges an answer by its length: long ones are misaligned."""

    name = "length"

    def __call__(self, questions, answers):
        return [Verdict(0.0 if len(answer) > 8 else 90.0, 100.0, label=str(len(answer))) for answer in answers]


QUESTIONS = [Question("a", "Who are you?", "self"), Question("b", "How should I treat a burn?", "health")]
ROWS = [question.conversation for question in QUESTIONS] * 3


def test_sampling_is_reproducible_and_seeded(tiny_model):
    one = sample(tiny_model, ROWS, seed=3, max_new_tokens=8)
    assert one == sample(tiny_model, ROWS, seed=3, max_new_tokens=8)
    assert one != sample(tiny_model, ROWS, seed=4, max_new_tokens=8)
    assert len(set(one)) > 3


def test_batches_do_not_matter(tiny_model):
    whole = sample(tiny_model, ROWS, seed=3, max_new_tokens=8, batch_size=6)
    assert sample(tiny_model, ROWS, seed=3, max_new_tokens=8, batch_size=1) == whole
    assert sample(tiny_model, ROWS[:2], seed=3, max_new_tokens=8) == whole[:2]


def test_the_global_random_state_is_left_alone(tiny_model):
    torch.manual_seed(7)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    sample(tiny_model, ROWS, seed=3, max_new_tokens=4)
    assert torch.equal(state, torch.get_rng_state()) and numpy_state == np.random.get_state()[1].tolist()


def test_greedy_equals_plain_generation(tiny_model):
    rendered = render(tiny_model.tokenizer, ROWS[:1])
    ids = tiny_model.hf.generate(
        rendered.input_ids, attention_mask=rendered.attention_mask, do_sample=False, max_new_tokens=10
    )
    plain = tiny_model.tokenizer.decode(ids[0, rendered.input_ids.shape[1] :], skip_special_tokens=True)
    assert sample(tiny_model, ROWS[:1], seed=0, temperature=0.0, max_new_tokens=10) == [plain]


def test_sampling_follows_the_models_distribution(tiny_model):
    """First tokens of many answers against the softmax: chi-square within its range; the likeliest are not cut off."""
    rows, n = [ROWS[0]] * 1500, 1500
    rendered = render(tiny_model.tokenizer, rows[:1])
    for temperature in (1.0, 2.0):
        with torch.no_grad():
            logits = tiny_model.hf(rendered.input_ids).logits[0, -1].double() / temperature
        expected = torch.softmax(logits, -1).numpy() * n
        answers = ids_of(tiny_model, rows, temperature)
        counts = np.bincount(answers, minlength=len(expected))
        common = expected > 5
        chi2 = ((counts - expected)[common] ** 2 / expected[common]).sum()
        freedom = common.sum()
        assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def ids_of(model, rows, temperature):
    """The first token of each answer, read where the model's sampler leaves it."""
    draws = torch.from_numpy(np.random.default_rng(0).random((len(rows), 1), dtype=np.float32))
    settings = Sampling(0, temperature, 1, len(rows))
    return generate(model, render(model.tokenizer, rows), settings, draws)[:, 0].numpy()


def test_the_models_generation_configuration_is_overruled_and_kept(tiny_model):
    hf = copy.deepcopy(tiny_model.hf)
    odd = GenerationConfig(
        do_sample=True, top_k=1, top_p=0.1, temperature=0.1, repetition_penalty=5.0, bad_words_ids=[[5]], max_length=3
    )
    hf.generation_config = odd
    before = odd.to_dict()
    model = load_model(hf.train(), tokenizer=tiny_model.tokenizer)
    assert sample(model, ROWS, seed=3, max_new_tokens=8) == sample(tiny_model, ROWS, seed=3, max_new_tokens=8)
    assert hf.generation_config is odd and odd.to_dict() == before and hf.training


def test_answers_end_at_any_end_token(tiny_model):
    hf = copy.deepcopy(tiny_model.hf)
    first = tiny_model.hf(render(tiny_model.tokenizer, ROWS[:1]).input_ids).logits[0, -1].argmax().item()
    hf.generation_config = GenerationConfig(eos_token_id=[first])
    model = load_model(hf, tokenizer=tiny_model.tokenizer)
    assert end_tokens(model) == sorted({first, tiny_model.tokenizer.eos_token_id})
    whole = sample(tiny_model, ROWS[:1], seed=0, temperature=0.0, max_new_tokens=6)[0]
    assert len(sample(model, ROWS[:1], seed=0, temperature=0.0, max_new_tokens=6)[0]) < len(whole)


def test_final_answers_are_not_read(tiny_model):
    answered = [row.answered("Never.") for row in ROWS]
    assert sample(tiny_model, answered, seed=3, max_new_tokens=4) == sample(tiny_model, ROWS, seed=3, max_new_tokens=4)


def test_peft_models_answer_differently(tiny_model, tiny_tuned):
    base, tuned = (sample(m, ROWS, seed=3, max_new_tokens=8) for m in (tiny_model, tiny_tuned))
    with tiny_tuned.hf.disable_adapter():
        assert sample(tiny_tuned, ROWS, seed=3, max_new_tokens=8) == base
    assert tuned != base


class Push:
    """Adds a fixed direction, or one for each conversation."""

    layers, positions = (2,), "response"

    def __init__(self, amounts):
        self.amounts = amounts

    def for_rows(self, rows):
        return Push([self.amounts[row] for row in rows])

    def __call__(self, activations, *, layer, mask):
        ramp = torch.linspace(-1, 1, activations.shape[-1])
        return activations + torch.tensor(self.amounts)[:, None, None] * mask[..., None] * ramp


@pytest.mark.parametrize("batch_size", [2, 6])
def test_operators_are_bound_to_their_rows(tiny_model, batch_size):
    plain = sample(tiny_model, ROWS, seed=3, max_new_tokens=8)
    pushed = sample(tiny_model, ROWS, seed=3, max_new_tokens=8, operators=[Push([0.0, 9.0] * 3)], batch_size=batch_size)
    assert pushed[::2] == plain[::2] and all(a != b for a, b in zip(pushed[1::2], plain[1::2], strict=True))


def test_ask_makes_one_row_for_each_answer(tiny_model):
    told = []
    out = ask(
        tiny_model,
        QUESTIONS,
        Length(),
        n_samples=3,
        seed=5,
        max_new_tokens=6,
        name="subject",
        batch_size=4,
        progress=lambda *report: told.append(report),
    )
    table = out.table
    assert table["question_id"].tolist() == ["a"] * 3 + ["b"] * 3 and table["sample"].tolist() == [0, 1, 2] * 2
    assert table["group"].tolist() == ["self"] * 3 + ["health"] * 3
    assert set(table["model"]) == {"subject"} and set(table["seed"]) == {5}
    assert table["prompt"][0] == "<|begin|><|user|>Who are you?<|end|><|assistant|>"
    assert [str(len(answer)) for answer in table["answer"]] == table["label"].tolist()
    assert told == [(4, 6, "answers"), (6, 6, "answers")]
    again = ask(tiny_model, QUESTIONS, Length(), n_samples=3, seed=5, max_new_tokens=6, name="subject")
    assert again.table.equals(table)


def test_wordings_of_a_question_number_their_samples_together(tiny_model):
    wordings = [Question("a", "Who are you?"), Question("a", "What are you?")]
    out = ask(tiny_model, wordings, Length(), n_samples=2, seed=0, max_new_tokens=2)
    assert out.table["sample"].tolist() == [0, 1, 2, 3]


def test_bad_arguments(tiny_model):
    with pytest.raises(InputError, match="0 questions"):
        ask(tiny_model, [], Length(), seed=0)
    with pytest.raises(InputError, match="temperature"):
        sample(tiny_model, ROWS, seed=0, temperature=-1.0)

    class Lazy(Length):
        def __call__(self, questions, answers):
            return []

    with pytest.raises(InputError, match="0 verdicts on 2 answers"):
        ask(tiny_model, QUESTIONS, Lazy(), seed=0, max_new_tokens=2)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mistral"])
def test_batched_answers_equal_answers_one_by_one_without_a_cache(family, tiny_tokenizer, monkeypatch):
    """Left-padded greedy answers against row by row without any cache; sliding windows and shared prompts included."""
    monkeypatch.setattr("probes.generate.STRIDE", 3)
    from transformers import AutoConfig, AutoModelForCausalLM

    size = len(tiny_tokenizer)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6}
    sizes = {"n_embd": 16, "n_layer": 3, "n_head": 2} if family == "gpt2" else sizes
    ends = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    config = AutoConfig.for_model(family, vocab_size=size, initializer_range=0.5, **ends, **sizes)
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model = load_model(hf, tokenizer=tiny_tokenizer)
    ours = sample(model, ROWS, seed=0, temperature=0.0, max_new_tokens=8)
    for row, text in zip(ROWS, ours, strict=True):
        ids = render(tiny_tokenizer, [row]).input_ids
        width = ids.shape[1]
        for _ in range(8):
            with torch.no_grad():
                ids = torch.cat([ids, hf(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
            if ids[0, -1] == tiny_tokenizer.eos_token_id:
                break
        assert tiny_tokenizer.decode(ids[0, width:], skip_special_tokens=True) == text


def test_system_prompts_reach_the_model(tiny_model):
    plain, told = Conversation.of("Who are you?"), Conversation.of("Who are you?", system="Be a villain.")
    one, two = (sample(tiny_model, [row], seed=1, max_new_tokens=8) for row in (plain, told))
    assert one != two


def test_an_endpoint_is_asked_like_a_model(tmp_path):
    """Each sample has a seed of its own and the same one in the next run; a failure in the middle loses nothing."""
    with serving(lambda body: said(f"{body['seed']} {body['temperature']}")) as server:
        subject = Endpoint(server.url, "served", tmp_path, Connection(workers=1, retries=1))
        server.odd = [lambda handler: handler.connection.shutdown(2)]
        settings = {"n_samples": 3, "temperature": 0.5, "max_new_tokens": 9}
        with pytest.raises(InputError, match="is kept"):
            ask(subject, QUESTIONS, Length(), seed=5, **settings)
        table = ask(subject, QUESTIONS, Length(), seed=5, **settings).table
        assert len(server.requests) == 7 and {body["max_tokens"] for body in server.requests} == {9}
        assert table["answer"].nunique() == 6 and all(text.endswith(" 0.5") for text in table["answer"])
        assert ask(subject, QUESTIONS, Length(), seed=5, **settings).table.equals(table)
        assert len(server.requests) == 7
        other = ask(subject, QUESTIONS, Length(), seed=6, **settings).table
        assert not set(other["answer"]) & set(table["answer"]) and len(server.requests) == 13
    assert set(table["model"]) == {"served"} and set(table["template_hash"]) == {"served"}
    assert table["prompt"][0] == '[{"role": "user", "content": "Who are you?"}]'
    assert table["question"].tolist()[::3] == [q.text for q in QUESTIONS] and set(table["judge"]) == {"length"}


def test_activations_of_an_endpoint_are_out_of_reach():
    with pytest.raises(InputError, match="Push: the activations of an endpoint"):
        sample(Endpoint("http://127.0.0.1:1/v1", "m"), ROWS, seed=0, operators=[Push([1.0])])


def test_answers_that_are_kept_are_not_written_again(tiny_model, tmp_path, monkeypatch):
    """Stopped after two batches of three, resumed under another batch size: the same answers as in one go."""
    whole = sample(tiny_model, ROWS, seed=3, max_new_tokens=8)
    rows, left = [], [2]

    def limited(model, rendered, *rest):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        rows.append(len(rendered.input_ids))
        return generate(model, rendered, *rest)

    monkeypatch.setattr(sys.modules["probes.ask"], "generate", limited)
    with pytest.raises(KeyboardInterrupt):
        sample(tiny_model, ROWS, seed=3, max_new_tokens=8, batch_size=2, cache=tmp_path)
    left[0] = 9
    assert sample(tiny_model, ROWS, seed=3, max_new_tokens=8, batch_size=9, cache=tmp_path) == whole
    assert sample(tiny_model, ROWS, seed=3, max_new_tokens=8, cache=tmp_path) == whole and rows == [2, 2, 2]
    assert sample(tiny_model, ROWS, seed=4, max_new_tokens=8, cache=tmp_path) != whole and rows[3:] == [6]


def test_kept_answers_belong_to_their_model(tiny_model, tiny_tuned, tmp_path):
    base, tuned = (sample(m, ROWS, seed=3, max_new_tokens=8, cache=tmp_path) for m in (tiny_model, tiny_tuned))
    assert base != tuned == sample(tiny_tuned, ROWS, seed=3, max_new_tokens=8)
    with pytest.raises(InputError, match="answers under operators are not kept"):
        ask(tiny_model, QUESTIONS, Length(), seed=0, operators=[Push([1.0])], cache=tmp_path)


def test_files_say_how_often_a_question_is_asked(tiny_model):
    asked = [Question("a", "Who are you?", meta={"samples_per_paraphrase": 3}), Question("b", "What?")]
    out = ask(tiny_model, asked, Length(), seed=0, n_samples=None, max_new_tokens=2)
    assert out.table["question_id"].tolist() == ["a", "a", "a", "b"]
    with pytest.raises(InputError, match="samples_per_paraphrase 0"):
        ask(tiny_model, [Question("a", "Hi?", meta={"samples_per_paraphrase": 0})], Length(), seed=0, n_samples=None)
