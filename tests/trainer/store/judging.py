"""What a run was told of its checkpoints, and whether a folder holds to it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from helios.errors import CheckpointError
from helios.trainer.store import Retention, Store, pin_checkpoint, pins, unpin_checkpoint
from helios.trainer.store.fs import Fs
from helios.trainer.store.reading import committed
from tests.trainer.store.tiny import NAME, UnsyncedFs, payload, save, stem, step_of

KEEP = Retention(last=1)
FOREIGN = {"notes.txt", "m_epoch_x.json", "other.pth"}
"""Files that are nobody's business; the store leaves them alone."""


class Violation(AssertionError):  # noqa: N818 it is one
    """The store broke a promise; the message says where, and how to see it again."""


class Ledger:
    """What was acknowledged to a run.

    Args:
        foreign: whether `FOREIGN` files lie in the folder.
    """

    def __init__(self, *, foreign: bool = False) -> None:
        self.foreign = foreign
        self.acknowledged: int | None = None
        self.flying: frozenset[int] = frozenset()
        self.pinned: dict[int, bool | None] = {}
        """True: pinned; False: not; None: who knows, it was cut off."""

    def key(self) -> tuple[object, ...]:
        return self.acknowledged, self.flying, *sorted(self.pinned.items())


class Run:
    """A run of a few saves, removals and pins on a disk, in which every promise is noted.

    Args:
        fs: the disk.
        folder: the folder of its checkpoints.
        ledger: where to note what was acknowledged.
        tolerant: whether it goes on after an operation that failed.
    """

    def __init__(self, fs: Fs, folder: Path, ledger: Ledger, *, tolerant: bool = False) -> None:
        self.fs, self.folder, self.ledger, self.tolerant = fs, folder, ledger, tolerant

    def whole(self) -> None:
        """Make the folder, save three times, remove, pin, unpin, open it again and save."""
        with self._open() as store:
            self.save(store, 1)
            self.pin(1)
            self.save(store, 2)
            self.save(store, 3)
            self.unpin(1)
            self.save(store, 4)
            self.pin(4)
        with self._open() as store:
            self._done(store.last_valid)
            self.save(store, 5)

    def _open(self) -> Store:
        try:
            return Store(self.folder, KEEP, self.fs)
        except CheckpointError:
            if not self.tolerant:
                raise
        return Store(self.folder, KEEP, self.fs)

    def save(self, store: Store, step: int) -> None:
        self.ledger.flying |= {step}
        if self._done(lambda: save(store, step)):
            self.ledger.acknowledged, self.ledger.flying = step, frozenset()

    def pin(self, step: int) -> None:
        self._mark(step, pin_checkpoint, pinned=True)

    def unpin(self, step: int) -> None:
        self._mark(step, unpin_checkpoint, pinned=False)

    def _mark(self, step: int, mark: Callable[[Path], None], *, pinned: bool) -> None:
        self.ledger.pinned[step] = None
        with mock.patch.object(pins, "OsFs", return_value=self.fs):
            if self._done(lambda: mark(self.folder / f"{stem(step)}.pth")):
                self.ledger.pinned[step] = pinned

    def _done(self, act: Callable[[], object]) -> bool:
        try:
            act()
        except CheckpointError:
            if not self.tolerant:
                raise
            return False
        return True


def judge(folder: Path, ledger: Ledger) -> str:
    """Open a folder after a crash, and raise if it does not hold what was acknowledged.

    Returns:
        How it came out: ``"none"``, ``"acknowledged"`` or ``"in flight"`` is the newest.

    Raises:
        Violation: if a checkpoint is lost, changed or half there, if something else is left, or if
            the run cannot go on.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Store(folder, KEEP, UnsyncedFs()) as store:
                found = store.last_valid()
                _check_names(folder, ledger)
                newest = None if found is None else step_of(found[0])
                if newest not in {ledger.acknowledged, *ledger.flying}:
                    raise Violation(
                        f"the newest is {newest}; acknowledged was {ledger.acknowledged}, and in "
                        f"flight {sorted(ledger.flying)}"
                    )
                _check_going_on(store, ledger, newest)
    except (CheckpointError, OSError, Warning, AssertionError) as error:
        raise Violation(f"{type(error).__name__}: {error}") from error
    if newest is None:
        return "none"
    return "acknowledged" if newest == ledger.acknowledged else "in flight"


def _check_names(folder: Path, ledger: Ledger) -> None:
    """Check that there is nothing but whole checkpoints, pins, the lock and foreign files."""
    names = set(os.listdir(folder)) - {".lock"}
    if ledger.foreign:
        assert names >= FOREIGN, f"foreign files are gone: {sorted(FOREIGN - names)}"
        names -= FOREIGN
    expected = set()
    for entry in committed(UnsyncedFs(), folder, NAME):
        assert entry.manifest is not None, f"{entry.stem} is broken: {entry.error}"
        data = (folder / f"{entry.stem}.pth").read_bytes()
        assert data == payload(entry.manifest.position[1]), f"{entry.stem}.pth has other bytes"
        expected |= {f"{entry.stem}.pth", f"{entry.stem}.json"}
    for step, pinned in ledger.pinned.items():
        marker = f"{stem(step)}.pin"
        assert pinned in {None, marker in names}, f"{marker} is there: {marker in names}"
        assert not pinned or f"{stem(step)}.pth" in expected, f"the pinned {step} is gone"
        expected |= {marker} & names
    assert names == expected, f"left behind: {sorted(names ^ expected)}"


def _check_going_on(store: Store, ledger: Ledger, newest: int | None) -> None:
    """Check that the next save works, and that the retention holds after it."""
    step = 1 + max(newest or 0, ledger.acknowledged or 0, *ledger.flying, 0)
    save(store, step)
    there = {e.stem for e in committed(UnsyncedFs(), store.folder, NAME)}
    pinned = {stem(s) for s in ledger.pinned if (store.folder / f"{stem(s)}.pin").exists()}
    assert stem(step) in there, f"{step} was saved, and is not there"
    assert there - pinned == {stem(step)} - pinned, f"the retention left {sorted(there)}"


def add_foreign(folder: Path) -> None:
    """Put files into a folder that are not the store's."""
    for name in FOREIGN:
        (folder / name).write_bytes(b"mine")
