"""Judging answers that lie in a table: those of another judge, and those that were sampled elsewhere."""

from probes.errors import InputError
from probes.judges import Judge
from probes.judges.verdict import columns_of, judge_each
from probes.outcomes.table import Outcomes
from probes.questions import Question


def rejudge(outcomes: Outcomes, judge: Judge) -> Outcomes:
    """The same answers under another judge. Raises InputError where the table does not hold the questions' texts."""
    table = outcomes.table
    texts = table["question"].tolist() if "question" in table.columns else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError("outcomes: no column 'question' with every question's text; ask again, or add it")
    pairs = zip(table["question_id"], texts, table["group"], strict=True)
    questions = [Question(str(name), text, str(group)) for name, text, group in pairs]
    verdicts = judge_each(judge, questions, table["answer"].tolist())
    return Outcomes(table.assign(**columns_of(verdicts), judge=judge.name))
