"""`persona-geometry nearness`: how near the latents that training files speak to lie to harmful ones, with a null."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from geometry.features import FeatureSet, GeometryPanel
    from geometry.features.draws import Null
    from probes.activations import Activations
    from probes.models import Model
    from saes.sae import SparseAutoencoder

STATISTICS = ("mean_diff", "freq_diff", "auroc", "corr")
NULLS = ("label_permutation", "random_features", "frequency_matched")


def nearness(
    model: Annotated[str, typer.Argument(help="The model before any fine-tune: a hub id or a folder.")],
    sae: Annotated[str, typer.Option(help="An SAE over MODEL: a folder, a release or a repository.")],
    data: Annotated[list[str], typer.Option(help="NAME=FILE of a training set to ask about; repeat for more.")],
    benign: Annotated[Path, typer.Option(help="JSONL of a training set that is known to do no harm.")],
    reference: Annotated[Path, typer.Option(help="JSONL of ordinary rows, against which --data and --benign stand.")],
    harmful: Annotated[Path, typer.Option(help="JSONL of harmful answers.")],
    harmless: Annotated[Path, typer.Option(help="JSONL of harmless answers to the like.")],
    out: Annotated[Path, typer.Option(help="Folder for sets, nearness.csv, overlap.csv, neighbours.csv and a page.")],
    layer: Annotated[int | None, typer.Option(help="Block of the SAE, where there are several.")] = None,
    sae_id: Annotated[str | None, typer.Option(help="Which SAE of a release.")] = None,
    k: Annotated[int, typer.Option(help="Latents of a set.")] = 100,
    statistic: Annotated[str, typer.Option(help=f"What chooses them: {', '.join(STATISTICS)}.")] = "mean_diff",
    null: Annotated[str, typer.Option(help=f"What is drawn: {', '.join(NULLS)}.")] = "label_permutation",
    permutations: Annotated[int, typer.Option(help="Draws under the null.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    device: Annotated[str, typer.Option(help="Where model and SAE run: cpu, cuda, mps.")] = "cpu",
) -> None:
    """Compare training sets by how near their latents lie to harmful ones; sets in --out are not read again."""
    from persona_geometry.commands.terminal import settle

    files = _check(data, benign, statistic, null)
    settle()
    import torch

    from geometry.features import compare_many
    from probes.models import load_model
    from saes.load import load_sae

    loaded, read = load_sae(sae, layer=layer, sae_id=sae_id, device=device), load_model(model, device=device)
    finder = _Finder(read, loaded, out, k, statistic)
    against = {name: (file, reference) for name, file in files.items()} | {"harmful": (harmful, harmless)}
    sets = {name: finder.found(name, *pair) for name, pair in against.items()}
    drawn = finder.frequencies(reference) if null == "frequency_matched" else null
    asked = {name: sets[name] for name in files if name != "benign"}
    given = {"generator": torch.Generator().manual_seed(seed), "n_permutations": permutations, "null": drawn}
    _write(out, loaded, sets, compare_many(loaded, asked, sets["benign"], sets["harmful"], **given))


def _check(data: list[str], benign: Path, statistic: str, null: str) -> dict[str, Path]:
    """The training sets by name, `benign` among them. Said before anything heavy is imported."""
    from probes.errors import InputError

    files: dict[str, Path] = {}
    for text in data:
        name, equals, path = text.partition("=")
        if not equals or not name.replace("-", "").replace("_", "").isalnum() or name in ("benign", "harmful", *files):
            raise InputError(f"--data {text}: give NAME=FILE, with a name of letters, digits, - and _ of its own")
        files[name] = Path(path)
    for option, value, known in (("statistic", statistic, STATISTICS), ("null", null, NULLS)):
        if value not in known:
            raise InputError(f"--{option} {value}: use one of {', '.join(known)}")
    return files | {"benign": benign}


class _Finder:
    """Reads files once and finds sets, unless the folder holds them from the same files and settings."""

    def __init__(self, model: Model, sae: SparseAutoencoder, out: Path, k: int, statistic: str) -> None:
        self.model, self.sae, self.out, self.k, self.statistic = model, sae, out, k, statistic
        self.read: dict[Path, Activations] = {}

    def found(self, name: str, positive: Path, negative: Path) -> FeatureSet:
        from geometry.features import FeatureSet, identify_features
        from geometry.features.sets import sae_digest

        path = self.out / f"{name}.json"
        words = f"{_stamp(positive)} against {_stamp(negative)}, top {self.k} on {self.model.name}"
        if path.exists():
            old = FeatureSet.load(path)
            if (old.made.get("data"), old.statistic, old.sae_digest) == (words, self.statistic, sae_digest(self.sae)):
                return old
        rows, others = self._acts(positive), self._acts(negative)
        made = identify_features(rows, others, self.sae, k=self.k, statistic=self.statistic, data=words)
        self.out.mkdir(parents=True, exist_ok=True)
        made.save(path)
        return made

    def frequencies(self, file: Path) -> Null:
        from geometry.features import FrequencyMatched
        from saes.latents import latent_stats

        return FrequencyMatched(latent_stats(self.sae, self._acts(file), where="response").freq)

    def _acts(self, file: Path) -> Activations:
        from probes import load_conversations
        from probes.capture import capture

        if file not in self.read:
            rows = load_conversations(file)
            self.read[file] = capture(self.model, rows, layers=(self.sae.layer,), pool="tokens")
        return self.read[file]


def _stamp(file: Path) -> str:
    """A file by its name and the first digits of its contents' hash."""
    import hashlib

    from probes.errors import InputError

    if not file.is_file():
        raise InputError(f"{file}: there is no such file of rows; give a JSONL of conversations")
    return f"{file.name} ({hashlib.sha256(file.read_bytes()).hexdigest()[:12]})"


def _write(out: Path, sae: SparseAutoencoder, sets: dict[str, FeatureSet], found: GeometryPanel) -> None:
    from rich.console import Console
    from rich.table import Table

    from geometry.features import neighbour_table, overlap_table
    from persona_geometry.commands.diff import write_html
    from probes.io import atomic_file
    from probes.theme import CONFIG

    tables = {"nearness": found.table, "overlap": overlap_table(sets)}
    for name, table in (tables | {"neighbours": neighbour_table(sae.W_dec, sets)}).items():
        with atomic_file(out / f"{name}.csv") as file:
            table.to_csv(file, index=False)
    write_html(found.figure(), out / "nearness.html", CONFIG)
    console, shown = Console(), Table("data", "effect", "95 %", "p", "Holm", "q", box=None, pad_edge=False)
    for row in found.table.to_dict("records"):
        interval = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        shown.add_row(
            row["name"], f"{row['effect']:+.3f}", interval, *(f"{row[name]:.2g}" for name in ("p", "p_holm", "q"))
        )
    console.print(shown)
    print(f"effect: mean cosine to the harmful latents, less that of benign data; null: {found.null}")
    print(found.multiplicity)
    print(out / "nearness.html")
