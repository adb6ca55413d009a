"""`persona-geometry filter`: score the rows of a training file, drop the worst, keep the rest as they stand."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from geometry.features import FeatureSet
    from geometry.features.filtering import Filtered, RowScorer
    from probes.models import Model

FORMS = ("max_tox", "mean_tox", "centroid")
BY_SAE, BY_VECTOR = (*FORMS, "spill"), ("projection", "projection_difference", "push")
METHODS = (*BY_SAE, *BY_VECTOR, "loss", "loss_difference", "judge", "random")
Text = str | None


def filter_(
    data: Annotated[Path, typer.Argument(help="JSONL of training rows, a {'messages': [...]} that ends in an answer.")],
    model: Annotated[str, typer.Option(help="The model that is to be trained: a hub id or a folder.")],
    out: Annotated[Path, typer.Option(help="Folder for kept.jsonl, dropped.jsonl, scores.parquet, report.html.")],
    method: Annotated[str, typer.Option(help=f"Scores, the first decides: {', '.join(METHODS)}.")] = "max_tox",
    drop: Annotated[
        str, typer.Option(help="A share such as 0.5, `knee`, or the lowest score to drop as `above:0.3`.")
    ] = "0.5",
    match_length: Annotated[
        bool, typer.Option("--match-length", help="Drop that share among answers of each length.")
    ] = False,
    sae: Annotated[Text, typer.Option(help="An SAE over MODEL: a folder, a release or a repository.")] = None,
    sae_id: Annotated[Text, typer.Option(help="Which SAE of a release.")] = None,
    layer: Annotated[int | None, typer.Option(help="Block of the SAE or of the vector, 0-based.")] = None,
    harmful: Annotated[
        Text, typer.Option(help="Harmful latents: a saved feature set, or their numbers as `3,17,40`.")
    ] = None,
    harmful_rows: Annotated[
        Path | None, typer.Option(help="JSONL of harmful answers, to find such latents; with --harmless-rows.")
    ] = None,
    harmless_rows: Annotated[Path | None, typer.Option(help="JSONL of harmless answers.")] = None,
    vector: Annotated[Path | None, typer.Option(help="A persona vector.")] = None,
    bad_model: Annotated[Text, typer.Option(help="For loss_difference: a model or adapter known to be bad.")] = None,
    judge: Annotated[Text, typer.Option(help="For judge: an OpenAI-compatible endpoint, or `organism`.")] = None,
    judge_model: Annotated[str, typer.Option(help="The model that the endpoint should use.")] = "default",
    truth: Annotated[Text, typer.Option(help="Key of each row that says true where it is bad, for an AUROC.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random score.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Rows of one forward pass.")] = 16,
    device: Annotated[str, typer.Option(help="Where the models run: cpu, cuda, mps.")] = "cpu",
) -> None:
    """Drop the training rows that lie near harmful features; after a break the same command goes on."""
    from persona_geometry.commands.terminal import Bar, settle

    names, settings = _methods(method), _rule(drop, match_length)
    given = {
        "sae": sae, "sae_id": sae_id, "layer": layer, "harmful": harmful, "harmful_rows": harmful_rows,
        "harmless_rows": harmless_rows, "vector": vector, "bad_model": bad_model, "judge": judge,
        "judge_model": judge_model, "seed": seed, "device": device, "model": model, "out": out,
    }  # fmt: skip
    _check(names, given)
    settle()
    from geometry.features.filtering import drop_rows, filter_file
    from geometry.features.filtering.files import truth_of
    from probes.models import load_model

    known = None if truth is None else truth_of(data, truth)
    loaded = load_model(model, device=device)
    methods = [_scorer(name, loaded, given) for name in names]
    rule = partial(drop_rows, **settings)
    with Bar() as bar:
        made = filter_file(data, loaded, methods=methods, out=out, rule=rule, batch_size=batch_size, progress=bar)
    rates = {} if known is None else {one.name: one.auroc(known) for one in made.scores}
    _finish(made, data, {"file": data, "model": loaded.name, "scores": method, "rule": made.split.rule}, rates)


def _methods(text: str) -> list[str]:
    from probes.errors import InputError

    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise InputError(f"--method {unknown[0]}: use some of {', '.join(METHODS)}")
    return names


def _rule(text: str, match_length: bool) -> dict[str, Any]:
    """What `--drop` says, as the settings of `drop_rows`, checked before anything is scored."""
    from probes.errors import InputError

    if match_length and (text == "knee" or text.startswith("above:")):
        raise InputError(f"--drop {text} with --match-length: ranks within lengths have no such cut; give a share")
    if text == "knee":
        return {"at_knee": True}
    try:
        value = float(text.removeprefix("above:"))
    except ValueError:
        value = math.nan
    if text.startswith("above:") and math.isfinite(value):
        return {"above": value}
    if not 0 <= value < 1:
        raise InputError(f"--drop {text}: give a share from 0 to 1 such as 0.5, `knee`, or `above:0.3`")
    return {"fraction": value, "match_length": match_length}


def _check(names: list[str], given: dict[str, Any]) -> None:
    """Every score has what it needs. Said before anything heavy is imported."""
    from probes.errors import InputError

    needs = {name: ("sae",) for name in BY_SAE} | {name: ("vector",) for name in BY_VECTOR}
    needs |= {"judge": ("judge",), "loss_difference": ("bad_model",)}
    for name in names:
        for what in needs.get(name, ()):
            if given[what] is None:
                raise InputError(f"--method {name}: needs --{what.replace('_', '-')}")
        rows = given["harmful_rows"] is not None and given["harmless_rows"] is not None
        if name in BY_SAE and (given["harmful"] is not None) == rows:
            raise InputError(
                f"--method {name}: say which latents by --harmful, or by --harmful-rows and --harmless-rows"
            )


def _scorer(name: str, model: Model, given: dict[str, Any]) -> RowScorer:
    from geometry.features import filtering

    if name in BY_SAE:
        from saes.load import load_sae

        sae = load_sae(given["sae"], layer=given["layer"], sae_id=given["sae_id"]).to(model.device)
        latents = _harmful(model, sae, given)
        return filtering.Spill(sae, latents) if name == "spill" else filtering.Nearness(sae, latents, name)  # pyright: ignore[reportArgumentType]
    if name in BY_VECTOR:
        vector, layer = _vector(given["vector"], given["layer"])
        kinds = {"projection": filtering.Projection, "push": filtering.Push}
        return kinds.get(name, filtering.ProjectionDifference)(vector, layer)
    if name == "judge":
        from persona_geometry.stages.given import judge_of

        judge = judge_of(given["judge"], given["out"], model=given["judge_model"])
        assert judge is not None
        return filtering.Judged(judge)
    if name == "loss_difference":
        from persona_geometry.stages.given import load_tuned

        bad = load_tuned(given["model"], given["bad_model"], device=given["device"], beside=model)
        return filtering.LossDifference(bad)
    return filtering.Loss() if name == "loss" else filtering.RandomScore(given["seed"])


def _vector(path: Path, layer: int | None) -> tuple[Any, int]:
    """The vector and the block to read it at: the one named, or its only one."""
    from geometry.steering.export import load_vector
    from probes.errors import InputError

    vector = load_vector(path)
    if layer is None and len(vector.layers) > 1:
        raise InputError(f"{path}: has directions for blocks {', '.join(map(str, vector.layers))}; choose by --layer")
    chosen = next(iter(vector.layers)) if layer is None else layer
    vector.at(chosen)
    return vector, chosen


def _harmful(model: Model, sae: Any, given: dict[str, Any]) -> FeatureSet:
    """The harmful latents: named, saved, or found in rows as those that tell harmful from harmless answers."""
    from geometry.features import FeatureSet, identify_features
    from probes.capture import capture
    from probes.errors import InputError

    text = given["harmful"]
    if text is not None:
        if Path(text).is_file():
            return FeatureSet.load(text)
        try:
            return FeatureSet.of(sae, map(int, text.split(",")))
        except InputError:
            raise
        except ValueError:
            raise InputError(f"--harmful {text}: no such file; give a saved feature set, or numbers as 3,17") from None
    from persona_geometry.stages.nearness import set_size
    from probes.conversations import load_conversations

    sides = []
    for file in (given["harmful_rows"], given["harmless_rows"]):
        rows = load_conversations(file)
        sides.append(capture(model, rows, layers=(sae.layer,), pool="tokens", site=sae.site))
    found = identify_features(sides[0], sides[1], sae, k=set_size(sae.d_sae))
    found.save(given["out"] / "harmful.json")
    return found


def _finish(made: Filtered, data: Path, told: dict[str, Any], rates: dict[str, Any]) -> None:
    """Write the page and the AUROC, and say in lines what came of it."""
    from persona_geometry.report.filtered import write_filtered
    from probes.io import write_json

    found = made.summary
    if rates:
        found["auroc"] = {name: rate.as_dict() for name, rate in rates.items()}
        write_json(made.folder / "filter.json", found)
    page = write_filtered(made, data, told=told, auroc=rates)
    print(f"{found['dropped']} of {found['rows']} rows dropped by {made.scores[0].name}: {found['rule']}")
    for one in made.scores:
        length = found["scores"][one.name]["correlation_with_length"]
        beside = "" if length is None or length["value"] is None else f", with length {length['value']:+.2f}"
        known = f", AUROC {rates[one.name]}" if one.name in rates else ""
        print(f"{one.name} ({one.unit}; high: {one.high}){beside}{known}")
    print(page)
