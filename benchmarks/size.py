"""What helios adds to an update, as runs, epochs and models grow; how long resuming takes.

python -m benchmarks size [--rounds 20]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import document, lengths, machine, plots
from benchmarks.agreement import disagreement
from benchmarks.contestants import BASELINE, CONTESTANTS
from benchmarks.paired import Spread, paired
from benchmarks.rounds import stamp, take_turns
from benchmarks.turns import Cadence
from benchmarks.workloads import find

_COUNTS = (4, 16, 64, 256)
_PLACES = {
    "0": "its start",
    "0.01": "a hundredth of the epoch",
    "0.5": "its half",
    "0.99": "99 hundredths",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the rounds are all that can be chosen."""


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything, and return the figures."""
    rounds, quick = arguments.rounds, arguments.quick
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": machine.describe()}
    results["lengths"] = lengths.per_update(64 if quick else 1024, 1 if quick else rounds, _say)
    results["resuming"] = lengths.resuming(1 if quick else max(rounds // 2, 3), _say)
    counts = _COUNTS[:2] if quick else _COUNTS
    results["tensors"] = {str(count): _tensors(count, rounds, quick) for count in counts}
    return results


def _tensors(count: int, rounds: int, quick: bool) -> dict[str, Any]:
    """Compare a fit with the hand-written loop on a model of so many tensors."""
    name = f"layers-{count}"
    pace = Cadence(20, 2, 2, 5) if quick else Cadence(30, rounds, 5, find(name).steps)
    chosen = [CONTESTANTS[n] for n in (BASELINE, "helios", "handwritten-fused", "helios-fused")]
    with tempfile.TemporaryDirectory(prefix="helios-benchmark-") as folder:
        root = Path(folder)
        runs = take_turns(
            chosen, name, False, pace, root, root / "compiled", lambda m: _say(f"{name}: {m}")
        )
        baseline = runs[BASELINE]
        found: dict[str, Any] = {}
        for contestant in chosen:
            run = runs[contestant.name]
            if run.failure is not None:
                return {"refused": f"{contestant.name} failed: {run.failure}"}
            differs, _ = disagreement(contestant, run, baseline, False, pace.total)
            if differs is not None:
                return {"refused": f"{contestant.name}: {differs}"}
            own = "handwritten-fused" if contestant.name == "helios-fused" else BASELINE
            found[contestant.name] = paired(run.seconds, runs[own].seconds, pace.steps).as_dict()
    return found


def refusals(results: dict[str, Any]) -> list[str]:
    """Return which figures were not reported, and why."""
    return [
        f"{count} tensors: {found['refused']}"
        for count, found in results["tensors"].items()
        if "refused" in found
    ]


def publish(page: Path, results: dict[str, Any]) -> None:
    """Write the tables of the figures into a page, and draw them."""
    document.put(page, "tensors", _table_of_tensors(results["tensors"]))
    document.put(page, "lengths", _table_of_lengths(results["lengths"]))
    rows = []
    for fraction, seconds in results["resuming"].items():
        spread = Spread.of([1e3 * s for s in seconds])
        rows.append(
            [_PLACES[fraction], f"{spread.median:.1f}", f"{spread.low:.1f} to {spread.high:.1f}"]
        )
    document.put(page, "resuming", document.table(["it goes on from", "ms", "quartiles"], rows))
    plots.tensors(page.parent / "images" / "tensors.svg", results["tensors"])


def _table_of_tensors(tensors: dict[str, Any]) -> str:
    rows = []
    first: dict[str, tuple[int, float]] = {}  # what does not grow with the number of tensors
    for count, found in tensors.items():
        if "refused" in found:
            rows.append([count, "refused", "", "", "", "", ""])
            continue
        row = [count]
        for own, other in ((BASELINE, "helios"), ("handwritten-fused", "helios-fused")):
            gap = found[other]["difference"]
            least, added = first.setdefault(other, (int(count), gap["median"]))
            more = int(count) - least
            row += [
                f"{found[own]['microseconds']['median']:.0f}",
                f"{gap['median']:+.1f} ({gap['low']:+.1f} to {gap['high']:+.1f})",
                f"{(gap['median'] - added) / more:+.2f}" if more else "",
            ]
        rows.append(row)
    each = "each more"
    header = ["tensors", "by hand, us", "helios adds, us", each, "fused by hand, us"]
    return document.table([*header, "helios fused adds, us", each], rows)


def _table_of_lengths(groups: dict[str, dict[str, list[float]]]) -> str:
    rows = []
    for group, named in groups.items():
        first = next(iter(named.values()))
        for name, values in named.items():
            ratio = Spread.of([a / b for a, b in zip(values, first, strict=True)])
            rows.append(
                [
                    group,
                    name,
                    f"{statistics.median(values):.0f}",
                    f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})",
                ]
            )
    return document.table(["", "", "us an update", "to the first of its kind"], rows)


def _say(message: str) -> None:
    print(f"{stamp()}  size, {message}", flush=True)
