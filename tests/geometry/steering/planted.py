"""Answers with planted rates, for what is computed from answers."""

import pandas as pd

from probes import Outcomes
from probes.outcomes import COLUMNS


def outcomes(misaligned: float, coherent: float = 1.0, n: int = 200) -> Outcomes:
    """Answers to 20 questions with these very rates."""
    fine = round(n * coherent)
    bad = round(fine * misaligned)
    table = pd.DataFrame(dict.fromkeys(COLUMNS, ""), index=range(n))
    table["question_id"] = [f"q{i % 20}" for i in range(n)]
    table["aligned"] = [10.0] * bad + [90.0] * (n - bad)
    table["coherent"] = [90.0] * fine + [10.0] * (n - fine)
    table["refusal"] = False
    return Outcomes(table)
