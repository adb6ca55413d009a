"""The sections in the order of a reader's questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from persona_geometry.report.html import Html
from persona_geometry.report.sections import became, carries, near, teaching, trust, turns_off, what_now, where
from persona_geometry.report.view import View, gather


@dataclass(frozen=True)
class Section:
    """A question and the parts that answer it."""

    key: str
    question: str
    parts: tuple[Callable[[View], Html], ...]

    def draw(self, view: View) -> Html:
        """The parts one after the other; a missing one is said in words."""
        return gather(view, *self.parts)


SECTIONS = (
    Section("verdict", "Did it become misaligned?", became.PARTS),
    Section("where", "Where?", where.PARTS),
    Section("carries", "What carries it?", carries.PARTS),
    Section("near", "How near is it to what was trained?", near.PARTS),
    Section("turns-off", "What turns it off?", turns_off.PARTS),
    Section("rows", "Which rows taught it?", teaching.PARTS),
    Section("now", "What now?", what_now.PARTS),
    Section("trust", "Can I trust it?", trust.PARTS),
)
