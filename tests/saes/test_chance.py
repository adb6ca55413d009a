"""The baseline of random directions: as sparse, as wide, drawn from the generator alone."""

import pytest
import torch

from probes import InputError
from saes import quality, random_dictionary, random_unexplained


def test_random_directions_are_a_baseline_of_the_same_sparsity(topk, rows):
    found = quality(topk, rows)
    chance = random_unexplained(topk, rows, found, draws=4)
    generator = torch.Generator().manual_seed(0)
    one = random_dictionary(topk, k=5, mean=rows.double().mean(0), generator=generator)
    drawn = quality(one, rows)
    assert drawn.l0 == pytest.approx(5, abs=0.1) and one.d_sae == 64 and one.layer == topk.layer
    assert chance.low <= drawn.rates["fvu_rescaled"].value <= chance.high
    assert 0.2 < chance.value < 1 and chance.n == 300
    with pytest.raises(InputError, match="draws 0: give 1 or more"):
        random_unexplained(topk, rows, found, draws=0)
