"""`persona-geometry probe`: a linear probe at every block, tested on conversations that it has not seen, and kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    import numpy as np

    from probes.activations import Activations
    from probes.conversations import Conversation
    from probes.linear import LayerProbe, LayerSweep, LinearProbe
    from probes.outcomes import Rate

ESTIMATORS = "logistic, mean-difference, lda, ridge"
SHOWN = 6  # conversations in tokens.html


class Labelled(NamedTuple):
    """Conversations, whether each is positive, and its group, [conversation]; and what the two sides are called."""

    rows: list[Conversation]
    labels: np.ndarray
    groups: np.ndarray
    names: dict[str, str]


def probe(
    model: Annotated[str, typer.Argument(help="A chat model: a hub id or a folder.")],
    files: Annotated[
        list[Path], typer.Argument(help="JSONL of positive and of negative conversations; or one file, with --label.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for probe/, layers.parquet, layers.html and tokens.html.")],
    label: Annotated[str | None, typer.Option(help="Key of each row that holds one of two labels.")] = None,
    positive: Annotated[
        str | None, typer.Option(help="The label that a positive score stands for (default: the one sorted last).")
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="Key of each row; rows of one value stay together (default: the prompt's text).")
    ] = None,
    layers: Annotated[str, typer.Option(help="Blocks, 0-based: `all`, `8`, `0,4,8` or `10-20`.")] = "all",
    estimator: Annotated[str, typer.Option(help=f"One of {ESTIMATORS}.")] = "logistic",
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Scale scores to honest probabilities.")] = False,
    pool: Annotated[str, typer.Option(help="response_mean, prompt_mean or last_prompt.")] = "response_mean",
    site: Annotated[str, typer.Option(help="resid_pre, resid_mid, resid_post, attn_out or mlp_out.")] = "resid_post",
    folds: Annotated[int, typer.Option(help="One fold is put aside for the figure quoted; as many choose.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, mps.")] = "cpu",
) -> None:
    """Fit a probe at every block, choose one by cross-validation, and test it on groups that took no part in that."""
    from persona_geometry.commands.terminal import settle

    _check(files, label, positive, estimator, pool, site)
    data = _paired(files, groups) if len(files) == 2 else _labelled(files[0], str(label), positive, groups)
    settle()
    from dataclasses import replace

    from persona_geometry.commands.blocks import blocks_of
    from probes.capture import capture
    from probes.linear import CalibratedProbe, estimator_named, grouped_folds, sweep_layers
    from probes.models import load_model

    chosen = estimator_named(estimator)
    choice, aside = grouped_folds(data.labels, data.groups, n_folds=folds, seed=seed)[0]
    loaded = load_model(model, device=device)
    blocks = blocks_of(layers, loaded.n_layers)
    acts: Activations = capture(loaded, data.rows, layers=blocks, pool=pool, site=site)  # pyright: ignore[reportArgumentType]
    part, labels, units = _part(acts, choice), data.labels[choice], data.groups[choice]
    sweep = sweep_layers(part, labels, groups=units, estimator=chosen, n_folds=folds, seed=seed)
    final = CalibratedProbe(chosen, n_folds=folds, seed=seed) if calibrate else chosen
    made, tested = _final(final, part, labels, units, sweep, loaded.name), _part(acts, aside)
    made = replace(made, meta=data.names)
    rate, figures = _tested(made, tested, data.labels[aside], data.groups[aside], seed)
    _write(out, made, sweep, figures)
    _write_tokens(out, loaded, made, [data.rows[i] for i in aside])
    _show(sweep, made, rate, figures, len(choice))
    print(out)


def _check(files: list[Path], label: str | None, positive: str | None, estimator: str, pool: str, site: str) -> None:
    """What can be known to be wrong before anything heavy is imported."""
    from probes.errors import InputError

    if len(files) > 2:
        raise InputError(f"{len(files)} files: give the positive and the negative one, or one with --label")
    if len(files) == 1 and label is None:
        raise InputError(f"{files[0]}: one file; say by --label KEY which label a row has, or give a negative file too")
    if len(files) == 2 and (label or positive):
        raise InputError(f"--{'label' if label else 'positive'}: two files say it already; leave it out, or give one")
    known = {
        "--estimator": (estimator, tuple(ESTIMATORS.split(", "))),
        "--pool": (pool, ("response_mean", "prompt_mean", "last_prompt")),
        "--site": (site, ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")),
    }
    for option, (value, allowed) in known.items():
        if value not in allowed:
            raise InputError(f"{option} {value}: use one of {', '.join(allowed)}")


def _paired(files: list[Path], key: str | None) -> Labelled:
    import numpy as np

    from probes.conversations import load_conversations

    sides = [load_conversations(file) for file in files]
    groups = [
        _group(row, key, f"{file}: row {i}")
        for side, file in zip(sides, files, strict=True)
        for i, row in _numbered(side)
    ]
    labels = np.repeat([True, False], [len(side) for side in sides])
    names = {"positive": files[0].stem, "negative": files[1].stem}
    return Labelled([*sides[0], *sides[1]], labels, np.array(groups), names)


def _labelled(file: Path, label: str, positive: str | None, key: str | None) -> Labelled:
    import numpy as np

    from probes.conversations import load_conversations
    from probes.errors import InputError

    rows = load_conversations(file)
    found = [_value(row, label, f"{file}: row {i}") for i, row in _numbered(rows)]
    names = sorted(set(found))
    if len(names) != 2:
        raise InputError(
            f"{file}: {label!r} holds {len(names)} labels ({', '.join(names[:4])}); a probe tells two apart"
        )
    if positive is not None and positive not in names:
        raise InputError(f"--positive {positive}: {file} has {names[0]} and {names[1]}")
    upper = positive or names[1]
    groups = np.array([_group(row, key, f"{file}: row {i}") for i, row in _numbered(rows)])
    sides = {"positive": upper, "negative": next(name for name in names if name != upper)}
    return Labelled(rows, np.array(found) == upper, groups, sides)


def _numbered(rows: list[Conversation]) -> list[tuple[int, Conversation]]:
    return list(enumerate(rows, 1))


def _value(row: Conversation, key: str, place: str) -> str:
    from probes.errors import InputError

    if key not in row.meta:
        raise InputError(f"{place} has no {key!r}: it has {', '.join(map(str, row.meta)) or 'messages only'}")
    return str(row.meta[key])


def _group(row: Conversation, key: str | None, place: str) -> str:
    """The value of the key, or the prompt's text: the same question stays on one side, whoever answers it."""
    if key is not None:
        return _value(row, key, place)
    return "\n".join(message["content"] for message in row.prompt.messages if message["role"] != "system")


def _part(activations: Activations, index: np.ndarray) -> Activations:
    import torch

    return activations.select(torch.as_tensor(index))


def _final(
    estimator: LinearProbe, part: Activations, labels: np.ndarray, groups: np.ndarray, sweep: LayerSweep, model: str
) -> LayerProbe:
    """The probe of the best block, on all samples that chose it."""
    from probes.linear import fit_probe

    return fit_probe(part, labels, layer=sweep.best, estimator=estimator, groups=groups, model=model)


def _tested(
    made: LayerProbe, acts: Activations, labels: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[Rate, dict[str, Any]]:
    """AUROC and, where there are probabilities, their error, on the groups put aside."""
    from probes.linear import auroc, calibration

    X = acts.at(made.layer).double().numpy()
    rate = auroc(made.probe.decision_function(X), labels, groups=groups, seed=seed)
    figures: dict[str, Any] = {"auroc": rate.as_dict(), "accuracy": float((made.probe.predict(X) == labels).mean())}
    if hasattr(made.probe, "predict_proba"):
        sure = calibration(made.probe.predict_proba(X)[:, 1], labels, groups=groups, seed=seed)  # pyright: ignore[reportAttributeAccessIssue]
        figures |= {"calibration_error": sure.ece, "brier": sure.brier.as_dict()}
    return rate, figures


def _write(out: Path, made: LayerProbe, sweep: LayerSweep, figures: dict[str, Any]) -> None:
    from dataclasses import replace

    from probes.io import atomic_file
    from probes.linear import save_probe
    from probes.theme import CONFIG

    save_probe(replace(made, meta={**made.meta, "unseen_groups": figures}), out / "probe")
    with atomic_file(out / "layers.parquet") as file:
        sweep.table.to_parquet(file, index=False)
    with atomic_file(out / "layers.html") as file:
        sweep.figure().write_html(file, config=CONFIG, include_plotlyjs=True)


def _write_tokens(out: Path, model: Any, made: LayerProbe, rows: list[Conversation]) -> None:
    """The first conversations put aside, token by token."""
    from probes.io import atomic_file
    from probes.linear import read_tokens

    page = read_tokens(model, made, rows[:SHOWN]).html()
    head = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Token by token</title></head>'
    style = "font-family:system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem"
    with atomic_file(out / "tokens.html") as file:
        file.write_text(f"{head}<body style='{style}'>{page}</body></html>\n", encoding="utf-8")


def _show(sweep: LayerSweep, made: LayerProbe, rate: Rate, figures: dict[str, Any], n: int) -> None:
    """A row a block; under it the figure of the probe that was kept."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("block", "AUROC", "95 % interval", "shuffled", "random", "selectivity", box=None, pad_edge=False)
    for row in sweep.table.to_dict("records"):
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        rest = (f"{row['shuffled']:.2f}", f"{row['random']:.2f}", f"{row['selectivity']:+.2f}")
        table.add_row(
            f"{row['layer']}{' *' if row['layer'] == made.layer else ''}", f"{row['auroc']:.3f}", interval, *rest
        )
    console.print(table)
    sure = f"; calibration error {figures['calibration_error']:.1%}" if "calibration_error" in figures else ""
    console.print(
        f"block {made.layer}, chosen and fitted on {n} conversations; on groups put aside: AUROC {rate}, accuracy "
        f"{figures['accuracy']:.1%}{sure}; positive: {made.positive}",
        highlight=False,
        soft_wrap=True,
    )
