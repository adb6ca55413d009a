"""`persona-geometry diff`: which latents a fine-tune raised and lowered, beside controls; `diff-runs`: over several."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from probes.conversations import Conversation
    from probes.models import Model
    from probes.store import ActivationStore
    from saes.sae import SparseAutoencoder

SHOWN = 8  # latents printed at either end


def diff(
    base: Annotated[str, typer.Argument(help="The model before the fine-tune: hub id, folder or activation store.")],
    tuned: Annotated[str, typer.Argument(help="The fine-tune: a model, an adapter over BASE, or an activation store.")],
    sae: Annotated[str, typer.Option(help="A folder, a hub id or a release of sae-lens.")],
    out: Annotated[Path, typer.Option(help="Folder for latents.parquet, .csv, .json and .html; a run there goes on.")],
    rows: Annotated[Path | None, typer.Option(help="JSONL of conversations that every model reads.")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="YAML or JSONL of questions, of which every model reads its own answers.")
    ] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="NAME=MODEL (or adapter, or store), such as benign=PATH; repeat for more.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Block of the SAE, where there are several.")] = None,
    sae_id: Annotated[str | None, typer.Option(help="Folder or id of the SAE, where there are several.")] = None,
    where: Annotated[str, typer.Option(help="Tokens that count: all, prompt, response, last_prompt.")] = "response",
    weight: Annotated[str, typer.Option(help="What counts equally: token or conversation.")] = "token",
    seed: Annotated[int, typer.Option(help="Seed of the answers to --questions.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer to --questions.")] = 200,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of one forward pass, padding counted.")] = 2**13,
    device: Annotated[str, typer.Option(help="Where models and SAE run: cpu, cuda, mps.")] = "cpu",
) -> None:
    """Compare two models latent by latent, tested over conversations; what was read before is not read again."""
    from persona_geometry.commands.terminal import settle

    named = _named(base, tuned, control or [])
    _check(rows, questions, where, weight, named)
    settle()
    from probes.theme import CONFIG
    from saes.diff import diff_latents
    from saes.load import load_sae

    loaded = load_sae(sae, layer=layer, sae_id=sae_id, device=device)
    reading = _Reading(base, rows, questions, seed, max_new_tokens, batch_tokens, device, out)
    stores = {name: reading.store(name, path, loaded) for name, path in named.items()}
    first, second = stores.pop("base"), stores.pop("tuned")
    settings: Any = {"where": where, "weight": weight}
    found = diff_latents(first, second, loaded, controls=stores, **settings)
    found.save(out)
    write_html(found.figure(), out / "latents.html", CONFIG)
    ends = f"{found.conversations[0]:,} and {found.conversations[1]:,} conversations ({where}), {found.test} tests"
    show_ends(found.table, "rank", ["delta_mean", "effect", "q", "over_controls"], ends)
    fits = ", ".join(f"{name} {share:.1%}" for name, share in found.fvu.items())
    print(f"variance unexplained: {fits}")
    if found.warning:
        print(f"take care: {found.warning}")
    print(out / "latents.html")


def diff_runs(
    folders: Annotated[list[Path], typer.Argument(help="Folders that `diff` wrote, one a fine-tune of the same base.")],
    out: Annotated[Path, typer.Option(help="Folder for runs.parquet, runs.csv and runs.html.")],
) -> None:
    """Average model diffs over several fine-tunes: what all of them raise, what all of them lower."""
    from persona_geometry.commands.terminal import settle
    from probes.errors import InputError

    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise InputError(f"{', '.join(map(str, folders))}: two folders of one name; a run is called by its folder")
    settle()
    from probes.io import atomic_file
    from probes.theme import CONFIG
    from saes.diff import LatentTable, aggregate

    runs = aggregate({name: LatentTable.load(folder) for name, folder in zip(names, folders, strict=True)})
    whole = runs.table.join(runs.matrix.reset_index(drop=True).add_prefix("run "))
    with atomic_file(out / "runs.parquet") as file:
        whole.to_parquet(file, index=False)
    with atomic_file(out / "runs.csv") as file:
        whole.to_csv(file, index=False)
    write_html(runs.figure(), out / "runs.html", CONFIG)
    show_ends(runs.table, "rank", ["mean_delta", "low", "high", "n_rose", "n_fell"], f"{len(names)} runs")
    print(out / "runs.html")


@dataclass(frozen=True)
class _Reading:
    """What every model reads, and where it goes."""

    base: str
    rows: Path | None
    questions: Path | None
    seed: int
    max_new_tokens: int
    batch_tokens: int
    device: str
    out: Path

    def store(self, name: str, path: str, sae: SparseAutoencoder) -> ActivationStore:
        """The store that `path` is, or one that its model's activations are read into; whole ones are left alone."""
        from probes.store import ActivationStore

        if _is_store(path):
            return ActivationStore.open(path)
        folder, asked = self.out / "activations" / name, self.asked()
        meta = {"model": path, "layer": sae.layer, "site": sae.site, **self.key()}
        if _is_store(folder):
            _check_begun(ActivationStore.open(folder), meta)
            if len(ActivationStore.open(folder).conversations()) == len(asked):
                return ActivationStore.open(folder)
        self._read(name, path, sae, asked, meta)
        return ActivationStore.open(folder)

    def _read(
        self, name: str, path: str, sae: SparseAutoencoder, asked: list[Conversation], meta: dict[str, Any]
    ) -> None:
        from persona_geometry.commands.terminal import Bar
        from probes.capture import capture
        from probes.store import ActivationStore
        from probes.store.shards import DTYPES
        from saes.fits import check_fits

        model = self.model(path)
        check_fits(sae, model)
        folder = self.out / "activations" / name
        if not _is_store(folder):
            ActivationStore.create(
                folder, meta, dtype=DTYPES.get(str(model.dtype).removeprefix("torch."), DTYPES["float32"])
            )
        with Bar() as bar:
            said = asked if self.questions is None else self._answered(name, model, asked)
            place: Any = {"layers": [sae.layer], "site": sae.site, "pool": "tokens", "batch_tokens": self.batch_tokens}
            capture(model, said, **place, store=ActivationStore.open(folder), progress=bar)

    def model(self, path: str) -> Model:
        """One model, alone in memory."""
        from persona_geometry.stages.given import load_tuned
        from probes.errors import InputError
        from probes.models import load_model

        if path == self.base:
            return load_model(path, device=self.device)
        if _is_store(self.base) and (Path(path) / "adapter_config.json").is_file():
            raise InputError(f"{path}: an adapter over BASE, and {self.base} is a store; give BASE as a model")
        return load_tuned(self.base, path, device=self.device)

    def _answered(self, name: str, model: Model, asked: list[Conversation]) -> list[Conversation]:
        from probes.ask import sample
        from probes.conversations import load_conversations, save_conversations

        file = self.out / "answers" / f"{name}.jsonl"
        if file.is_file():
            return load_conversations(file)
        texts = sample(model, asked, seed=self.seed, max_new_tokens=self.max_new_tokens)
        said = [row.answered(text) for row, text in zip(asked, texts, strict=True)]
        save_conversations(said, file)
        return load_conversations(file)

    def asked(self) -> list[Conversation]:
        """The conversations that are read, or the questions that are answered first."""
        from probes.conversations import load_conversations
        from probes.questions import load_questions

        if self.rows is not None:
            return load_conversations(self.rows)
        assert self.questions is not None  # one of the two, or no model is read
        return [question.conversation for question in load_questions(self.questions)]

    def key(self) -> dict[str, Any]:
        """What a store that is continued must have been begun with."""
        import hashlib

        file = self.rows or self.questions
        assert file is not None
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        told = {"base": self.base, "file": str(file), "sha256": digest}
        answers = {"seed": self.seed, "max_new_tokens": self.max_new_tokens}
        return told if self.rows is not None else told | answers


def _is_store(path: str | Path) -> bool:
    from probes.store.writer import MANIFEST

    return (Path(path) / MANIFEST).is_file()


def _check_begun(store: ActivationStore, meta: dict[str, Any]) -> None:
    from probes.errors import InputError

    differing = [name for name in meta if name != "file" and store.meta.get(name) != meta[name]]
    if differing:
        name = differing[0]
        raise InputError(
            f"{store.path}: was begun with {name} {store.meta.get(name)}, not {meta[name]}; give that, or another --out"
        )


def _named(base: str, tuned: str, controls: list[str]) -> dict[str, str]:
    """Model or store by name."""
    from probes.errors import InputError

    named = {"base": base, "tuned": tuned}
    for control in controls:
        name, _, path = control.partition("=")
        if not (name.isidentifier() and path) or name in named:
            raise InputError(f"--control {control}: give NAME=PATH, each name once, such as benign=runs/benign")
        named[name] = path
    return named


def _check(rows: Path | None, questions: Path | None, where: str, weight: str, named: dict[str, str]) -> None:
    """What can be known to be wrong before anything heavy is imported."""
    from probes.errors import InputError

    known = {"--where": (where, ("all", "prompt", "response", "last_prompt"))}
    known |= {"--weight": (weight, ("token", "conversation"))}
    for option, (value, allowed) in known.items():
        if value not in allowed:
            raise InputError(f"{option} {value}: use one of {', '.join(allowed)}")
    if rows is not None and questions is not None:
        raise InputError(f"--questions {questions}: --rows {rows} says what is read already; give one of them")
    for file in filter(None, (rows, questions)):
        if not file.is_file():
            raise InputError(f"{file}: no such file")
    if rows is None and questions is None:
        models = [path for path in named.values() if not _is_store(path)]
        if models:
            raise InputError(f"{models[0]}: no activation store, so say what it reads: --rows or --questions")


def write_html(figure: Any, path: Path, config: dict[str, Any]) -> None:
    """Write a figure as a page of its own."""
    from probes.io import atomic_file

    with atomic_file(path) as file:
        figure.write_html(file, config=config, include_plotlyjs=True)


def show_ends(table: pd.DataFrame, rank: str, columns: list[str], about: str) -> None:
    """The latents at either end."""
    from rich.console import Console
    from rich.table import Table

    console, ranked = Console(), table.sort_values(by=rank)
    console.print(f"{len(table):,} latents; {about}", highlight=False)
    shown = Table("latent", *(column.replace("_", " ") for column in columns), box=None, pad_edge=False)
    last = ranked.tail(min(SHOWN, max(0, len(ranked) - SHOWN)))
    for row in [*ranked.head(SHOWN).to_dict("records"), *last.to_dict("records")]:
        shown.add_row(str(row["latent"]), *("" if row[c] != row[c] else f"{row[c]:.3g}" for c in columns))
    console.print(shown)
