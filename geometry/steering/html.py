"""Small HTML tables that the nouns of steering show of themselves in a notebook."""

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geometry.steering.vectors import PersonaVector


def vector_html(vector: "PersonaVector") -> str:
    """One row per block: norm, share of the residual norm, split-half cosine."""
    head = "<tr><th>block</th><th>norm</th><th>of the residual norm</th><th>split-half cosine</th></tr>"
    rows = (
        f"<tr><td>{layer}</td><td>{vector.norm(layer):.3g}</td>"
        f"<td>{_share(vector, layer)}</td><td>{_number(vector.split_half.get(layer))}</td></tr>"
        for layer in vector.layers
    )
    title = escape(
        f"Persona vector of {vector.model}: {vector.method or 'unknown method'}, {vector.scope or 'no scope'}"
    )
    return f"<table><caption>{title}</caption><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _share(vector: "PersonaVector", layer: int) -> str:
    norm = vector.resid_norms.get(layer)
    return "" if not norm else f"{vector.norm(layer) / norm:.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
