"""`persona-geometry verify`: what it says and writes; status 1 for a model that is broken, 2 for bad input."""

import json
import sys
from html.parser import HTMLParser

import pytest

from persona_geometry.commands import main
from probes import Conversation, load_model, save_conversations, self_test


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["persona-geometry", "verify", *map(str, words)])
    monkeypatch.setattr("persona_geometry.commands.terminal.settle", lambda: None)
    monkeypatch.setenv("COLUMNS", "140")
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


class Spans(HTMLParser):
    """The stretches of text of a page's conversations, with their classes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[list[str]] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "span":
            self.found.append([dict(attrs).get("class") or "", ""])

    def handle_data(self, data):
        if self.found:
            self.found[-1][1] += data


def test_a_sound_model_and_adapter(tiny_folder, tiny_adapter, tmp_path, monkeypatch, capsys):
    rows = [
        Conversation.of("<script>alert(1)</script>?", "<|think|>Hm.<|/think|>Ho [red]x[/red]."),
        Conversation.of("Q", "A"),
    ]
    save_conversations(rows, tmp_path / "rows.jsonl")
    files = {kind: tmp_path / f"found.{kind}" for kind in ("json", "html")}
    words = ("--adapter", tiny_adapter, "--rows", tmp_path / "rows.jsonl", "--json", files["json"])
    assert call(monkeypatch, tiny_folder, *words, "--html", files["html"]) == 0
    said, found = capsys.readouterr().out, json.loads(files["json"].read_text())
    checks = self_test(load_model(tiny_folder, adapter=tiny_adapter), rows)
    assert {c["name"] for c in found["checks"]} - {c.name for c in checks} == {
        "switched off, the adapter leaves the base"
    }
    assert found["passed"] and f"{len(checks) + 1} of {len(checks) + 1} checks passed" in said
    assert all(check.name in said and check.guards in said for check in checks)
    row = [
        ["prompt", "<|begin|><|user|><script>alert(1)</script>?<|end|>"],
        ["last_prompt", "<|assistant|>"],
        ["reasoning", "<|think|>Hm.<|/think|>"],
        ["response", "Ho [red]x[/red].<|end|>"],
    ]
    assert found["rows"][0] == row and "Ho [red]x[/red].<|end|>" in said
    page = Spans(files["html"].read_text())
    assert page.found[-7:-3] == row and "script" not in page.tags


def test_a_broken_model_is_status_one(scratch_folder, monkeypatch, capsys):
    template = scratch_folder / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    assert call(monkeypatch, scratch_folder, "--dtype", "bfloat16") == 1
    said = capsys.readouterr().out
    assert "failed: the first token is written once." in said and "torch.bfloat16" in said and "FAILED" in said


def test_a_model_without_a_template_is_told_of_it(scratch_folder, monkeypatch, capsys):
    (scratch_folder / "chat_template.jinja").unlink()
    assert call(monkeypatch, scratch_folder) == 0
    said = capsys.readouterr()
    assert "no chat template: turns are written as User: and Assistant:" in said.out and "Warning" not in said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--dtype", "int8"), "--dtype int8: use one of"),
        (("--json", "."), "is a folder"),
        (("--rows", "none.jsonl"), "no such file"),
        (("--rows", "one.jsonl"), "two or more"),
        (("--adapter", "no/such/adapter"), "no such folder"),
        (("--blocks", "model.no"), "is no module list"),
    ],
)
def test_bad_input_is_one_line_and_status_two(words, said, tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_conversations([Conversation.of("Hi?", "Ho.")], "one.jsonl")
    capsys.readouterr()
    assert call(monkeypatch, tiny_folder, *words) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "Loading weights" not in line]
    assert len(err) == 1 and err[0].startswith("persona-geometry: ") and said in err[0]
