"""Names of base models: whether two of them say different ones."""

import re

_FAMILIES = "llama|qwen|gemma|mistral|mixtral|pythia|gpt-?2|gpt-?neox?|gpt-?oss|phi|olmo|smollm|falcon|deepseek|glm|yi"


def other_base(one: str, other: str) -> bool:
    """Whether two names speak of different base models, by what both say; a fine-tune's own name says nothing."""
    first, second = _identity(one), _identity(other)
    return all((first[0], second[0])) and any(a and b and a != b for a, b in zip(first, second, strict=True))


def _identity(name: str) -> tuple[str, str, str]:
    """Family, version and size that a model's name says, "" for what it does not: ("llama", "3.1", "8b")."""
    text = name.rstrip("/").rpartition("/")[2].lower().replace("_", ".")
    families = list(re.finditer(rf"(?<![a-z])({_FAMILIES})(?:[-.]?v?(\d+(?:\.\d+)?)(?![\d.]*[bm]\b))?", text))
    if not families:
        return "", "", ""
    last = families[-1]  # of "deepseek-r1-distill-llama-8b", the architecture
    size = re.search(r"(?<![a-z\d.])(\d+(?:\.\d+)?[bm])(?![a-z])", text)
    return last[1].replace("-", ""), last[2] or "", size[1] if size else ""
