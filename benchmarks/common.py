"""What every benchmark shares: its options, interleaved rounds, and how figures leave it."""

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


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


def interleaved(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender, one after the other in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def finish(figures: dict[str, Any], args: argparse.Namespace) -> None:
    """Print the figures with machine and date beside them, and write them where asked."""
    machine = platform.processor() or platform.machine()
    figures |= {"threads": args.threads, "rounds": rounds_of(args), "machine": machine}
    text = json.dumps(figures | {"date": time.strftime("%Y-%m-%d")}, indent=1, sort_keys=True)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")
