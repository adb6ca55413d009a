"""Model diffing: which latents fine-tunes raised and which they lowered, one by one and over several runs."""

from saes.diff.compare import diff_latents as diff_latents
from saes.diff.runs import RunTable as RunTable
from saes.diff.runs import aggregate as aggregate
from saes.diff.table import LatentTable as LatentTable
