"""Token by token: scores as the estimator gives them, texts that add up, and hostile text that stays text."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from probes import (
    ActivationStore,
    Conversation,
    InputError,
    LayerProbe,
    LdaProbe,
    TokenReadout,
    TokenScores,
    capture,
    read_tokens,
    score_tokens,
    stream_tokens,
)
from probes.conversations import render, template_hash
from probes.linear.tokens import token_texts

HOSTILE = "<script>alert(1)</script> <img src=x onerror='alert(1)'> \"&amp; \u202eevil \x07 %{y} ünï 漢字 🙂\n\tend"


@pytest.fixture
def probe(tiny_model) -> LayerProbe:
    rng = np.random.default_rng(0)
    fitted = LdaProbe().fit(rng.normal(size=(40, 32)), np.array(["calm<i>", "grim<b>"] * 20))
    return LayerProbe(fitted, 2, template_hash=template_hash(tiny_model.tokenizer))


@pytest.fixture
def rows(tiny_conversations) -> list[Conversation]:
    return [*tiny_conversations, Conversation.of("Say it.", HOSTILE)]


def test_scores_are_those_of_captured_tokens(tiny_model, probe, rows):
    readout = read_tokens(tiny_model, probe, rows, batch_size=2)
    acts = capture(tiny_model, rows, layers=[2], pool="tokens")
    expected = probe.probe.decision_function(acts.at(2).numpy())
    table = readout.table
    assert table["score"].to_numpy() == pytest.approx(expected, abs=1e-4) and len(readout) == len(rows)
    assert table["conversation"].tolist() == acts.conversation_index.tolist()
    assert table["in_response"].tolist() == acts.in_response.tolist()
    inside = readout.rows[0].in_response
    assert readout.rows[0].response_mean == pytest.approx(float(readout.rows[0].scores[inside].mean()))


def test_texts_add_up_to_the_rendered_conversation(tiny_model, probe, rows):
    readout = read_tokens(tiny_model, probe, rows)
    rendered = render(tiny_model.tokenizer, rows)
    assert ["".join(row.texts) for row in readout.rows] == list(rendered.texts)
    answer = [t for t, inside in zip(readout.rows[4].texts, readout.rows[4].in_response, strict=True) if inside]
    assert "".join(answer) == HOSTILE + "<|end|>" and "" in answer and "🙂" in answer


def test_texts_of_a_broken_character(tiny_tokenizer):
    ids = tiny_tokenizer("a🙂b", add_special_tokens=False)["input_ids"]
    texts = token_texts(tiny_tokenizer, torch.tensor(ids[:2]))  # ends within the character
    assert len(texts) == 2 and texts[0] == "a" and token_texts(tiny_tokenizer, torch.tensor([], dtype=torch.long)) == ()


def test_a_store_streams_the_same(tiny_model, probe, rows, tmp_path):
    store = ActivationStore.create(tmp_path / "store")
    capture(tiny_model, rows, layers=[1, 2], pool="tokens", batch_size=2, store=store)
    streamed = sorted(stream_tokens(store, probe, tiny_model.tokenizer), key=lambda row: row.conversation)
    direct = read_tokens(tiny_model, probe, rows)
    assert [row.texts for row in streamed] == [row.texts for row in direct.rows]
    for one, other in zip(streamed, direct.rows, strict=True):
        torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=1e-4)
        assert torch.equal(one.in_response, other.in_response)


class Tags(HTMLParser):
    """The tags, their attributes and the text that a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("whole", [False, True])  # cut into tokens by the tokenizer, or one token each
def test_hostile_text_is_data(whole, tiny_model, probe):
    readout = read_tokens(tiny_model, probe, [Conversation.of(HOSTILE, HOSTILE)])
    if whole:
        row = TokenScores(0, (HOSTILE,) * 2, torch.tensor([-1.0, 2.0]).double(), torch.tensor([False, True]))
        readout = replace(readout, rows=(row,) * 6, title="<script>alert(1)</script>")
    page = Tags()
    page.feed(readout._repr_html_())
    assert set(page.tags) <= {
        ("div", ()), ("div", ("style",)), ("p", ()), ("b", ()), ("small", ()), ("span", ("style", "title"))
    }  # fmt: skip
    assert page.text.count(HOSTILE.replace("\x07", "\u2407")) == (12 if whole else 2) and "grim<b>" in page.text
    assert "\x07" not in readout.html() and readout.html().count("unicode-bidi:isolate") > 10
    figure = readout.figure()
    assert "<script" not in figure.layout.title.text
    for trace in figure.data:
        assert not re.search(r"<(?!br>|extra>|/extra>)", "".join(trace.text or ()))
    assert "<b>" not in figure.layout.yaxis.title.text and "grim&lt;b&gt;" in figure.layout.yaxis.title.text


def test_colours_follow_the_scores():
    row = TokenScores(0, ("low", "none", "high"), torch.tensor([-2.0, 0.0, 4.0]).double(), torch.ones(3).bool())
    html = TokenReadout((row,), "bad").html()
    shades = re.findall(r"rgba\((\d+),(\d+),(\d+),([\d.]+)\)", html)
    assert shades == [("0", "114", "178", "0.30"), ("0", "114", "178", "0.00"), ("213", "94", "0", "0.60")]
    assert "title='-2'" in html and "title='+4'" in html


def test_figure_marks_the_answer(tiny_model, probe, tiny_conversations):
    readout = read_tokens(tiny_model, probe, tiny_conversations[:2])
    traces = readout.figure().data
    assert [t.line.dash for t in traces] == ["dot", "solid", "dot", "solid"]
    assert list(traces[0].y) + list(traces[1].y) == readout.rows[0].scores.tolist()


def test_refusals(tiny_model, probe, rows):
    for words, act in {
        "no conversations": lambda: read_tokens(tiny_model, probe, []),
        "chat template": lambda: read_tokens(tiny_model, replace(probe, template_hash="other"), rows),
        "layer 9|block 9": lambda: read_tokens(tiny_model, replace(probe, layer=9), rows),
        "width 31": lambda: read_tokens(tiny_model, LayerProbe(LdaProbe().fit(np.eye(31), np.arange(31) % 2), 2), rows),
        "no single tokens": lambda: list(
            score_tokens(capture(tiny_model, rows, layers=[2]), probe, tiny_model.tokenizer)
        ),
        "reads attn_out": lambda: list(
            score_tokens(
                capture(tiny_model, rows, layers=[2], pool="tokens"),
                replace(probe, site="attn_out"),
                tiny_model.tokenizer,
            )
        ),
    }.items():
        with pytest.raises(InputError, match=words):
            act()
    assert len(read_tokens(tiny_model, replace(probe, template_hash=""), rows)) == len(rows)
