"""From activations to SAEs in a folder each: begin, go on after a break, finish, test on rows held out."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from probes.errors import InputError
from probes.io import publish, read_json, write_json
from probes.progress import Progress, silent
from probes.store import ActivationStore
from saes.fidelity import quality
from saes.load import layer_of_hook, load_sae
from saes.rows import Source
from saes.sae import SparseAutoencoder
from saes.train.checkpoint import CHECKPOINT, read_about, read_checkpoint
from saes.train.loop import Pace, Run, Start, train_runs
from saes.train.native import make_trainer, save
from saes.train.recipe import SAERecipe
from saes.train.record import FORMAT, RECORD
from saes.train.source import RowSource, open_source
from saes.train.survey import Survey, survey

_FINISHED = "finished"
_FILES = ("cfg.json", "sae_weights.safetensors", RECORD, CHECKPOINT)


def train_sae(
    activations: Source,
    *,
    layer: int,
    seed: int,
    out: str | Path,
    recipe: SAERecipe | None = None,
    model_name: str | None = None,
    hook_name: str | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
    checkpoint_every: int = 500,
    fresh: bool = False,
    **settings: Any,
) -> SparseAutoencoder:
    """Train an SAE on single tokens' activations of block `layer` with sae-lens's trainer, and save it to `out`.

    The recipe is `SAERecipe.for_(d_model, rows)` unless one is given; `settings` are fields of it that are changed
    (`d_sae=`, `k=`, `steps=`, `architecture=`, ...). Batches are drawn from all rows without replacement, pass after
    pass. While it trains, `out` holds `checkpoint.safetensors`, written anew every `checkpoint_every` steps; after a
    break the same call goes on from there and ends with the same bytes as if nothing had happened. In the end `out`
    holds sae-lens's format (`cfg.json`, `sae_weights.safetensors`), the scale of the rows and the decoder's norms
    folded in, so that latents have the residual stream's units; and `training.json`: recipe, figures by step, where the
    rows came from, versions, and `held_out`, the quality on conversations that were not trained on. A training that
    is done is loaded, not repeated; `fresh` starts anew and replaces what is in `out`.

    Same rows, recipe, seed and thread count give the same bytes on a CPU; the global random state is left as it was.
    InputError for sizes that do not fit, rows that are means, not finite, or fewer than a batch, and for a folder that
    was begun with something else.
    """
    found = train_saes(
        activations,
        layers=(layer,),
        seeds=(seed,),
        out=out,
        recipe=recipe,
        model_name=model_name,
        hook_name=hook_name,
        device=device,
        progress=progress,
        checkpoint_every=checkpoint_every,
        fresh=fresh,
        folders="",
        **settings,
    )
    return found[layer, seed]


def train_saes(
    activations: Source,
    *,
    layers: Sequence[int],
    seeds: Sequence[int],
    out: str | Path,
    recipe: SAERecipe | None = None,
    model_name: str | None = None,
    hook_name: str | None = None,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
    checkpoint_every: int = 500,
    fresh: bool = False,
    share: tuple[int, int] = (0, 1),
    folders: str = "layer_{layer}_seed_{seed}",
    **settings: Any,
) -> dict[tuple[int, int], SparseAutoencoder]:
    """Train an SAE for every block and seed in one pass over the rows: (layer, seed) -> SAE, each in a folder of `out`.

    Each is what `train_sae` makes alone, bit for bit; a seed draws the weights, while the order of the rows is the
    recipe's. `share` is (rank, number of processes): this process trains its part, whole blocks where there are enough
    of them, and returns that. Processes share nothing but the rows.
    """
    wanted = share_of([(layer, seed) for layer in layers for seed in seeds], share)
    if checkpoint_every < 1:
        raise InputError(f"checkpoint_every={checkpoint_every}: give 1 or more steps")
    if not wanted:
        return {}
    recipe = _recipe(activations, recipe, settings)
    source = open_source(activations, tuple(dict.fromkeys(layer for layer, _ in wanted)), recipe)
    asks = [
        Ask(
            layer,
            seed,
            Path(out) / folders.format(layer=layer, seed=seed),
            _names(source, layer, model_name, hook_name),
        )
        for layer, seed in wanted
    ]
    left = [ask for ask in asks if not _is_done(ask, _asked(ask, source, recipe), fresh=fresh)]
    if left:
        _train(left, source, recipe, device=device, checkpoint_every=checkpoint_every, progress=progress)
    return {(ask.layer, ask.seed): load_sae(ask.folder, layer=ask.layer) for ask in asks}


@dataclass(frozen=True)
class Ask:
    """An SAE that is wanted: block, seed, the folder it goes to, and what it says of model and hook point."""

    layer: int
    seed: int
    folder: Path
    names: dict[str, str]


def share_of(wanted: Sequence[tuple[int, int]], share: tuple[int, int]) -> list[tuple[int, int]]:
    """The (layer, seed) pairs of process `share[0]` of `share[1]`: whole blocks where there are enough of them."""
    rank, processes = share
    if not 0 <= rank < processes:
        raise InputError(f"share={share}: give a rank from 0 to {processes - 1} and the number of processes")
    layers = list(dict.fromkeys(layer for layer, _ in wanted))
    if len(layers) < processes:
        return list(wanted[rank::processes])
    return [each for each in wanted if each[0] in layers[rank::processes]]


def _train(
    asks: Sequence[Ask],
    source: RowSource,
    recipe: SAERecipe,
    *,
    device: str | torch.device,
    checkpoint_every: int,
    progress: Progress,
) -> None:
    surveys = survey(source, recipe)
    runs = []
    for ask in asks:
        trainer = make_trainer(recipe, surveys[ask.layer], seed=ask.seed, names=ask.names, device=device)
        run = Run(ask.layer, ask.seed, ask.folder, _asked(ask, source, recipe), trainer)
        if begun := read_about(ask.folder):
            run.log += begun["log"]
            run.start = Start(**begun["start"], rest=read_checkpoint(ask.folder, trainer))
        _tidy(ask.folder)
        runs.append(run)
    train_runs(runs, source, surveys, Pace.of(recipe, checkpoint_every), progress=progress)
    for run in runs:
        _finish(run, source, surveys[run.layer])


def _tidy(folder: Path) -> None:
    """Make the folder, and remove what a killed training had half written in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in _leftovers(folder):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _leftovers(folder: Path) -> set[Path]:
    """Our own temporary files, and those that safetensors makes beside a file that it writes (`.tmp` and letters)."""
    ours = {left for name in (*_FILES, _FINISHED) for left in folder.glob(f".{name}.*")}
    return ours | set(folder.glob(".tmp??????"))


def _finish(run: Run, source: RowSource, found: Survey) -> None:
    """Publish the SAE file by file, its record last: until that is there, the checkpoint still counts."""
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=f".{_FINISHED}.") as temporary:
        save(run.trainer, Path(temporary))
        for name in _FILES[:2]:
            publish(Path(temporary) / name, run.folder / name)
    record = {"format": FORMAT, "asked": run.asked, "source": source.about, "rows": found.as_dict(), "steps": run.log}
    told, tests = None, found.tests
    if len(tests) > 1:
        sae = load_sae(run.folder, layer=run.layer)
        told = quality(sae, tests.values[0] if source.plain else tests).as_dict()
        told = {name: value for name, value in told.items() if name != "sae"}
    versions = {name: version(name) for name in ("torch", "sae-lens", "persona-geometry")}
    write_json(run.folder / RECORD, {**record, "held_out": told, "versions": versions})
    (run.folder / CHECKPOINT).unlink(missing_ok=True)


def _recipe(activations: Source, recipe: SAERecipe | None, settings: dict[str, Any]) -> SAERecipe:
    if recipe is not None:
        return recipe.with_(**settings)
    if isinstance(activations, ActivationStore):
        return SAERecipe.for_(activations.d_model, len(activations), **settings)
    values = activations if isinstance(activations, torch.Tensor) else activations.values
    return SAERecipe.for_(values.shape[-1], values.shape[-2] if values.ndim > 1 else 0, **settings)


def _names(source: RowSource, layer: int, model_name: str | None, hook_name: str | None) -> dict[str, str]:
    site = source.about.get("site", "resid_post")
    hook = hook_name or f"blocks.{layer}.hook_{site}"
    if hook != f"blocks.{layer}.hook_{site}" and (site != "resid_post" or layer_of_hook(hook) != layer):
        meant = "the output" if site == "resid_post" else site
        raise InputError(
            f"hook_name {hook!r} does not mean {meant} of block {layer}; leave it out or correct one of them"
        )
    return {"model_name": model_name or source.about.get("model") or "", "hook_name": hook}


def _asked(ask: Ask, source: RowSource, recipe: SAERecipe) -> dict[str, Any]:
    """What decides the result: an SAE that was begun with something else is not continued."""
    return {"recipe": recipe.as_dict(), "layer": ask.layer, "seed": ask.seed, "rows": source.digest, **ask.names}


def _is_done(ask: Ask, asked: dict[str, Any], *, fresh: bool) -> bool:
    """Whether the folder holds this very SAE, finished. InputError where it holds anything else, unless `fresh`."""
    folder = ask.folder
    if not folder.exists():
        return False
    others = not folder.is_dir() or set(folder.iterdir()) - _leftovers(folder)
    if others and not any((folder / name).exists() for name in _FILES):
        raise InputError(f"{folder} exists and holds no SAE: choose another folder")
    if fresh:
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
        return False
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    begun = record or read_about(folder)
    if begun is None and (folder / "cfg.json").is_file():
        raise InputError(f"{folder} holds an SAE that was not trained here: choose another folder, or say fresh=True")
    if begun is not None and begun["asked"] != asked:
        raise InputError(
            f"{folder} was begun with {_difference(begun['asked'], asked)}: give that, choose another folder, or say "
            "fresh=True to train anew"
        )
    return record is not None


def _difference(begun: dict[str, Any], asked: dict[str, Any]) -> str:
    """The first setting in which two trainings differ, as it was and as it is asked for now."""
    flat = [{**one, **one["recipe"]} for one in (begun, asked)]
    names = [name for name in flat[1] if name != "recipe" and flat[0].get(name) != flat[1][name]]
    if not names:
        return "other settings"
    if names[0] == "rows":
        return "other rows (their digest differs)"
    return f"{names[0]}={flat[0].get(names[0])!r}, not {flat[1][names[0]]!r}"
