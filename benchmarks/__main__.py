"""The benchmarks as one command.

    python -m benchmarks [steps] [memory] [size] [--rounds 20] [--quick] ...

Without a name, all of them run. Figures go to a file of results, and from there into the page.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType

from benchmarks import document, memory, size, steps
from benchmarks.rounds import ROOT, stamp

BENCHMARKS: dict[str, ModuleType] = {"steps": steps, "memory": memory, "size": size}


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for; return 1 if figures had to be refused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What things cost.")
    parser.add_argument("benchmarks", nargs="*", metavar="|".join(BENCHMARKS),
                        help="all of them by default")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=20, help="how long it takes scales with it")
    parser.add_argument("--quick", action="store_true", help="to see whether it runs")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/cpu.json")
    parser.add_argument("--page", type=Path, help="default: docs/performance.md, unless --quick")
    for module in BENCHMARKS.values():
        module.add_arguments(parser)
    arguments = parser.parse_args(argv)
    unknown = set(arguments.benchmarks) - set(BENCHMARKS)
    if unknown:
        parser.error(f"received {sorted(unknown)}; expected some of {list(BENCHMARKS)}")
    if arguments.rounds < 1:
        parser.error(f"--rounds: received {arguments.rounds}; expected at least 1")
    if arguments.quick and arguments.results == parser.get_default("results"):
        parser.error("--quick: expected --results as well: such figures are not to be kept")
    page = arguments.page
    if page is None and not arguments.quick:
        page = ROOT / "docs/performance.md"
    refused: list[str] = []
    for name in arguments.benchmarks or BENCHMARKS:
        module = BENCHMARKS[name]
        results = module.measure(arguments)
        document.keep(arguments.results, name, results)
        if page is not None:
            module.publish(page, results)
        refused += module.refusals(results)
    for line in refused:
        print(f"{stamp()}  REFUSED {line}", flush=True)
    print(f"{stamp()}  figures are in {arguments.results}", flush=True)
    return 1 if refused else 0


if __name__ == "__main__":
    raise SystemExit(main())
