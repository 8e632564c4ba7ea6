"""Campaigns in which the process dies, or the power fails."""

from __future__ import annotations

import contextlib
import errno
import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from helios.trainer.store import Store
from tests.trainer.store.bench import Bench, Counts, bench, every_operation
from tests.trainer.store.faulty import (
    CountingFs,
    CrashDiskFs,
    Everything,
    Image,
    Loss,
    MutedFs,
    Nothing,
    PowerCut,
    Random,
    Site,
    image_of,
    materialise,
)
from tests.trainer.store.judging import KEEP, Ledger, Run, add_foreign
from tests.trainer.store.tiny import NAME, UnsyncedFs


def process_death(seed: int = 0) -> Counts:
    """C1: the process dies before and after every operation of a run, and of the recovery.

    A run opens its folder, saves, removes, pins, unpins, and reads. After each death, recovery is
    begun on what is there, dies before and after each of its own operations, and is begun again.

    Args:
        seed: nothing here is random; it is there for all campaigns to be called alike.

    Raises:
        Violation: if the newest checkpoint is not the last one acknowledged or the one in flight,
            if its bytes are others, or if anything but whole checkpoints, pins, the lock and
            foreign files is left after the recovery.
    """
    del seed
    with bench() as bed:
        for at, after, foreign in every_operation(lambda fs: _run(fs, bed.folder(), Ledger())):
            ledger = Ledger(foreign=foreign)
            top = bed.folder()
            if foreign:
                (top / "runs" / NAME).mkdir(parents=True)
                add_foreign(top / "runs" / NAME)
            fs = _die(at, lambda fs, top=top, ledger=ledger: _run(fs, top, ledger), after=after)
            where = f"the process died {'after' if after else 'before'} {fs.log[-1]}, {at}"
            image = image_of(top)
            if bed.is_new(image, ledger):
                _die_in_recovery(bed, image, ledger, where)
            bed.judge(image, ledger, where)
        return bed.counts()


def power_loss(trials: int = 20, seed: int = 0, muted: Site | None = None) -> Counts:
    """C3: the power fails at every operation, with ``trials`` random losses at each.

    Beside the random losses: everything that was not synced, and nothing of it. The same again
    in the recovery from each, after a restart of a process that died, and after an operation that
    failed.

    Args:
        trials: how many random losses at every operation.
        seed: what they are.
        muted: (optional) a place in the code whose syncs are left out, which must break it.

    Raises:
        Violation: as in `process_death`; a pin that was set, or taken away, counts as well.
    """
    with bench() as bed:
        _power_fails_in_a_run(bed, trials, seed, muted)
        _power_fails_after_a_death(bed, max(trials // 10, 1), seed, muted)
        _power_fails_after_an_error(bed, max(trials // 20, 1), seed, muted)
        return bed.counts()


def sites_reached() -> set[Site]:
    """Return the places in the code that sync in the run of `power_loss`."""
    with bench() as bed:
        fs = MutedFs(UnsyncedFs())
        _run(fs, bed.folder(), Ledger())
        return fs.seen


def _run(fs: object, top: Path, ledger: Ledger, *, tolerant: bool = False) -> None:
    Run(fs, top / "runs" / NAME, ledger, tolerant=tolerant).whole()  # type: ignore[arg-type]


def _die(
    at: int,
    run: Callable[[CountingFs], object],
    *,
    after: bool,
    inner: object = None,
) -> CountingFs:
    """Let a process die at an operation; what it does in its last moments does not count."""
    fs = CountingFs(inner or UnsyncedFs(), at, after=after)  # type: ignore[arg-type]
    with contextlib.suppress(PowerCut):
        run(fs)
    fs.bury()
    return fs


def _die_in_recovery(bed: Bench, image: Image, ledger: Ledger, where: str) -> None:
    """Let recovery die at each of its operations; what it leaves must be as good."""
    for at in itertools.count(1):
        for after in (False, True):
            top = bed.folder()
            materialise(image, top)
            fs = _die(at, lambda fs, top=top: _recover(fs, top), after=after)
            if not fs.failed:
                return
            bed.judge(image_of(top), ledger, f"{where}; and recovery died at {fs.log[-1]}, {at}")


def _recover(fs: object, top: Path) -> None:
    Store(top / "runs" / NAME, KEEP, fs).close()  # type: ignore[arg-type]


def _losses(trials: int, *seed: object) -> Iterator[Loss]:
    yield Everything()
    yield Nothing()
    yield from (Random((seed, trial)) for trial in range(trials))


def _power_fails_in_a_run(bed: Bench, trials: int, seed: int, muted: Site | None) -> None:
    ledger = Ledger()
    disk = CrashDiskFs(bed.folder())
    operations = itertools.count(1)

    def fail(operation: str) -> None:
        number = next(operations)
        for trial, loss in enumerate(_losses(trials, seed, number)):
            image = disk.crash(loss)
            where = f"the power failed before {operation}, {number} (seed {seed}, loss {trial})"
            if bed.is_new(image, ledger):
                bed.judge(image, ledger, where)
                _power_fails_in_recovery(bed, image, ledger, where, seed, muted)
            else:
                bed.judge(image, ledger, where)

    disk.before = fail
    _run(MutedFs(disk, muted), disk.root, ledger)
    fail("the end")


def _power_fails_in_recovery(
    bed: Bench, image: Image, ledger: Ledger, where: str, seed: int, muted: Site | None
) -> None:
    top = bed.folder()
    materialise(image, top)
    disk = CrashDiskFs(top)

    def fail(operation: str) -> None:
        for loss in _losses(1, seed, where, operation):
            bed.judge(disk.crash(loss), ledger, f"{where}; and again before {operation}")

    disk.before = fail
    _recover(MutedFs(disk, muted), top)
    fail("the end of the recovery")


def _power_fails_after_a_death(bed: Bench, trials: int, seed: int, muted: Site | None) -> None:
    """Let a process die, another one save, and then the power fail."""
    for at, after, _ in every_operation(lambda fs: _run(fs, bed.folder(), Ledger())):
        ledger = Ledger()
        disk = CrashDiskFs(bed.folder())
        quiet = MutedFs(disk, muted)
        fs = _die(
            at,
            lambda fs, top=disk.root, ledger=ledger: _run(fs, top, ledger),
            after=after,
            inner=quiet,
        )
        run = Run(quiet, disk.root / "runs" / NAME, ledger)  # type: ignore[arg-type]
        with Store(run.folder, KEEP, quiet) as store:  # type: ignore[arg-type]
            for step, pinned in ledger.pinned.items():
                if pinned is None:  # who was cut off says it again
                    run.unpin(step)
            where = f"a process died at {fs.log[-1]}, {at} (after: {after}); the next one began"
            for loss in _losses(trials, seed, at, after):
                bed.judge(disk.crash(loss), ledger, f"{where}; the power failed")
            run.save(store, 9)
        for loss in _losses(trials, seed, at, after):
            bed.judge(disk.crash(loss), ledger, f"{where} and saved; the power failed")


def _power_fails_after_an_error(bed: Bench, trials: int, seed: int, muted: Site | None) -> None:
    """Let an operation fail, and the power soon after."""
    for at, after, _ in every_operation(lambda fs: _run(fs, bed.folder(), Ledger())):
        ledger = Ledger()
        disk = CrashDiskFs(bed.folder())
        fs = CountingFs(
            MutedFs(disk, muted), at, lambda: OSError(errno.EIO, "a bad block"), after=after
        )

        def fail(operation: str, fs=fs, disk=disk, ledger=ledger, at=at, after=after) -> None:
            if not at < fs.count < at + 10:
                return
            where = f"{fs.failed} failed, {at} (after: {after}); then the power before {operation}"
            for trial, loss in enumerate(_losses(trials, seed, at, after, operation)):
                bed.judge(disk.crash(loss), ledger, f"{where} (seed {seed}, loss {trial})")

        disk.before = fail
        with _without_warnings():
            _run(fs, disk.root, ledger, tolerant=True)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
