"""What an update costs: helios, the hand-written loop and other libraries, in turns.

    python -m benchmarks steps [--workloads mlp deep] [--contestants helios lightning]
        [--settings bare full] [--rounds 20] [--quick]

See docs/performance.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import document, machine, plots
from benchmarks.agreement import disagreement
from benchmarks.contestants import BASELINE, CONTESTANTS, SAVE_EVERY, Contestant
from benchmarks.paired import paired
from benchmarks.rounds import Run, again, stamp, take_turns
from benchmarks.turns import Cadence
from benchmarks.workloads import WORKLOADS, Workload

SETTINGS = ("bare", "full")
_COPIES = 3
_AGAIN = again(1)  # the same in another process: what is noise
_RIVALS = {
    "helios": [c.name for c in CONTESTANTS.values() if c.exact and c.module != "with_helios"],
    "helios-fused": ["handwritten-fused"],
    "helios-compiled": ["handwritten-compiled"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=[*CONTESTANTS])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=[*WORKLOADS])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=[*SETTINGS])


def is_choice(arguments: argparse.Namespace) -> bool:
    """Tell whether not all is measured."""
    chosen = (arguments.contestants, arguments.workloads, arguments.settings)
    return any(
        set(some) != set(every)
        for some, every in zip(chosen, (CONTESTANTS, WORKLOADS, SETTINGS), strict=True)
    )


def cadence(workload: Workload, full: bool, rounds: int, quick: bool) -> Cadence:
    """Return how the updates of a run are divided.

    A turn of the full setting is as long as it is from one checkpoint to the next, and has one in
    its middle. Such turns are long, so there are fewer of them.
    """
    if quick:
        # With everything on, up to the first checkpoint.
        return Cadence(SAVE_EVERY, 2, 0, 5) if full else Cadence(20, 2, 2, 5)
    if full:
        return Cadence(SAVE_EVERY // 2, max(rounds // 4, 2), 0, SAVE_EVERY)
    return Cadence(30, rounds, 5, workload.steps)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure what was chosen, and return the figures."""
    chosen = [CONTESTANTS[n] for n in dict.fromkeys([BASELINE, *arguments.contestants])]
    why = {c.name: c.missing() for c in chosen}
    for name, reason in why.items():
        if reason is not None:
            print(f"{stamp()}  {name} takes no part: {reason}", flush=True)
    present = [c for c in chosen if why[c.name] is None]
    results: dict[str, Any] = {
        "machine": machine.describe(),
        "versions": machine.versions(present),
        "absent": {name: reason for name, reason in why.items() if reason is not None},
        "settings": {},
    }
    copies = 2 if arguments.quick else _COPIES
    with tempfile.TemporaryDirectory(prefix="helios-benchmark-") as compiled:
        for setting in arguments.settings:
            into = results["settings"][setting] = {}
            for name in arguments.workloads:
                full = setting == "full"
                pace = cadence(WORKLOADS[name], full, arguments.rounds, arguments.quick)
                into[name] = one(present, name, setting, pace, Path(compiled), copies)
    return results


def one(
    contestants: Sequence[Contestant],
    workload: str,
    setting: str,
    pace: Cadence,
    compiled: Path,
    copies: int,
) -> Any:
    """Measure all contestants on one workload, in one setting."""
    where = f"{setting}, {workload}"

    def progress(message: str) -> None:
        print(f"{stamp()}  {where}: {message}", flush=True)

    with tempfile.TemporaryDirectory(prefix="helios-benchmark-") as folder:
        runs = take_turns(
            contestants,
            workload,
            setting == "full",
            pace,
            Path(folder),
            compiled,
            progress,
            copies,
        )
        baseline = runs[BASELINE]
        for name in (BASELINE, *map(again, range(1, copies))):
            if runs[name].failure is not None:
                raise SystemExit(f"{where}: the baseline failed: {runs[name].failure}")
        found: dict[str, Any] = {"cadence": pace.as_dict(), "contestants": {}}
        named = {c.name: c for c in contestants}
        for name in (BASELINE, _AGAIN, *(n for n in named if n != BASELINE)):
            contestant = named.get(name, CONTESTANTS[BASELINE])
            figures = _figures(contestant, runs[name], baseline, setting == "full", pace)
            found["contestants"][name] = figures
            progress(f"{name}: {_brief(figures)}")
    return found


def _figures(
    contestant: Contestant, run: Run, baseline: Run, full: bool, pace: Cadence
) -> dict[str, Any]:
    if run.failure is not None:
        return {"refused": f"it failed: {run.failure}"}
    differs, proof = disagreement(contestant, run, baseline, full, pace.total)
    if differs is not None:
        return {"refused": differs, **proof}
    others = run.seconds if run is baseline else run.beside
    compared = paired(run.seconds, others, pace.steps)
    usual = compared.microseconds.median / 1e6
    return {
        **compared.as_dict(),
        "startup": round(max(run.startup - pace.warmup * usual, 0.0), 2),
        "rounds": [round(s * 1e6 / pace.steps, 2) for s in run.seconds],
        **proof,
    }


def refusals(results: dict[str, Any]) -> list[str]:
    """Return which figures were not reported, and why."""
    return [
        f"{setting}, {workload}: {name}: {figures['refused']}"
        for setting, workloads in results["settings"].items()
        for workload, found in workloads.items()
        for name, figures in found["contestants"].items()
        if "refused" in figures
    ]


def _label(name: str) -> str:
    return "the same in another process" if name == _AGAIN else CONTESTANTS[name].label


def _brief(figures: dict[str, Any]) -> str:
    if "refused" in figures:
        return f"no figures: {figures['refused']}"
    return (
        f"{figures['microseconds']['median']:.0f} us, {figures['ratio']['median']:.3f} times, "
        f"{figures['difference']['median']:+.1f} us"
    )


def publish(page: Path, results: dict[str, Any]) -> None:
    """Write the tables of the figures into a page."""
    document.put(page, "machine", machine.sentence(results["machine"], results["versions"]))
    for setting, workloads in results["settings"].items():
        # What was compiled without the rest is there when it is compiled with it.
        parts = [_section(name, found, setting == "bare") for name, found in workloads.items()]
        document.put(page, f"steps {setting}", "\n\n".join(parts))
        plots.steps(page.parent / "images" / f"steps-{setting}.svg", workloads)
    document.put(page, "steps losses", "\n".join(losses(results)))
    notes = [f"- {CONTESTANTS[n].label}: {why}" for n, why in results["absent"].items()]
    notes += [f"- {line}" for line in refusals(results)]
    text = "Without figures:\n\n" + "\n".join(notes) if notes else "Nobody is without figures."
    document.put(page, "steps absent", text)


def losses(results: dict[str, Any]) -> list[str]:
    """Return, line by line, where helios is slower than another with the same optimizer."""
    lines = []
    for setting, workloads in results["settings"].items():
        for workload, found in workloads.items():
            ratios = {
                name: figures["ratio"]["median"]
                for name, figures in found["contestants"].items()
                if "refused" not in figures
            }
            for own, rivals in _RIVALS.items():
                faster = [n for n in rivals if n in ratios and ratios[n] < ratios.get(own, 0.0)]
                if faster:
                    listed = ", ".join(
                        f"{CONTESTANTS[n].label} ({ratios[n]:.2f})"
                        for n in sorted(faster, key=lambda n: ratios[n])
                    )
                    where = f"{setting}, {WORKLOADS[workload].label.partition(',')[0]}"
                    label = CONTESTANTS[own].label
                    lines.append(f"- {where}: {label} ({ratios[own]:.2f}) is slower than {listed}.")
    return lines or ["Nowhere in these tables."]


def _section(name: str, found: dict[str, Any], startup: bool) -> str:
    pace = found["cadence"]
    rows = []
    for contestant, figures in found["contestants"].items():
        label = _label(contestant)
        if "refused" in figures:
            rows.append([label, "refused", "", "", "", *[""] * startup])
            continue
        ratio, gap = figures["ratio"], figures["difference"]
        rows.append(
            [
                label,
                f"{figures['microseconds']['median']:.0f}",
                f"{ratio['median']:.3f}",
                f"{ratio['low']:.3f} to {ratio['high']:.3f}",
                f"{gap['median']:+.0f} ({gap['low']:+.0f} to {gap['high']:+.0f})",
                *[f"{figures['startup']:.1f}"] * startup,
            ]
        )
    header = ["", "us an update", "ratio", "quartiles", "difference, us"]
    header += ["start-up, s"] * startup
    title = f"**{WORKLOADS[name].label}**; {pace['rounds']} rounds of {pace['steps']} updates"
    return f"{title}\n\n{document.table(header, rows)}"
