"""The only forward hooks of the project: reading and changing the residual stream and what is added to it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from probes.activations import SITES, Site
from probes.conversations import Rendered
from probes.edits import Edit, Operator, Tap, editor, middle_editor, site_of
from probes.edits import operators_for as operators_for
from probes.errors import InputError
from probes.models import Model, check_layer, evaluating, unwrap
from probes.names import resolve_layers
from probes.passes import POSITIONS, masks_of_pass, teacher_forced
from probes.passes import Positions as Positions
from probes.passes import active_positions as active_positions
from probes.replays import Scope, forget, remember, replayed, replaying
from probes.sites import ENDS, Layout, Point, Record, check_site, entering, layout, leaving, replaced

#: The sites in the order in which a pass comes by.
_COMING_BY: tuple[Site, ...] = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
#: Layouts that have been found; a block keeps its own for as long as it lives.
_LAYOUTS: WeakKeyDictionary[nn.Module, Layout] = WeakKeyDictionary()


class _Stop(Exception):
    """Ends a forward pass once all that is wanted has been seen."""


def capture_blocks(
    model: Model,
    rendered: Rendered,
    layers: Sequence[int | str],
    *,
    site: Site | None = None,
    rows: Sequence[int] | None = None,
) -> Float[Tensor, "layer batch pos d_model"]:
    """Activations at one site of the blocks `layers` (by default their outputs), in the order asked for.

    A layer is a block's index or TransformerLens's name of its site. One forward pass, as `capture_sites` does it.
    Raises InputError for a block that does not exist, for no block at all, for names of several sites, and where the
    blocks have no such site.
    """
    if not layers:
        raise InputError("capture: no layers given; give at least one block index")
    blocks, place = resolve_layers(layers, site)
    wanted: list[tuple[int, Site]] = [(block, place) for block in blocks]
    found = capture_sites(model, rendered, wanted, rows=rows)
    return torch.stack([found[key].to(model.device) for key in wanted])


def capture_sites(
    model: Model, rendered: Rendered, wanted: Sequence[tuple[int, Site]], *, rows: Sequence[int] | None = None
) -> dict[tuple[int, Site], Float[Tensor, "batch pos d_model"]]:
    """Activations at `wanted` pairs of block and site, in one forward pass without gradients.

    The pass ends as soon as the last of them has been seen. Padding may lie on either side; positions are counted from
    the attention mask. Inside `intervene` the edited activations come back, edited where the rendered conversations say
    that prompt and response are; `rows` are their indices, for operators that differ between conversations. Raises
    InputError for a block that does not exist, and for a site that a block has not.
    """
    points = find_points(model, wanted)
    blocks, seen = model.blocks, dict[tuple[int, Site], Tensor]()
    rendered = rendered.to(model.device)
    with ExitStack() as stack:
        for key, point in points.items():
            stack.enter_context(_tapped(blocks[key[0]], point, _keeper(seen, key, len(points))))
        stack.enter_context(evaluating(model))
        stack.enter_context(teacher_forced(rendered, rows=rows))
        stack.enter_context(suppress(_Stop))
        unwrap(model.hf).base_model(
            input_ids=rendered.input_ids,
            attention_mask=rendered.attention_mask,
            position_ids=rendered.position_ids,
            use_cache=False,
        )
    return {key: seen[key] for key in points}


@contextmanager
def intervene(model: Model, *operators: Any, mask: Bool[Tensor, "batch pos"] | None = None) -> Iterator[None]:
    """Apply `operators`, in order, at their sites of their blocks in every forward pass while the context lasts.

    Which positions an operator edits follows from its `positions` and from the pass: the first pass of a generation
    holds the prompt, later passes (a filled cache) hold generated tokens. "response" = the last prompt token and every
    generated token; "prompt" = all prompt tokens; "last_prompt" = its last one; "all" = everything but padding. Inside
    `teacher_forced` the rendered masks say what prompt and response are. An explicit `mask` replaces all of that.

    Gradients flow through, also to what an operator holds. A part of a pass that gradient checkpointing runs again is
    edited as it was, even after the context. An edit of `resid_mid` is carried by what attention adds: `attn_out`, read
    in the same context, includes it. Raises InputError for an operator that is none, and for a site that a block lacks.
    """
    for operator in operators:
        _check_operator(model, operator)
    scope = Scope()
    edits = _edits(model, operators, scope)
    with _passes(unwrap(model.hf).base_model, edits, scope, mask), _in_place(edits):
        yield


def find_points(model: Model, wanted: Sequence[tuple[int, Site]]) -> dict[tuple[int, Site], Point]:
    """Where sites of blocks are among the blocks' modules: as `model.sites` says, or found by running a few tokens.

    Raises InputError for a block that does not exist, an unknown site, and a site that a block has not.
    """
    for layer, site in wanted:
        check_layer(model, layer)
        check_site(site)
    told: dict[Site, Point] = {**ENDS, **model.sites}
    layouts = _layouts(model, [layer for layer, site in wanted if site not in told])
    return {(i, site): told[site] if site in told else _point(model, layouts[i], i, site) for i, site in wanted}


def _point(model: Model, found: Layout, layer: int, site: Site) -> Point:
    if site in found.points:
        return found.points[site]
    name = type(unwrap(model.hf)).__name__
    if found.parallel:
        raise InputError(
            f"{site} of block {layer}: attention and MLP of {name} both read the block's input, there is no middle; "
            f"use one of {', '.join(s for s in SITES if s in found.points)}"
        )
    raise InputError(
        f"{site} of block {layer}: no two modules of it in {name} add up to what the block adds; name the module, as "
        f"dataclasses.replace(model, sites={{{site!r}: Point('path.in.block')}})"
    )


def _layouts(model: Model, layers: Sequence[int]) -> dict[int, Layout]:
    """The layouts of blocks; those not known yet are found by running a few tokens, aside from all interventions."""
    blocks = model.blocks
    missing = sorted({layer for layer in layers if blocks[layer] not in _LAYOUTS})
    calls: dict[int, list[Record]] = {layer: [] for layer in missing}
    if missing:
        tokens = torch.arange(6, device=model.device)[None]
        with ExitStack() as stack:
            for layer in missing:
                for path, module in blocks[layer].named_modules():
                    stack.enter_context(_recorded(module, path, calls[layer], last=layer == missing[-1]))
            stack.enter_context(evaluating(model))
            stack.enter_context(replayed({}))
            stack.enter_context(suppress(_Stop))
            unwrap(model.hf).base_model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    for layer in missing:
        _LAYOUTS[blocks[layer]] = layout(calls[layer])
    return {layer: _LAYOUTS[blocks[layer]] for layer in layers}


def _edits(model: Model, operators: Sequence[Any], scope: Scope) -> list[Edit]:
    """All edits of a context: block by block, in the order in which a pass comes by."""
    by_place: dict[tuple[int, Site], list[Any]] = {}
    for operator in operators:
        for layer in operator.layers:
            by_place.setdefault((layer, site_of(operator)), []).append(operator)
    carriers: list[tuple[int, Site]] = [(layer, "attn_out") for layer, site in by_place if site == "resid_mid"]
    points, blocks, edits = find_points(model, [*by_place, *carriers]), model.blocks, list[Edit]()
    for layer, site in sorted(by_place, key=lambda place: (place[0], _COMING_BY.index(place[1]))):
        block, acting = blocks[layer], by_place[layer, site]
        if site == "resid_mid":
            entry = _LAYOUTS[block].entry if block in _LAYOUTS else None
            hold, edit = middle_editor(acting, layer, scope)
            edits += [Edit(block, entry or ENDS["resid_pre"], hold), Edit(block, points[layer, "attn_out"], edit)]
        else:
            edits.append(Edit(block, points[layer, site], editor(acting, layer, scope)))
    return edits


def _check_operator(model: Model, operator: Any) -> None:
    if not isinstance(operator, Operator):
        raise InputError(f"operator {operator!r}: give a callable with layers and positions, such as Add or Ablate")
    if operator.positions not in POSITIONS:
        raise InputError(f"positions {operator.positions!r} of {operator!r}: use one of {', '.join(POSITIONS)}")
    check_site(site_of(operator))
    find_points(model, [(layer, site_of(operator)) for layer in operator.layers])


def _keeper(seen: dict[tuple[int, Site], Tensor], key: tuple[int, Site], wanted: int) -> Tap:
    def keep(hidden: Tensor) -> None:
        seen[key] = hidden.detach()
        if len(seen) == wanted:
            raise _Stop

    return keep


@contextmanager
def _passes(decoder: nn.Module, edits: Sequence[Edit], scope: Scope, mask: Tensor | None) -> Iterator[None]:
    """Tell `scope`, before every pass of the decoder, which positions are which, and make it forget them after it."""
    blocks = {id(edit.block): edit.block for edit in edits}

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not replaying():
            scope.masks |= masks_of_pass(args, kwargs, mask)
            for block in blocks.values():
                remember(block, scope, partial(_in_place, [edit for edit in edits if edit.block is block]))

    def end(*_: Any) -> None:
        if not replaying():
            scope.masks.clear()

    handles = [
        decoder.register_forward_pre_hook(cast(Any, begin), with_kwargs=True),
        decoder.register_forward_hook(end, always_call=True),
    ]
    try:
        yield
    finally:
        scope.over = True
        for handle in handles:
            handle.remove()
        for block in blocks.values():
            forget(block, scope)


@contextmanager
def _in_place(edits: Sequence[Edit]) -> Iterator[None]:
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(_tapped(edit.block, edit.point, edit.tap))
        yield


@contextmanager
def _tapped(block: nn.Module, point: Point, tap: Tap) -> Iterator[None]:
    """Let `tap` see the activations at `point`, and put what it returns in their place."""

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = entering(args, kwargs)
        new = None if found is None else tap(found[1])
        return None if found is None or new is None else replaced(args, kwargs, found[0], new)

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        new = tap(leaving(output))
        return (new, *output[1:]) if new is not None and isinstance(output, tuple) else new

    module = point.module(block)
    if point.end == "input":
        handle = module.register_forward_pre_hook(cast(Any, enter), with_kwargs=True)
    else:
        handle = module.register_forward_hook(leave)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _recorded(module: nn.Module, path: str, calls: list[Record], *, last: bool) -> Iterator[None]:
    """Write down what goes into a module and what comes out; after the block that is the `last` the pass ends."""

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(Record.of(path, args, kwargs, output))
        if last and not path:
            raise _Stop

    handle = module.register_forward_hook(cast(Any, record), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
