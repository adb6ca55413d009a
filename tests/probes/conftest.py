"""Fixtures of the tests on models of many families."""

import pytest

from tests.probes.families import build_family


@pytest.fixture(scope="session", name="build_family")
def _build_family():
    """The function `build_family(family, tokenizer, seed=0, **changes)` that makes a tiny model of any family."""
    return build_family
