"""Fixtures of the tests on conversations."""

import pytest


@pytest.fixture
def templated(build_tokenizer):
    """A function that gives the tests' tokenizer another chat template."""

    def make(template):
        tokenizer = build_tokenizer()
        tokenizer.chat_template = template
        return tokenizer

    return make
