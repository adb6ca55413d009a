"""Text coloured token by token, as HTML in which nothing that a text holds is markup."""

from html import escape
from typing import TYPE_CHECKING

from probes.theme import ALIGNED, MISALIGNED

if TYPE_CHECKING:
    from probes.linear.tokens import TokenReadout, TokenScores

_STYLE = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.7"
_ISOLATED = "unicode-bidi:isolate;border-radius:2px"  # marks that turn the direction of writing end with the token


def coloured_html(readout: "TokenReadout") -> str:
    """Each token on the colour of its score: orange for the probe's upper class, blue for the lower, paler near 0.

    The deepest colour is the largest score in sight. Prompts are set smaller; a token's score is its tooltip.
    """
    largest = max((float(row.scores.abs().max()) for row in readout.rows if len(row)), default=0.0) or 1.0
    head = f"<p><b>{escape(readout.title)}</b>; orange: {escape(readout.positive)}; deepest at {largest:.3g}</p>"
    return f"<div>{head}{''.join(_conversation(row, largest) for row in readout.rows)}</div>"


def _conversation(row: "TokenScores", largest: float) -> str:
    tokens = zip(row.texts, row.scores.tolist(), row.in_response.tolist(), strict=True)
    spans = "".join(_token(text, score, score / largest, answer=answer) for text, score, answer in tokens if text)
    return f"<p><small>{row.conversation}</small></p><div style='{_STYLE}'>{spans}</div>"


def _token(text: str, score: float, share: float, *, answer: bool) -> str:
    red, green, blue = (int((MISALIGNED if share > 0 else ALIGNED)[i : i + 2], 16) for i in (1, 3, 5))
    size = "" if answer else ";font-size:85%"
    style = f"background:rgba({red},{green},{blue},{0.6 * abs(share):.2f});{_ISOLATED}{size}"
    return f"<span style='{style}' title='{score:+.3g}'>{escape(visible(text))}</span>"


def visible(text: str) -> str:
    """The text with control characters shown as pictures; line ends and tabs stay."""
    return "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text)
