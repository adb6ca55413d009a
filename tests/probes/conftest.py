"""Fixtures of the tests on models of many families."""

from functools import cache, partial

import pytest

from probes import Model
from tests.probes.families import build_family


@pytest.fixture(scope="session", name="build_family")
def _build_family():
    """The function `build_family(family, tokenizer, seed=0, **changes)` that makes a tiny model of any family."""
    return build_family


@pytest.fixture(scope="module")
def family_model(build_family, build_tokenizer):
    """The function `family_model(name, **changes)` that makes a model of a family; leave it as it is."""
    return cache(partial(build_model, build_family, build_tokenizer()))


@pytest.fixture(scope="module")
def fresh_model(build_family, build_tokenizer):
    """The same, with a model that may be changed."""
    return partial(build_model, build_family, build_tokenizer())


def build_model(build_family, tokenizer, name, **changes):
    return Model(build_family(name, tokenizer, **changes), tokenizer, name)
