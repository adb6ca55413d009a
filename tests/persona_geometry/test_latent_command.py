"""`persona-geometry latent`: what it writes and says for a tiny model and SAE; bad input is one line and status 2."""

import json

import pytest

from probes import ActivationStore, Conversation, capture, save_conversations
from saes import load_sae, strongest_latents, train_sae
from tests.probes.server import said, serving

ROWS = [Conversation.of(f"Case {i}: is it a burn?", "Cool it under running water. " * (i % 3 + 1)) for i in range(12)]


@pytest.fixture(scope="module")
def folder(_tiny_model, tmp_path_factory):
    """An SAE of block 1 of the tiny model, rows as conversations, documents and a store."""
    home = tmp_path_factory.mktemp("latent")
    acts = capture(_tiny_model, ROWS, layers=[1], pool="tokens")
    sizes = {"d_sae": 48, "k": 4, "steps": 30, "lr": 5e-3, "batch": 64, "seed": 0}
    train_sae(acts.at(1), layer=1, out=home / "sae", model_name="tiny", **sizes)
    save_conversations(ROWS, home / "rows.jsonl")
    texts = [row.answer for row in ROWS]
    (home / "texts.json").write_text(json.dumps(texts))
    (home / "texts.txt").write_text("\n".join(texts))
    (home / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (home / "empty.json").write_text("[]")
    (home / "odd.json").write_text('{"a": 1}')
    (home / "rows.csv").write_text("a,b")
    capture(_tiny_model, ROWS, layers=[1], pool="tokens", store=ActivationStore.create(home / "store"))
    return home


@pytest.fixture
def call(command, tiny_folder, folder):
    """Run the command on the tiny SAE and model; give the exit status."""
    return lambda *words: command("latent", folder / "sae", tiny_folder, *words)


@pytest.mark.parametrize("name", ["rows.jsonl", "texts.json", "texts.txt", "texts.jsonl", "store"])
def test_rows_of_every_kind(name, folder, call, capsys, tmp_path, tiny_model):
    out = tmp_path / "cards.html"
    assert call("--rows", folder / name, "--out", out, "--latents", "3,10-12", "--skip", "1") == 0
    page = out.read_text(encoding="utf-8")
    assert page.count("<article") == 4 and "id='latent-11'" in page and "the first 1 of each left out" in page
    assert ("&lt;|user|&gt;" in page) == (name in ("rows.jsonl", "store"))
    told = capsys.readouterr().out
    assert str(out) in "".join(told.split()) and "fires on" in told


def test_the_strongest_are_taken_where_none_is_named(folder, call, tmp_path, tiny_model):
    assert call("--rows", folder / "rows.jsonl", "--out", tmp_path / "cards.json", "--where", "response") == 0
    deck = json.loads((tmp_path / "cards.json").read_text())
    sae = load_sae(folder / "sae")
    acts = capture(tiny_model, ROWS, layers=[1], pool="tokens")
    mean = sae.encode(acts.at(1)[acts.in_response]).mean(0)
    order = [i for i in mean.argsort(descending=True).tolist() if mean[i] > 0][:20]
    assert [card["latent"] for card in deck["cards"]] == order
    assert strongest_latents(sae, tiny_model, ROWS, n=3, where="response") == order[:3]


def test_text_can_be_left_out(folder, call, capsys, tmp_path):
    out = tmp_path / "cards.html"
    assert call("--rows", folder / "rows.jsonl", "--out", out, "--latents", "3", "--no-text") == 0
    assert (
        "running" not in out.read_text() and "writes against" not in out.read_text() and "Latent 3" in out.read_text()
    )


def test_names_come_from_an_endpoint(folder, call, capsys, tmp_path):
    with serving(lambda body: said('{"name": "cool [1]", "confidence": 60}')) as server:
        words = ("--rows", folder / "rows.jsonl", "--out", tmp_path / "cards.html", "--latents", "3,4")
        assert call(*words, "--name-by", server.url) == 0
        asked = len(server.requests)
        assert call(*words, "--name-by", server.url) == 0 and len(server.requests) == asked
    assert "cool [1]" in capsys.readouterr().out and "cool [1]" in (tmp_path / "cards.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rows", "rows.jsonl", "--latents", "48"), "latent 48 does not exist"),
        (("--rows", "rows.jsonl", "--latents", "a"), "--latents a"),
        (("--rows", "rows.jsonl", "--latents", "1-2-3"), "--latents 1-2-3"),
        (("--rows", "rows.jsonl", "--where", "answer"), "--where answer"),
        (("--rows", "rows.jsonl", "--skip", "-1"), "--skip -1"),
        (("--rows", "rows.jsonl", "--name-by", "gpt"), "--name-by gpt"),
        (("--rows", "rows.jsonl", "--out", "cards.pdf"), "ends in .html or .json"),
        (("--rows", "none.jsonl"), "no such file"),
        (("--rows", "rows.csv"), "ends in '.csv'"),
        (("--rows", "empty.json"), "no document in it"),
        (("--rows", "odd.json"), "not a list of documents"),
        (("--rows", "sae"), "no activation store"),
        (("--rows", "rows.jsonl", "--layer", "2"), "block"),
    ],
)
def test_bad_input(words, said, folder, call, capsys, tmp_path):
    given = [
        folder / word if word in {path.name for path in folder.iterdir()} or "none" in word else word for word in words
    ]
    out = () if "--out" in words else ("--out", tmp_path / "cards.html")
    assert call(*given, *out) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("persona-geometry: ") and said in last and not list(tmp_path.iterdir())
