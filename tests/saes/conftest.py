"""Reference formulas in NumPy, planted data with a known dictionary, and small SAEs of every kind."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from saes import SparseAutoencoder, train_sae


def _encode(sae: SparseAutoencoder, x: np.ndarray) -> np.ndarray:
    """Latents row by row, as the definitions say it: no vectorised selection, no shared code."""
    w, b, bias = (getattr(sae, name).double().numpy() for name in ("W_enc", "b_enc", "b_dec"))
    out = np.zeros((len(x), w.shape[1]))
    for row, vector in enumerate(x):
        pre = [(vector - (bias if sae.centred else 0)) @ w[:, j] + b[j] for j in range(w.shape[1])]
        if sae.kind == "topk":
            kept = sorted(range(len(pre)), key=lambda j: -pre[j])[: sae.k]
        elif sae.kind in ("jumprelu", "gated"):
            kept = [j for j in range(len(pre)) if pre[j] > float(sae.threshold[j])]
        else:
            kept = list(range(len(pre)))
        for j in kept:
            out[row, j] = max(pre[j], 0.0)
    return out


def _decode(sae: SparseAutoencoder, latents: np.ndarray) -> np.ndarray:
    return latents @ sae.W_dec.double().numpy() + sae.b_dec.double().numpy()


def _fvu(sae: SparseAutoencoder, x: np.ndarray) -> float:
    return np.mean((x - _decode(sae, _encode(sae, x))) ** 2) / np.mean(np.var(x, axis=0))


@pytest.fixture
def reference() -> SimpleNamespace:
    """The definitions, written down a second time."""
    return SimpleNamespace(encode=_encode, decode=_decode, fvu=_fvu)


def make_sae(kind: str, *, d_model: int = 32, d_sae: int = 64, layer: int = 2, seed: int = 0) -> SparseAutoencoder:
    """Random weights, unit decoder rows, a bias that matters."""
    g = torch.Generator().manual_seed(seed)
    w_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_model, generator=g), dim=-1)
    w_enc = w_dec.T + 0.1 * torch.randn(d_model, d_sae, generator=g)
    b_enc, b_dec = 0.1 * torch.randn(d_sae, generator=g), torch.randn(d_model, generator=g)
    return SparseAutoencoder(
        w_enc.contiguous(),
        w_dec,
        b_enc,
        b_dec,
        kind=kind,  # type: ignore[arg-type]
        layer=layer,
        k=5 if kind == "topk" else None,
        threshold=torch.rand(d_sae, generator=g) if kind in ("jumprelu", "gated") else None,
        name=f"random {kind}",
        hook=f"blocks.{layer}.hook_resid_post",
    )


@pytest.fixture(params=["topk", "jumprelu", "standard", "gated"])
def sae(request: pytest.FixtureRequest) -> SparseAutoencoder:
    """A small random SAE of each kind."""
    return make_sae(request.param)


@pytest.fixture
def topk() -> SparseAutoencoder:
    """A small random top-k SAE over block 2, of the tiny model's width."""
    return make_sae("topk")


@pytest.fixture
def rows() -> torch.Tensor:
    """300 random activations of width 32."""
    return 2 * torch.randn(300, 32, generator=torch.Generator().manual_seed(3)) + 0.5


@pytest.fixture(scope="session")
def planted() -> SimpleNamespace:
    """Activations that are sparse sums of 24 known directions of width 16, on top of a mean and at an odd scale."""
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(24, 16, generator=g), dim=-1)
    codes = (torch.rand(8000, 24, generator=g) < 0.06) * (1 + torch.rand(8000, 24, generator=g))
    mean = torch.randn(16, generator=g)
    return SimpleNamespace(x=37 * (codes @ directions + mean), directions=directions)


@pytest.fixture(scope="session")
def trained(planted: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """An SAE trained on the planted data, its folder, and how it was trained."""
    recipe = {
        "layer": 1,
        "d_sae": 48,
        "k": 3,
        "steps": 400,
        "lr": 5e-3,
        "batch": 256,
        "seed": 0,
        "model_name": "planted",
    }
    folder = tmp_path_factory.mktemp("sae") / "planted"
    return SimpleNamespace(sae=train_sae(planted.x, out=folder, **recipe), folder=folder, recipe=recipe)
