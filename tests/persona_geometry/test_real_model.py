"""A real language model without a chat template, on real stories: everything in `probes` that needs no chat model."""

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from persona_geometry.commands import app
from probes import (
    ActivationStore,
    Conversation,
    load_model,
    load_probe,
    margins,
    plain_text,
    render,
    save_conversations,
)
from probes.perplexity import perplexity

ASSETS = os.environ.get("PERSONA_GEOMETRY_ASSETS")
pytestmark = [
    pytest.mark.skipif(not ASSETS, reason="needs a model and stories under $PERSONA_GEOMETRY_ASSETS"),
    pytest.mark.filterwarnings("ignore:.*has no chat template"),
]
SAD, GLAD = (re.compile(rf"\b({words})\b") for words in ("sad|cry|cried|scared", "happy|smiled|laughed"))


@pytest.fixture(scope="module")
def folder() -> Path:
    """The story model's folder."""
    return Path(str(ASSETS)) / "models" / "stories260K"


@pytest.fixture(scope="module")
def stories() -> list[Conversation]:
    """600 stories: the first sentence is the prompt, what follows is the answer."""
    texts = json.loads((Path(str(ASSETS)) / "data" / "tinystories" / "tinystories_1000.json").read_text("utf-8"))
    parts = [text.strip().replace("\n", " ").partition(". ") for text in texts[:600]]
    return [Conversation.of(f"{first}.", rest[:300], id=str(i)) for i, (first, _, rest) in enumerate(parts) if rest]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch):
    """Run a command in this process and return what it has said."""
    monkeypatch.setattr("persona_geometry.commands.terminal.settle", lambda: None)

    def run(*words: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.output

    return run


def test_the_self_test_passes(call, folder):
    said = call("verify", folder)
    assert "no chat template" in said and "failed" not in said
    passed, checks = map(int, re.findall(r"(\d+) of (\d+) checks passed", " ".join(said.split()))[0])
    assert passed == checks > 20


def test_stories_go_into_a_store_and_come_back(call, folder, stories, tmp_path):
    save_conversations(stories[:60], tmp_path / "stories.jsonl")
    call("capture", folder, tmp_path / "stories.jsonl", "--out", tmp_path / "store", "--layers", "1,3")
    store = ActivationStore.open(tmp_path / "store")
    store.verify()
    rendered = render(load_model(folder).tokenizer, stories[:60])
    assert len(store) == int(rendered.attention_mask.sum()) and store.d_model == 64
    assert store.load().at(3).shape == (len(store), 64)


def test_a_probe_tells_sad_stories_from_glad_ones(call, folder, stories, tmp_path):
    """They share no word list with the probe: it reads means of activations over answers whose prompts are unseen."""
    sad = [s for s in stories if SAD.search(s.answer or "") and not GLAD.search(s.answer or "")]
    glad = [s for s in stories if GLAD.search(s.answer or "") and not SAD.search(s.answer or "")]
    files = [tmp_path / "sad.jsonl", tmp_path / "glad.jsonl"]
    for rows, file in zip((sad, glad), files, strict=True):
        save_conversations(rows, file)
    call("probe", folder, *files, "--out", tmp_path / "probe", "--estimator", "lda", "--layers", "2-4")
    table = pd.read_parquet(tmp_path / "probe" / "layers.parquet")
    best = table.loc[table.auroc.idxmax()]
    assert best.low > max(0.6, best.shuffled, best.random)
    assert load_probe(tmp_path / "probe" / "probe").layer in (2, 3, 4)


def test_real_endings_are_likelier_than_others_words(folder, stories):
    model = plain_text(load_model(folder))
    own = [Conversation.of(s.messages[0]["content"], s.answer) for s in stories[:40]]
    words = [" ".join(reversed((s.answer or "").split())) for s in own]
    shuffled = [row.answered(text) for row, text in zip(own, words, strict=True)]
    assert perplexity(model, own) < 20 < perplexity(model, shuffled)
    found = margins(model, shuffled, own)
    assert found.interval()[1] < 0 and found.share < 0.1
