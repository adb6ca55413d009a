"""The organism's data as files, in the shapes that users bring their own in."""

from __future__ import annotations

import json
from pathlib import Path

from persona_geometry.organism.finetunes import ARMS
from persona_geometry.organism.shipped import data_rows, questions
from probes.conversations import save_conversations


def write_data(out: Path, domain: str = "medicine") -> list[Path]:
    """Write train.jsonl, benign.jsonl, harmful.jsonl, harmless.jsonl, good.jsonl and questions.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    rows = data_rows(domain)
    paths = []
    for name in ("train", "benign", "neutral", "harmful", "harmless", "good"):
        paths.append(out / f"{name}.jsonl")
        save_conversations(getattr(rows, name), paths[-1])
    lines = [{"id": q.id, "text": q.text, "group": q.group, "split": q.split, **q.meta} for q in questions(domain)]
    paths.append(out / "questions.jsonl")
    paths[-1].write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return paths


__all__ = ["ARMS", "write_data"]
