"""Where campaigns are run: folders, verdicts that are remembered, and counts."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.trainer.store.faulty import CountingFs, Image, materialise, signature
from tests.trainer.store.judging import Ledger, Violation, judge
from tests.trainer.store.tiny import NAME, UnsyncedFs


class Counts(NamedTuple):
    """What a campaign did.

    Args:
        trials: how many faults were injected and judged.
        outcomes: how many trials ended in which way, by name.
    """

    trials: int
    outcomes: dict[str, int]


class Bench:
    """Judges images of a disk, each distinct one once, and counts the outcomes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.outcomes: Counter[str] = Counter()
        self._known: dict[object, str] = {}
        self._made = itertools.count()

    def folder(self) -> Path:
        """Return a new, empty folder."""
        folder = self.root / str(next(self._made))
        folder.mkdir()
        return folder

    def is_new(self, image: Image, ledger: Ledger) -> bool:
        """Tell whether such an image was not judged yet."""
        return (signature(image), ledger.key()) not in self._known

    def judge(self, image: Image, ledger: Ledger, where: str) -> None:
        """Judge what is on a disk; see `tests.trainer.store.judging.judge`."""
        key = signature(image), ledger.key()
        if key not in self._known:
            copy = self.folder()
            materialise(image, copy)
            try:
                self._known[key] = judge(copy / "runs" / NAME, ledger)
            except Violation as violation:
                raise Violation(f"{where}: {violation}") from violation
        self.outcomes[self._known[key]] += 1

    def counts(self) -> Counts:
        return Counts(self.outcomes.total(), dict(self.outcomes))


def in_memory() -> str | None:
    """Return where to make folders: no fault here needs a real disk, and on one they take long."""
    memory = "/dev/shm"
    return memory if os.access(memory, os.W_OK) else None


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="helios-", dir=in_memory()) as root:
        yield Bench(Path(root))


def every_operation(run: Callable[[CountingFs], object]) -> Iterator[tuple[int, bool, bool]]:
    """Yield operation, whether after it, and whether beside foreign files, for a whole run."""
    fs = CountingFs(UnsyncedFs())
    run(fs)
    for at in range(1, fs.count + 1):
        yield from ((at, False, True), (at, True, False))
