"""The campaign in which every operation fails, with every error."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from helios.errors import CheckpointError
from helios.trainer.store import Store, pin_checkpoint, pins, read_checkpoint, unpin_checkpoint
from helios.trainer.store.reading import last_valid
from tests.trainer.store.bench import Bench, Counts, bench
from tests.trainer.store.faulty import CountingFs
from tests.trainer.store.judging import KEEP, Ledger, Violation, judge
from tests.trainer.store.tiny import NAME, UnsyncedFs, save, step_of

ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES)

T = TypeVar("T")


def operations_failed(seed: int = 0) -> Counts:
    """C5: every operation fails, with each error, once and from then on, before and after it.

    The operations are those of a run that opens its folder, saves three times, removes, pins,
    unpins, opens again and reads. Reads fail with EIO alone.

    Args:
        seed: nothing here is random; it is there for all campaigns to be called alike.

    Raises:
        Violation: if the error is not named, or loses the system's error; if a checkpoint from
            before is harmed; if a temporary file is left by a save that could have removed it; or
            if the next save does not work once the disk does.
    """
    del seed
    with bench() as bed:
        fs = CountingFs(UnsyncedFs())
        _Attempts(fs, bed.folder() / "runs" / NAME, 0).run()
        for at, operation in enumerate(fs.log, start=1):
            for number in (errno.EIO,) if operation == "read" else ERRORS:
                for after in (False, True):
                    for lasting in (False, True):
                        _fail(bed, at, number, after=after, lasting=lasting)
        return bed.counts()


def _fail(bed: Bench, at: int, number: int, *, after: bool, lasting: bool) -> None:
    fs = CountingFs(
        UnsyncedFs(),
        at,
        lambda: OSError(number, os.strerror(number)),
        after=after,
        lasting=lasting,
    )
    attempts = _Attempts(fs, bed.folder() / "runs" / NAME, number)
    try:
        attempts.run()
        outcome = judge(attempts.folder, attempts.ledger)
    except Violation as violation:
        raise Violation(
            f"{errno.errorcode[number]} at {fs.failed[:1]}, {at} (after: {after}, lasting: "
            f"{lasting}): {violation}"
        ) from violation
    bed.outcomes[f"{'lasting' if lasting else 'once'}, {outcome}"] += 1


class _Attempts:
    """A run that tries again what failed, and checks how it failed."""

    def __init__(self, fs: CountingFs, folder: Path, number: int) -> None:
        self.fs, self.folder, self.number = fs, folder, number
        self.ledger = Ledger()
        self._file = ""

    def run(self) -> None:
        with self._open() as store:
            for step in (1, 2, 3):
                self._save(store, step)
        with mock.patch.object(pins, "OsFs", return_value=self.fs):
            for mark in (pin_checkpoint, unpin_checkpoint):
                self._until_it_works(lambda mark=mark: mark(self._newest()))
        with self._open() as store:
            # What cannot be read is passed over for an older one, or an error with its reason.
            self._try(store.last_valid, keeps_cause=False)
            content = self._until_it_works(lambda: read_checkpoint(self._newest(), self.fs))
        if step_of(content) != self.ledger.acknowledged:
            raise Violation(f"read step {step_of(content)}")

    def _newest(self) -> Path:
        return self.folder / self._file

    def _open(self) -> Store:
        return self._until_it_works(lambda: Store(self.folder, KEEP, self.fs))

    def _save(self, store: Store, step: int) -> None:
        self.ledger.flying |= {step}
        saved = self._try(lambda: save(store, step))
        if saved is None:
            hidden = sorted(n for n in os.listdir(self.folder) if n[0] == "." and n != ".lock")
            if hidden and not self.fs.lasting:
                raise Violation(f"the failed save has left {hidden}")
            newest = self._readable()
            if newest not in {self.ledger.acknowledged, *self.ledger.flying}:
                raise Violation(f"after the failed save of {step}, the newest is {newest}")
            self.fs.heal()
            # Under another name if the first one is on the disk after all.
            saved = self._try(lambda: save(store, step))
            if saved is None:
                raise Violation("the next save does not work")
        self._file = saved.file
        self.ledger.acknowledged, self.ledger.flying = step, frozenset()

    def _readable(self) -> int | None:
        found = last_valid(UnsyncedFs(), self.folder, NAME)
        return None if found is None else step_of(found[0])

    def _until_it_works(self, act: Callable[[], T]) -> T:
        """Do something; if it fails, once more on a disk that works."""
        for _ in range(2):
            result = self._try(lambda: (act(),))
            if result is not None:
                return result[0]
            self.fs.heal()
        raise Violation("it still fails on a disk that works")

    def _try(self, act: Callable[[], Any], *, keeps_cause: bool = True) -> Any:
        """Do something; None if it fails by the disk, and says so."""
        before = len(self.fs.failed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return act()
        except CheckpointError as error:
            if len(self.fs.failed) == before:
                raise Violation(f"failed on a disk that works: {error}") from error
            cause = error.__cause__
            kept = isinstance(cause, OSError) and cause.errno == self.number
            if not kept and (keeps_cause or os.strerror(self.number) not in str(error)):
                raise Violation(f"the system's error is lost: {error!r} from {cause!r}") from error
            return None
        except Exception as error:
            raise Violation(f"not a named error: {error!r}") from error
