"""`persona-geometry sae`: what a published SAE is, whether it fits a model, and a copy in SAELens's layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from saes.sae import SparseAutoencoder


def sae(
    source: Annotated[str, typer.Argument(help="An SAE: a folder, a release of sae-lens, or a hub id.")],
    layer: Annotated[
        int | None, typer.Option(help="Its block, where there are several or its files do not say.")
    ] = None,
    sae_id: Annotated[str | None, typer.Option(help="Its id in the release, or its folder.")] = None,
    site: Annotated[
        str | None, typer.Option(help="Its site, where its files do not say: resid_post, mlp_out, ...")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="Its layout, where the files leave it open: saelens, gemma-scope, gemma-scope-2, llama-scope, "
            "sparsify, dictionary-learning."
        ),
    ] = None,
    fits: Annotated[str | None, typer.Option(help="A model that it should fit: a hub id or a folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder to write it to, as sae-lens reads it.")] = None,
) -> None:
    """Show what an SAE reads, of which model and kind; check that it fits a model; write it in SAELens's layout."""
    from persona_geometry.commands.terminal import settle

    settle()
    from rich.console import Console
    from rich.table import Table

    from saes.formats.places import as_site
    from saes.load import load_sae

    loaded = load_sae(source, layer=layer, sae_id=sae_id, site=as_site(site), format=format)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _rows(loaded).items():
        table.add_row(name, value)
    Console().print(table)
    if fits is not None:
        from probes.models import load_model
        from saes.fits import check_fits

        model = load_model(fits)
        check_fits(loaded, model)
        print(f"fits {model.name}: width {model.d_model}, block {loaded.layer} of 0 to {model.n_layers - 1}")
    if out is not None:
        from saes.formats.saelens import save_sae

        print(save_sae(loaded, out))


def _rows(loaded: SparseAutoencoder) -> dict[str, str]:
    """What there is to know of an SAE before it has read anything."""
    rows = {
        "SAE": loaded.name,
        "of model": loaded.model_name or "unknown",
        "reads": loaded.place + (f" ({loaded.hook})" if loaded.hook else ""),
        "kind": f"{loaded.kind}, k = {loaded.k}" if loaded.k else loaded.kind,
        "width": f"{loaded.d_model} to {loaded.d_sae:,} latents",
        "input": f"{loaded.normalisation} (folded into the weights)" if loaded.normalisation != "none" else "as it is",
        "decoder bias": "taken off the input first" if loaded.centred else "not taken off the input",
        "decoder rows": _spread(loaded.W_dec.norm(dim=-1)),
    }
    return rows | ({"thresholds": _spread(loaded.threshold)} if loaded.threshold is not None else {})


def _spread(values: Tensor) -> str:
    low, middle, high = (float(value) for value in (values.min(), values.median(), values.max()))
    return f"{middle:.4g} (median; {low:.4g} to {high:.4g})"
