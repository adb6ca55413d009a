"""Whether a description of a latent tells passages in which it fires from passages in which it is silent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probes.errors import InputError
from saes.inspect.passages import Context

if TYPE_CHECKING:
    from saes.inspect.card import LatentCard

Z = 1.959964  # the normal's 97.5 % point


@dataclass(frozen=True)
class Detection:
    """How a description does on held-out passages: `hits` of `n_active` active, `alarms` of `n_silent` silent ones.

    `accuracy` is balanced, the mean of the share of active passages that it takes and of silent ones that it leaves;
    0.5 is what a coin, or a description that fits everything, reaches.
    """

    hits: int
    n_active: int
    alarms: int
    n_silent: int

    @property
    def accuracy(self) -> float:
        """Balanced accuracy, from 0 to 1."""
        return (self.hits / self.n_active + 1 - self.alarms / self.n_silent) / 2

    @property
    def interval(self) -> tuple[float, float]:
        """A 95 % interval: Wilson's of each of the two shares, put together by their squares (Newcombe's method)."""
        p, q = self.hits / self.n_active, 1 - self.alarms / self.n_silent
        (p_low, p_high), (q_low, q_high) = _wilson(p, self.n_active), _wilson(q, self.n_silent)
        low = ((p - p_low) ** 2 + (q - q_low) ** 2) ** 0.5 / 2
        high = ((p_high - p) ** 2 + (q_high - q) ** 2) ** 0.5 / 2
        return self.accuracy - low, self.accuracy + high

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.accuracy:.2f} [{low:.2f}, {high:.2f}] (n = {self.n_active} + {self.n_silent})"


@dataclass(frozen=True)
class Naming:
    """What a model called a latent, how sure it said it was (0 to 1), and whether the name holds on unseen passages.

    `control` is the same test, on the same passages, of the name of another latent: what any name reaches. Both are
    None where the card had no passages left to test on, `name` is "" where the model gave none.
    """

    name: str
    confidence: float | None
    detection: Detection | None = None
    control: Detection | None = None
    namer: str = ""


def detection(card: "LatentCard", rule: Callable[[Context], bool]) -> Detection:
    """How a rule about passages does on the held-out and the silent passages of a card.

    The rule sees a passage's tokens and text and must not look at its values. Raises InputError for a card without such
    passages: a latent that is never or always active has none.
    """
    check_testable(card)
    return scored([rule(one) for one in card.held_out], [rule(one) for one in card.silent])


def scored(active: Sequence[bool], silent: Sequence[bool]) -> Detection:
    """The score of verdicts on active and on silent passages."""
    return Detection(sum(map(bool, active)), len(active), sum(map(bool, silent)), len(silent))


def check_testable(card: "LatentCard") -> None:
    """Raise InputError where a card has no passages to test a description on."""
    for what in ("held_out", "silent"):
        if not getattr(card, what):
            raise InputError(
                f"latent {card.latent}: its card has no {what.replace('_', '-')} passages to test a description on; "
                "make it with feature_cards, on more rows"
            )


def _wilson(share: float, n: int) -> tuple[float, float]:
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * (share * (1 - share) / n + Z**2 / (4 * n**2)) ** 0.5 / (1 + Z**2 / n)
    return middle - half, middle + half
