"""`persona-geometry attribute`: which latents make a model write what it should not, by gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def attribute(
    model: Annotated[str, typer.Argument(help="The model that both kinds of answers are read by: hub id or folder.")],
    undesired: Annotated[Path, typer.Argument(help="JSONL of conversations that end in an undesired answer.")],
    desired: Annotated[Path, typer.Argument(help="JSONL of the same prompts with desired answers.")],
    sae: Annotated[str, typer.Option(help="A folder, a hub id or a release of sae-lens.")],
    out: Annotated[Path, typer.Option(help="Folder for attribution.parquet, .csv and .html.")],
    adapter: Annotated[str | None, typer.Option(help="A PEFT adapter over MODEL.")] = None,
    layer: Annotated[int | None, typer.Option(help="Block of the SAE, where there are several.")] = None,
    sae_id: Annotated[str | None, typer.Option(help="Folder or id of the SAE, where there are several.")] = None,
    form: Annotated[str, typer.Option(help="latent: its activation; direction: all along its decoder row.")] = "latent",
    reference: Annotated[str, typer.Option(help="What counts as taken out: mean or zero.")] = "mean",
    check: Annotated[int, typer.Option(help="So many at either end are taken out in truth, to compare.")] = 4,
    batch_size: Annotated[int, typer.Option(help="Conversations of one pass.")] = 8,
    device: Annotated[str, typer.Option(help="Where model and SAE run: cpu, cuda, mps.")] = "cpu",
) -> None:
    """Attribute undesired answers, as against desired ones to the same prompts, to latents; then check the ends."""
    from persona_geometry.commands.diff import show_ends, write_html
    from persona_geometry.commands.terminal import settle
    from probes.errors import InputError

    known = {"--form": (form, ("latent", "direction")), "--reference": (reference, ("mean", "zero"))}
    for option, (value, allowed) in known.items():
        if value not in allowed:
            raise InputError(f"{option} {value}: use one of {', '.join(allowed)}")
    settle()
    from probes.conversations import load_conversations
    from probes.io import atomic_file
    from probes.models import load_model
    from probes.theme import CONFIG
    from saes.attribute import delta_ablation, delta_attribution
    from saes.load import load_sae

    sides = [load_conversations(file) for file in (undesired, desired)]
    loaded = load_model(model, adapter=adapter, device=device, merge=adapter is not None)
    dictionary = load_sae(sae, layer=layer, sae_id=sae_id, device=device)
    settings: Any = {"form": form, "reference": reference, "batch_size": batch_size}
    found = delta_attribution(loaded, dictionary, *sides, **settings)
    table, ends = found.table, [*found.top(check)["latent"], *found.bottom(check)["latent"]]
    if ends:
        true = delta_ablation(loaded, dictionary, sides[0], sides[1], ends, **settings)
        table = table.merge(_effects(ends, true), on="latent", how="left")
    else:
        table = table.assign(ablation=float("nan"))
    with atomic_file(out / "attribution.parquet") as file:
        table.to_parquet(file, index=False)
    with atomic_file(out / "attribution.csv") as file:
        table.to_csv(file, index=False)
    write_html(found.figure(), out / "attribution.html", CONFIG)
    about = f"nats per answer token, {found.n} prompts; positive: it makes the undesired answers likelier"
    show_ends(table, "rank", ["attribution", "low", "high", "q", "ablation"], about)
    print(out / "attribution.html")


def _effects(latents: list[int], values: Any) -> Any:
    import pandas as pd

    return pd.DataFrame({"latent": latents, "ablation": values.tolist()}).drop_duplicates("latent")
