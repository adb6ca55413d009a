"""Which blocks `--layers` names."""

from __future__ import annotations


def named_blocks(text: str) -> tuple[int, ...]:
    """The blocks that `8`, `0,4,8`, `10-20` or a mixture of them name, in their order, each once."""
    from probes.errors import InputError

    try:
        ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
        found = sorted({block for part in ends for block in range(part[0], part[-1] + 1)})
    except ValueError:
        found = []
    if not found or any(len(part) > 2 for part in ends):
        raise InputError(f"--layers {text}: give block numbers, 0-based, such as 8 or 0,4,8 or 10-20")
    return tuple(found)


def blocks_of(text: str, n_layers: int) -> list[int]:
    """The blocks that `named_blocks` reads, or every one for `all`; InputError for one that the model lacks."""
    from probes.errors import InputError

    found = range(n_layers) if text == "all" else named_blocks(text)
    if found[-1] >= n_layers:
        raise InputError(f"--layers {text}: give `all`, `8`, `0,4,8` or `10-20` of the blocks 0 to {n_layers - 1}")
    return list(found)
