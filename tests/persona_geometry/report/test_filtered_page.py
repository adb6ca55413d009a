"""The page of a filtered file in a real browser: drawn, quiet, as wide as a phone, hostile rows inert."""

import pytest
import torch

from geometry.features import RowScores, drop_rows
from geometry.features.filtering import Filtered
from persona_geometry.report.filtered import write_filtered
from probes import Conversation, save_conversations
from tests.persona_geometry.report.browser import CHROMIUM, PHONE, Browser
from tests.persona_geometry.report.test_report_browser import EMPTY, WIDE

HOSTILE = "</script><img src=x onerror=document.title='owned'> \u202e & a word of no end " + "w" * 300


@pytest.fixture
def page(tmp_path):
    """Sixty rows of hostile text, scored by three methods of long names, half of them dropped."""
    save_conversations([Conversation.of(f"{i} {HOSTILE}", HOSTILE) for i in range(60)], tmp_path / "data.jsonl")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.arange(60) + 5
    scores = tuple(
        RowScores(torch.randn(60, generator=generator).double(), tokens, name, "nats per residual length", "harm")
        for name in ("projection_difference", "judge:organism-exact", "loss_difference")
    )
    made = Filtered(tmp_path, scores, drop_rows(scores[0], fraction=0.5), tuple(range(1, 61)))
    rates = {one.name: one.auroc([i % 2 == 0 for i in range(60)]) for one in scores}
    return write_filtered(made, tmp_path / "data.jsonl", told={"model": HOSTILE}, auroc=rates)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_fits_a_phone(page):
    browser = Browser()
    try:
        browser.open(page, screen=PHONE, scheme="light", query="?draw=all")
        assert browser.script("window.drawAll().then((boxes) => boxes.length)") == 2
        assert browser.script(EMPTY) == [] and browser.script(WIDE) == []
        assert browser.troubles() == [] and browser.requests() == []
        assert browser.script("document.documentElement.scrollWidth") == PHONE["width"]
        assert browser.script("document.title") == "data.jsonl, filtered"
    finally:
        browser.close()
