"""`persona-geometry capture`: a store, the same command again, mistakes in one line; what docs/capture.md shows."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from persona_geometry.commands import main
from persona_geometry.organism.shipped import WEIGHTS
from probes import ActivationStore, Conversation, capture, load_conversations, load_model, save_conversations

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "capture.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def rows(tmp_path):
    """A file of 12 conversations."""
    file = tmp_path / "rows.jsonl"
    save_conversations([Conversation.of(f"Number {i}?", "Cool it. " * (1 + i % 3)) for i in range(12)], file)
    return file


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command in this process; what comes back is its exit code and all that it said."""
    monkeypatch.setattr("persona_geometry.commands.terminal.settle", lambda: None)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["persona-geometry", "capture", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out + said.err

    return run


def test_a_store_and_the_same_command_again(call, rows, tiny_folder, tmp_path):
    words = (tiny_folder, rows, "--out", tmp_path / "store", "--layers", "1,3", "--site", "attn_out")
    words += ("--dtype", "float32", "--shard-tokens", 120)
    code, said = call(*words)
    store = ActivationStore.open(tmp_path / "store")
    assert code == 0 and "12 of 12" in said and f"{len(store):,} samples of 12 conversations, blocks 1, 3" in said
    model = load_model(tiny_folder)
    asked = {"layers": (1, 3), "pool": "tokens", "site": "attn_out"}
    direct = capture(model, load_conversations(rows), **asked)
    torch.testing.assert_close(store.load().values, direct.values, atol=1e-5, rtol=1e-5)
    lines = (store.path / "shards.jsonl").read_bytes()
    assert len(store.shards) > 2 and call(*words)[0] == 0 and (store.path / "shards.jsonl").read_bytes() == lines

    bad = store.path / store.shards[1].file
    bad.write_bytes(bad.read_bytes()[:-1] + b"\x07")
    code, said = call(*words, "--repair")
    assert code == 0 and f"{bad.name}: changed since" in said
    store.verify()
    assert sorted((store.path / "shards.jsonl").read_bytes().splitlines()) == sorted(lines.splitlines())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--layers", "one"), "--layers one: give block numbers"),
        (("--layers", "3-1"), "--layers 3-1: give block numbers"),
        (("--layers", "1-2-3"), "--layers 1-2-3: give block numbers"),
        (("--layers", "9"), "layer 9: tiny has blocks 0 to 3"),
        (("--dtype", "int8"), "--dtype int8: use one of float32"),
        (("--dtype", "float32"), "--dtype float32: .* was begun with bfloat16"),
        (("--shard-tokens", "77"), "--shard-tokens 77: .* was begun with 65536"),
        (("--site", "mlp_out"), "holds site resid_post, not mlp_out"),
        (("--adapter",), r"holds model tiny \(.*\), not tiny\+adapter"),
        (("other.jsonl",), r"other.jsonl \(SHA-256 \w{12}\): .* was begun with .*rows.jsonl \(SHA-256 \w{12}\)"),
        (("absent.jsonl",), "absent.jsonl: no such file"),
    ],
)
def test_mistakes_take_one_line(call, rows, tiny_folder, tiny_adapter, tmp_path, words, told):
    save_conversations(load_conversations(rows)[:5], tmp_path / "other.jsonl")
    plain = (tiny_folder, rows, "--out", tmp_path / "store", "--layers", "1")
    assert call(*plain)[0] == 0
    if words == ("--adapter",):
        words = (*words, tiny_adapter)
    if words[0].endswith(".jsonl"):
        plain, words = (tiny_folder, tmp_path / words[0], *plain[2:]), ()
    code, said = call(*plain, *words)
    assert code == 2 and re.fullmatch(f"persona-geometry: .*{told}.*", said.strip().splitlines()[-1])
    assert "Traceback" not in said


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "python"])
def test_the_examples_of_the_page_run(text, rows, tmp_path, monkeypatch):
    for old, new in (("Qwen/Qwen2.5-7B-Instruct", str(WEIGHTS / "base")), ("[15]", "[2]"), ("at(15)", "at(2)")):
        assert old in text
        text = text.replace(old, new)
    monkeypatch.chdir(rows.parent)
    exec(compile(text, "capture.md", "exec"), {})
    assert ActivationStore.open("runs/acts").conversations() == set(range(12))


@pytest.mark.parametrize("line", [line for kind, text in BLOCKS for line in text.splitlines() if line[:4] == "pers"])
def test_the_commands_of_the_page_run(line, call, rows, tmp_path):
    """On this machine, in one process."""
    _, verb, *words = shlex.split(line)
    assert verb == "capture"
    known = {"Qwen/Qwen2.5-7B-Instruct": WEIGHTS / "base", "rows.jsonl": rows, "15": 2, "cuda": "cpu"}
    words = [known.get(word, tmp_path / "acts" if "/acts" in word else word) for word in words]
    words = words[: words.index("--ray")] if "--ray" in words else words
    assert call(*words)[0] == 0
    assert ActivationStore.open(tmp_path / "acts").layers == (2,)
