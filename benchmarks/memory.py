"""The peak of memory of a fit, beside that of a hand-written loop.

    python -m benchmarks memory [--width 1024] [--updates 5]

Each measurement has a process of its own; see `benchmarks.peaks` for what is measured.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import helios
from benchmarks import document, machine
from benchmarks.peaks import WAYS, network
from benchmarks.rounds import ROOT, stamp

_MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("--width", type=int, default=1024, help="of the network for memory")
    parser.add_argument("--updates", type=int, default=5, help="of a measurement of memory")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every way, and return the figures."""
    width, updates, repeats = arguments.width, arguments.updates, 5
    if arguments.quick:
        width, updates, repeats = 256, 2, 1
    ways = [w for w in WAYS if w != "helios-compiled" or _compiles()]
    found: dict[str, Any] = {way: {"resident": []} for way in ways}
    for way in ways:
        found[way]["tensors"] = _peak(way, "tensors", width, updates)
        print(f"{stamp()}  memory, {way}: {found[way]['tensors'] / _MIB:.1f} MiB", flush=True)
    for number in range(repeats):
        for way in ways:
            found[way]["resident"].append(_peak(way, "rss", width, updates))
        print(f"{stamp()}  memory: round {number + 1} of {repeats}", flush=True)
    return {
        "machine": machine.describe(),
        "parameters": sum(p.nbytes for p in network(width).parameters()),
        "updates": updates,
        "ways": found,
    }


def refusals(results: dict[str, Any]) -> list[str]:
    """Return nothing: there is nothing to refuse."""
    return []


def publish(page: Path, results: dict[str, Any]) -> None:
    """Write the table of the figures into a page."""
    ways = results["ways"]
    rows = []
    for way, figures in ways.items():
        beside = ways[WAYS[way].beside]
        resident = statistics.median(figures["resident"])
        low, high = min(figures["resident"]), max(figures["resident"])
        rows.append(
            [
                WAYS[way].label,
                f"{figures['tensors'] / _MIB:.1f}",
                f"{figures['tensors'] / beside['tensors']:.3f}",
                f"{resident / _MIB:.0f} ({low / _MIB:.0f} to {high / _MIB:.0f})",
                f"{resident / statistics.median(beside['resident']):.2f}",
            ]
        )
    header = ["", "tensors, MiB", "ratio", "resident, MiB", "ratio"]
    size = results["parameters"] / _MIB
    title = f"Parameters: {size:.0f} MiB; AdamW, {results['updates']} updates."
    document.put(page, "memory", f"{title}\n\n{document.table(header, rows)}")


def _compiles() -> bool:
    return "compile" in inspect.signature(helios.Trainer).parameters


def _peak(way: str, kind: str, width: int, updates: int) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peaks", way, kind, str(width), str(updates)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"memory, {way}: status {done.returncode}: {done.stderr[-2000:]}")
    # The profiler writes lines of its own.
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])
