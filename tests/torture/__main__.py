"""The torture run: ``python -m tests.torture --minutes 60 [--seed N] [--report FILE]``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.torture import others
from tests.torture.campaign import Campaign, orders
from tests.torture.fits import CONFIGURATIONS
from tests.torture.tally import Tally
from tests.torture.warm import warm

_EVERY = 30.0
_REST = 15.0


def main() -> int:
    """Run, print the table, and return the exit status."""
    arguments = _parse()
    torch.set_num_threads(1)
    stopped: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    memory = Path("/dev/shm")
    where = arguments.folder or (memory if os.access(memory, os.W_OK) else None)
    root = Path(tempfile.mkdtemp(prefix="helios-torture-", dir=where))
    say(f"runs in {root}, seed {arguments.seed}")
    tally = Tally()
    end = tally.begun + 60 * arguments.minutes
    warm(root)
    campaign = Campaign(root, tally, say)
    campaign.prepare(CONFIGURATIONS, times=2)
    shapes = [shape.seconds for shape in campaign.shapes.values()]
    say(f"prepared; a whole run takes {min(shapes):.3f} to {max(shapes):.3f} s")
    if not arguments.kills_only:
        others.run(campaign.nursery, tally, say, root, arguments.seed, lambda: bool(stopped))
    said = [time.monotonic()]

    def over() -> bool:
        now = time.monotonic()
        if now - said[0] > _EVERY:
            said[0] = now
            say(tally.line())
        return bool(stopped) or now > end

    campaign.run(orders(arguments.seed, CONFIGURATIONS), over)
    campaign.rest(_REST)
    table = tally.table(arguments.seed)
    say(f"\n{table}\n")
    if arguments.report is not None:
        arguments.report.write_text(table + "\n")
    if tally.failed:
        say(f"FAILED; what failed is in {root}")
        return 1
    shutil.rmtree(root)
    say("passed")
    return 0


def say(text: str) -> None:
    """Print a line, now."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="file for the table, in Markdown")
    parser.add_argument("--folder", type=Path, help="where the runs live; memory by default")
    parser.add_argument("--kills-only", action="store_true", help="no other campaigns")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
