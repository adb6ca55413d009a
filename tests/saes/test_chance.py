"""The baseline of random directions: as sparse, as wide, drawn from the generator alone."""

import pytest
import torch

from probes import InputError
from saes import quality, random_dictionary, random_unexplained


def test_random_directions_are_a_baseline_of_the_same_sparsity(topk, rows):
    found = quality(topk, rows)
    chance = random_unexplained(topk, rows, found, draws=4)
    generator = torch.Generator().manual_seed(0)
    mean = rows.double().mean(0)
    drawn = [random_dictionary(topk, k=5, mean=mean, generator=generator) for _ in range(4)]
    assert {(one.d_sae, one.layer, one.k) for one in drawn} == {(64, 2, 5)}
    shares = [quality(one, rows).rates["fvu_rescaled"].value for one in drawn]
    assert chance.value == pytest.approx(sum(shares) / 4) and min(shares) <= chance.low <= chance.high <= max(shares)
    assert 0.2 < chance.value < 1 and chance.n == 300
    with pytest.raises(InputError, match="draws 0: give 1 or more"):
        random_unexplained(topk, rows, found, draws=0)
