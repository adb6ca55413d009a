"""`persona-geometry train-sae`: several SAEs, the same command again, shares under torchrun, mistakes in one line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from persona_geometry.commands import main
from probes import Activations, ActivationStore
from saes import TrainingRecord, load_sae, train_sae

SMALL = ("--d-sae", 32, "--k", 4, "--steps", 20, "--lr", 0.003, "--batch", 64)
SETTINGS = {"d_sae": 32, "k": 4, "steps": 20, "lr": 0.003, "batch": 64}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """3,000 tokens of 100 conversations in blocks 0 and 2."""
    store = ActivationStore.create(tmp_path_factory.mktemp("command") / "store")
    store_kind = {"model": "made-up"}
    index = torch.arange(3000) // 30
    codes = torch.randn(2, 3000, 16, generator=torch.Generator().manual_seed(0))
    with store.writer() as writer:
        writer.begin(store_kind)
        writer.append(
            Activations(codes, (0, 2), "tokens", "hash", index, index + 5, torch.arange(3000) % 30, index > 9)
        )
    return store


@pytest.fixture
def call(monkeypatch, capsys, store):
    """Run the command in this process on the store; what comes back is its exit code and all that it said."""
    monkeypatch.setattr("persona_geometry.commands.terminal.settle", lambda: None)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["persona-geometry", "train-sae", str(store.path), *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out + said.err

    return run


def test_two_blocks_and_the_same_command_again(call, store, tmp_path):
    words = (
        "--layers",
        "0,2",
        "--out",
        tmp_path / "saes",
        *SMALL,
        "--skip-first",
        4,
        "--held-out",
        0.1,
        "--architecture",
        "batchtopk",
    )
    code, said = call(*words)
    assert code == 0 and "SAE training (loss " in said and "40 of 40" in said
    records = TrainingRecord.all_in(tmp_path / "saes")
    assert [record.asked["layer"] for record in records] == [0, 2]
    for record in records:
        line = next(line for line in said.splitlines() if line.endswith(str(record.folder)))
        assert f"batchtopk, block {record.asked['layer']}, seed 0: on {record.held_out['n']} rows held out" in line
        assert f"{record.held_out['fvu']['value']:.1%} [" in line
        assert record.asked["model_name"] == "made-up" and record.asked["recipe"]["skip_first"] == 4
        assert load_sae(record.folder).kind == "jumprelu"
    page = (tmp_path / "saes" / "training.html").read_text(encoding="utf-8")
    assert "block 2, seed 0" in page and "cdn" not in re.findall(r'<script[^>]*src="([^"]*)"', page)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.safetensors")}
    code, again = call(*words)
    assert code == 0 and "SAE training" not in again and again.splitlines()[0] in said
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.safetensors")} == before


def test_it_makes_what_the_function_makes(call, store, tmp_path):
    assert call("--layer", 2, "--seed", 5, "--out", tmp_path / "a", *SMALL, "--max-norm", 0)[0] == 0
    wanted = train_sae(store, layer=2, seed=5, out=tmp_path / "b", max_norm=None, **SETTINGS)
    found = load_sae(tmp_path / "a", layer=2)
    assert torch.equal(found.W_dec, wanted.W_dec) and found.model_name == "made-up"
    records = [json.loads(file.read_text()) for file in tmp_path.rglob("training.json")]
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--architecture", "relu"), "--architecture relu: use one of topk"),
        (("--where", "middle"), "--where middle: use all, response or prompt"),
        (("--layers", "one"), "--layers one: give block numbers"),
        (("--layers", "7"), "layer 7 was not captured: .* holds blocks \\(0, 2\\)"),
        (("--seeds", "a"), "--seeds a: give whole numbers"),
        (("--d-sae", "3"), "k=4 active latents of d_sae=3"),
        (("--batch", "5000"), "rows are fewer than one batch of 5000"),
        (("--architecture", "gated", "--sparsity", "0"), "sparsity=0.0: gated needs a positive coefficient"),
        (("--checkpoint-every", "0"), "checkpoint_every=0"),
    ],
)
def test_mistakes_take_one_line(call, tmp_path, words, told):
    code, said = call("--layers", "0", "--out", tmp_path / "saes", *SMALL, *words)
    assert code == 2 and re.fullmatch(f"persona-geometry: .*{told}.*", said.strip().splitlines()[-1])
    assert "Traceback" not in said and not (tmp_path / "saes").exists()


def work(path: Path, out: Path) -> None:
    """What torchrun starts: the command, in a process that is told its rank by the environment."""
    words = ["--layers", "0,2", "--seeds", "0,1", "--out", str(out), *map(str, SMALL)]
    sys.argv = ["persona-geometry", "train-sae", str(path), *words]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
    (out / f"rank-{os.environ['RANK']}").write_text(os.environ["WORLD_SIZE"])


def same(store: ActivationStore, out: Path, folder: Path) -> None:
    """The four SAEs that two processes made are those of single runs."""
    for layer, seed in ((0, 0), (0, 1), (2, 0), (2, 1)):
        wanted = train_sae(store, layer=layer, seed=seed, out=folder / f"{layer}-{seed}", **SETTINGS)
        found = load_sae(out / f"layer_{layer}_seed_{seed}")
        assert torch.equal(found.W_dec, wanted.W_dec) and torch.equal(found.W_enc, wanted.W_enc)
    assert "block 2, seed 1" in (out / "training.html").read_text(encoding="utf-8")


def test_the_launcher_of_torchrun_shares_the_blocks_out(store, tmp_path):
    """The elastic agent that `torchrun` runs, with workers forked from this warm process."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        monitor_interval=0.05,
        run_id="train-sae",
    )
    out = tmp_path / "out"
    elastic_launch(config, work)(store.path, out)
    assert {file.name: file.read_text() for file in out.glob("rank-*")} == {"rank-0": "2", "rank-1": "2"}
    same(store, out, tmp_path)


@pytest.mark.slow
def test_torchrun_itself(store, tmp_path):
    words = ["--layers", "0,2", "--seeds", "0,1", "--out", tmp_path / "out", *SMALL]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "persona_geometry"]
    command = [*launch, "train-sae", store.path, *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    same(store, tmp_path / "out", tmp_path)
