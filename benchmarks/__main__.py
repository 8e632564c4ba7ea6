"""The benchmarks as one command.

    python -m benchmarks [steps] [memory] [size] [--rounds 20] [--quick] ...

Without a name, all of them run. Figures go to a file of results, and from there into the page;
those of a choice of contestants, workloads or settings, and quick ones, only where --results and
--page say so.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType

from benchmarks import document, memory, size, steps
from benchmarks.rounds import ROOT, stamp

BENCHMARKS: dict[str, ModuleType] = {"steps": steps, "memory": memory, "size": size}

_RESULTS, _PAGE = ROOT / "benchmarks/results/cpu.json", ROOT / "docs/performance.md"


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for; return 1 if figures had to be refused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What things cost.")
    parser.add_argument("benchmarks", nargs="*", metavar="|".join(BENCHMARKS),
                        help="all of them by default")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=20, help="how long it takes scales with it")
    parser.add_argument("--quick", action="store_true", help="to see whether it runs")
    parser.add_argument(
        "--write-only", action="store_true", help="measure nothing; write the page anew"
    )
    parser.add_argument("--results", type=Path, help=f"default: {_RESULTS.relative_to(ROOT)}")
    parser.add_argument("--page", type=Path, help=f"default: {_PAGE.relative_to(ROOT)}")
    for module in BENCHMARKS.values():
        module.add_arguments(parser)
    arguments = parser.parse_args(argv)
    unknown = set(arguments.benchmarks) - set(BENCHMARKS)
    if unknown:
        parser.error(f"received {sorted(unknown)}; expected some of {list(BENCHMARKS)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds: received {arguments.rounds}; expected at least 1")
    results_path, page = arguments.results, arguments.page
    if not (arguments.quick or steps.is_choice(arguments)):
        results_path, page = results_path or _RESULTS, page or _PAGE
    if arguments.write_only and results_path is None:
        parser.error("--write-only: expected --results as well, for a choice")
    refused: list[str] = []
    for name in arguments.benchmarks or BENCHMARKS:
        module = BENCHMARKS[name]
        if arguments.write_only:
            results = json.loads(results_path.read_text(encoding="utf-8"))[name]
        else:
            results = module.measure(arguments)
            if results_path is not None:
                document.keep(results_path, name, results)
        if page is not None:
            module.publish(page, results)
        refused += module.refusals(results)
    for line in refused:
        print(f"{stamp()}  REFUSED {line}", flush=True)
    kept = "are kept nowhere" if results_path is None else f"are in {results_path}"
    print(f"{stamp()}  figures {kept}", flush=True)
    return 1 if refused else 0


if __name__ == "__main__":
    raise SystemExit(main())
