"""Sites: where in a decoder block the residual stream and what is added to it can be read and changed.

Nothing is known of model families. A block is run once on a few tokens, and the modules are found whose outputs add up:
resid_pre + attn_out = resid_mid, resid_mid + mlp_out = resid_post.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probes.activations import SITES, Site
from probes.errors import InputError

Stream = Float[Tensor, "batch pos d_model"]


@dataclass(frozen=True)
class Point:
    """A tensor of a block: what enters the module at `path` inside it, or what leaves it ("": the block itself)."""

    path: str
    end: Literal["input", "output"] = "output"

    def module(self, block: nn.Module) -> nn.Module:
        """The module in a block. Raises InputError where the block has none of that path."""
        try:
            return block.get_submodule(self.path)
        except AttributeError:
            raise InputError(
                f"site at {self.path!r}: {type(block).__name__} has {[name for name, _ in block.named_children()]}; "
                "name the module by its path inside the block"
            ) from None


@dataclass(frozen=True)
class Layout:
    """Where the sites of one block are; `entry` is where the block's own modules read its input.

    `parallel` says that attention and MLP both read the block's input, so that there is no `resid_mid`.
    """

    points: Mapping[Site, Point]
    entry: Point | None = None
    parallel: bool = False


class Record(NamedTuple):
    """One call of a module: its path inside the block, and the tensors that went in and came out."""

    path: str
    entered: Tensor | None
    left: Tensor | None

    @classmethod
    def of(cls, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> "Record":
        """Copy what a module has been called with and what it has returned."""
        entered, left = entering(args, kwargs), leaving(output)
        return cls(path, entered and entered[1].clone(), left.clone() if isinstance(left, Tensor) else None)


#: What needs no search: a block's input and output.
ENDS: Mapping[Site, Point] = {"resid_pre": Point("", "input"), "resid_post": Point("", "output")}


def check_site(site: str) -> None:
    """Raise InputError for a site of no known name."""
    if site not in SITES:
        raise InputError(f"site {site!r}: use one of {', '.join(SITES)}")


def entering(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int | str, Tensor] | None:
    """The first floating-point tensor that a module is called with, and the argument that it is."""
    slots: Iterator[tuple[int | str, Any]] = iter([*enumerate(args), *kwargs.items()])
    return next(((key, x) for key, x in slots if isinstance(x, Tensor) and x.is_floating_point()), None)


def replaced(args: tuple[Any, ...], kwargs: dict[str, Any], slot: int | str, value: Tensor) -> tuple[Any, Any]:
    """The arguments of a module with `value` in the place that `entering` has named."""
    if isinstance(slot, str):
        return args, kwargs | {slot: value}
    return (*args[:slot], value, *args[slot + 1 :]), kwargs


def leaving(output: Any) -> Any:
    """The activations in a module's output, which may be the first of several values."""
    return output[0] if isinstance(output, tuple) else output


def layout(records: Sequence[Record]) -> Layout:
    """Find the sites of a block from all calls inside it, in the order of their ends; the last is the block's own."""
    block = records[-1]
    pre, post = block.entered, block.left
    if pre is None or post is None:
        return Layout(ENDS)
    inner = [r for r in records[:-1] if _like(r.entered, pre) or _like(r.left, pre)]
    entry = next((Point(r.path, "input") for r in inner if _same(r.entered, pre)), None)
    ways = list(_sequential(inner, pre, post))
    if not any(error == 0 for (error, *_), _ in ways):
        ways += _parallel(inner, pre, post)
    found = min(ways, key=lambda way: way[0], default=None)
    if found is None:
        return Layout(ENDS, entry)
    _, points = found
    return Layout({**ENDS, **points}, entry, parallel="resid_mid" not in points)


Found = tuple[tuple[float, int, int], dict[Site, Point]]  # best first: smallest error, no parallel, latest modules


def _sequential(inner: Sequence[Record], pre: Stream, post: Stream) -> Iterator[Found]:
    """Ways to read the block as one sum after the other, with a middle that enters some module."""
    tried: list[Tensor] = [pre]
    for at, middle in enumerate(inner):
        mid = middle.entered
        if mid is None or not _like(mid, pre) or any(_same(mid, other) for other in tried):
            continue
        tried.append(mid)
        for i, first in enumerate(inner[:at]):
            error = _error(mid, pre, first.left)
            if error is None:
                continue
            for j, second in enumerate(inner[at:], at):
                rest = _error(post, mid, second.left)
                if rest is not None:
                    points: dict[Site, Point] = {
                        "resid_mid": Point(middle.path, "input"),
                        "attn_out": Point(first.path),
                        "mlp_out": Point(second.path),
                    }
                    yield (error + rest, 0, -i - j), points


def _parallel(inner: Sequence[Record], pre: Stream, post: Stream) -> Iterator[Found]:
    """Ways to read the block as one sum of its input and two outputs."""
    for i, first in enumerate(inner):
        for j, second in enumerate(inner[i + 1 :], i + 1):
            error = _error(post, pre, first.left, second.left)
            if error is not None:
                points: dict[Site, Point] = {"attn_out": Point(first.path), "mlp_out": Point(second.path)}
                yield (error, 1, -i - j), points


def _error(total: Stream, *parts: Tensor | None) -> float | None:
    """How far a sum is off relative to its largest number, in the best order of adding; None beyond rounding.

    Parts that change less than half of the numbers prove nothing.
    """
    if any(not _like(part, total) for part in parts):
        return None
    known = [part for part in parts if part is not None]
    if any(float((total - part == total).float().mean()) > 0.5 for part in known[1:]):
        return None
    sums = (sum(order[1:], order[0]) for order in permutations(known))
    error = min(float((one - total).abs().max()) for one in sums) / max(float(total.abs().max()), 1e-30)
    return error if error <= 4 * torch.finfo(total.dtype).eps else None


def _like(tensor: Tensor | None, other: Tensor) -> bool:
    return tensor is not None and tensor.shape == other.shape


def _same(tensor: Tensor | None, other: Tensor) -> bool:
    return tensor is not None and tensor.shape == other.shape and bool(torch.equal(tensor, other))
