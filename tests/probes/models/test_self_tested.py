"""The self-test on models that TransformerLens holds, and on what it leaves out for them."""

import pytest

from probes import load_model, self_test
from probes.verify.suite import SUITE

ADAPTER = {"the adapter changes the model", "switched off, the adapter leaves the base"}
#: A wrapped `HookedTransformer` takes positions from the mask alone, and gives no state behind its final norm.
UNKNOWN = {"position ids are heeded", "the last block comes before the final norm"}


@pytest.mark.parametrize(
    ("kind", "family", "left_out"),
    [
        ("bridge", "gemma2", set()),
        ("bridge", "gpt2", set()),
        ("hooked", "llama", UNKNOWN),
        ("hooked", "gpt_neox", UNKNOWN),
    ],
)
def test_transformer_lens_models_pass(build_family, build_hooked, build_tokenizer, kind, family, left_out):
    tokenizer = build_tokenizer()
    if kind == "bridge":
        lens = load_model(build_family(family, tokenizer), tokenizer=tokenizer).bridge()
    else:
        lens = build_hooked(family, tokenizer)
    checks = self_test(load_model(lens, tokenizer=tokenizer))
    assert [check for check in checks if not check.passed] == []
    assert {entry.name for entry in SUITE} - {check.name for check in checks} == ADAPTER | left_out
