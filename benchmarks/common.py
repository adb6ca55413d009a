"""What every benchmark shares: its options, interleaved rounds, and how figures leave it."""

import argparse
import importlib
import importlib.metadata
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

PACKAGES = ("numpy", "torch", "transformers", "repeng", "steering-vectors", "nnsight", "transformer-lens")
PACKAGES += ("sae-lens", "eai-sparsify", "dictionary-learning")


def options(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, three rounds")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, help="default: seven, or three with --quick")
    return parser


def rounds_of(args: argparse.Namespace) -> int:
    """How often each contender runs."""
    return args.rounds or (3 if args.quick else 7)


def import_repeng(module: str) -> Any:
    """A module of repeng, whose version 0.4 asks for what numpy 2 has dropped."""
    with patch.object(np, "float_", np.float64, create=True):
        return importlib.import_module(module)


def built(contenders: Mapping[str, Callable[..., Any]], job: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The contenders that can run here, made ready for `job`, and why the others cannot."""
    runs, absent = {}, {}
    for name, build in contenders.items():
        try:
            runs[name] = build(job)
        except ImportError as error:
            absent[name] = f"not installed ({error})"
    return runs, absent


def interleaved(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender, one after the other in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: Mapping[str, list[float]], pairs: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Median ratios of speed, round by round, with their intervals (a bootstrap over the rounds, 95 %), and median
    seconds; the ratio of a pair of which one is absent is null."""
    medians: dict[str, Any] = dict.fromkeys(pairs)
    intervals: dict[str, Any] = dict.fromkeys(pairs)
    for name, (mine, theirs) in pairs.items():
        if mine in seconds and theirs in seconds:
            speeds = np.divide(seconds[theirs], seconds[mine])
            drawn = np.random.default_rng(0).integers(len(speeds), size=(10_000, len(speeds)))
            intervals[name] = np.quantile(np.median(speeds[drawn], axis=1), (0.025, 0.975)).tolist()
            medians[name] = float(np.median(speeds))
    return {"ratios": medians, "intervals": intervals, "seconds": {k: float(np.median(v)) for k, v in seconds.items()}}


def own_peak_mb() -> float:
    """Peak memory of this process so far, libraries included; `ru_maxrss` would count its parent's at the start too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def child(script: str, *flags: str) -> float:
    """The number that a fresh process of a script prints, with the flags given."""
    done = subprocess.run([sys.executable, script, *flags], check=True, capture_output=True, text=True)
    return float(done.stdout)


def versions() -> dict[str, str]:
    """The versions of the packages that are compared."""
    known = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {name: known[name] for name in PACKAGES if name in known}


def finish(figures: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the figures with machine and date beside them, and write them where asked."""
    machine = platform.processor() or platform.machine()
    figures |= {"threads": args.threads, "rounds": rounds_of(args), "machine": machine}
    text = json.dumps(figures | {"date": time.strftime("%Y-%m-%d")}, indent=1, sort_keys=True)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")
