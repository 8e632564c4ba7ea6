"""C5: a disk that fails is named, and takes nothing with it that was there."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess

import pytest

from helios.errors import CheckpointError
from helios.trainer.store import Retention, Store
from helios.trainer.store import store as store_module
from helios.trainer.store.fs import OsFs, write_all
from helios.trainer.store.reading import last_valid, read_checkpoint
from tests import zoo
from tests.trainer.runs import Batches, run, same, trainer
from tests.trainer.store import campaigns
from tests.trainer.store.contests import Wire, fork
from tests.trainer.store.faulty import CountingFs, FullFs
from tests.trainer.store.tiny import NAME, UnsyncedFs, manifest, payload, save, stem, step_of


def test_no_failure_of_any_operation_is_lost_or_loses_anything():
    outcomes = campaigns.operations_failed().outcomes
    assert outcomes["once, acknowledged"] == outcomes["lasting, acknowledged"] > 500


class InterruptedFs(UnsyncedFs):
    """Every other write is interrupted by a signal, and the others are short."""

    def __init__(self, size=100):
        self.size, self.writes = size, 0

    def write(self, descriptor, data):
        self.writes += 1
        if self.writes % 2:
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
        return super().write(descriptor, data[: self.size])


@pytest.mark.parametrize("size", [1, 7, 512, 10_000])
def test_interrupted_and_short_writes_are_gone_on_with(tmp_path, size):
    with Store(tmp_path / NAME, fs=InterruptedFs(size)) as store:
        save(store, 1)
        assert step_of(store.last_valid()[0]) == 1
    assert (tmp_path / NAME / f"{stem(1)}.pth").read_bytes() == payload(1)


def test_writes_of_every_size_add_up():
    data = random.Random(0).randbytes(600)

    class Short:
        def __init__(self, size):
            self.size, self.written = size, b""

        def write(self, descriptor, rest):
            part = bytes(rest[: self.size])
            self.written += part
            return len(part)

    for size in range(1, len(data) + 2):
        disk = Short(size)
        write_all(disk, 0, data)
        assert disk.written == data


def names(folder):
    return sorted(name for name in os.listdir(folder) if name != ".lock")


@pytest.fixture
def folder(tmp_path):
    """Return a folder with the checkpoint of step 1."""
    with Store(tmp_path / NAME) as store:
        save(store, 1)
    return tmp_path / NAME


def fails(act) -> int:
    """Return the system's error number of a save that fails."""
    with pytest.raises(CheckpointError, match="What was saved before is as it was") as failure:
        act()
    assert isinstance(failure.value.__cause__, OSError)
    return failure.value.__cause__.errno


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_device_is_named_and_leaves_nothing(folder):
    with Store(folder, fs=CountingFs(UnsyncedFs())) as store:
        store._fs = FullFs()
        before = names(folder)
        assert fails(lambda: save(store, 2)) == errno.ENOSPC
        assert names(folder) == before
        assert step_of(store.last_valid()[0]) == 1


def test_the_next_save_works_once_there_is_room(folder):
    with Store(folder, Retention(last=1), CountingFs(UnsyncedFs())) as store:
        fs, store._fs = store._fs, FullFs()
        assert fails(lambda: save(store, 2)) == errno.ENOSPC
        store._fs = fs
        save(store, 2)
    assert names(folder) == [f"{stem(2)}.json", f"{stem(2)}.pth"]


SIZES = sorted({round(len(payload(2)) * share / 19) for share in range(20)})


@pytest.mark.parametrize("size", SIZES)
def test_a_limit_on_the_size_of_files_is_named_and_leaves_nothing(folder, size):
    before, wire = names(folder), Wire()

    def limited():
        store = Store(folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            save(store, 2)
            wire.send("saved")
        except CheckpointError as error:
            wire.send(str(error.__cause__.errno))

    child = fork(limited)
    told = wire.receive(1)
    os.waitpid(child, 0)
    if size == SIZES[-1]:  # the manifest is shorter
        assert told == ["saved"]
    else:
        assert (told, names(folder)) == ([str(errno.EFBIG)], before)
    assert step_of(read_checkpoint(folder / f"{stem(1)}.pth")) == 1


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a file system of one MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {made.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def save_large(store, step, size=300_000):
    """Save a checkpoint of which only the bytes matter."""
    data = memoryview(random.Random(step).randbytes(size))

    def write(file):
        for start in range(0, size, 50_000):
            file.write(data[start : start + 50_000])

    store.save(f"{stem(step)}.pth", write, lambda *known: manifest(*known, step=step))


def test_a_disk_that_fills_up_is_named_and_keeps_what_was_there(small_disk):
    folder = small_disk / NAME
    with Store(folder) as store:
        for step in (1, 2, 3):
            save_large(store, step)
        before = names(folder)
        for _ in range(3):
            assert fails(lambda: save_large(store, 4)) == errno.ENOSPC
            assert names(folder) == before
        (folder / f"{stem(1)}.json").unlink()
        (folder / f"{stem(1)}.pth").unlink()
        save_large(store, 4)
    for step in (2, 3, 4):
        assert (folder / f"{stem(step)}.pth").read_bytes() == random.Random(step).randbytes(300_000)


def test_retention_makes_room_on_a_disk_for_one_more(small_disk):
    with Store(small_disk / NAME, Retention(last=2)) as store:
        for step in range(1, 20):
            save_large(store, step)
    assert names(small_disk / NAME) == [
        f"{stem(step)}.{kind}" for step in (18, 19) for kind in ("json", "pth")
    ]


def test_a_removal_that_fails_is_a_warning_and_the_save_counts(folder):
    with Store(folder, Retention(last=1), CountingFs(UnsyncedFs())) as store:
        store._fs.fault = lambda: OSError(errno.EIO, "a bad block")
        clean = CountingFs(UnsyncedFs())
        with Store(folder.parent / "other" / NAME, Retention(last=1), clean) as other:
            save(other, 1)
            first = clean.count
            save(other, 2)
        rename = clean.log.index("replace", first)  # of the file, of the manifest, of the removed
        removal = clean.log.index("replace", clean.log.index("replace", rename + 1) + 1)
        store._fs.at = store._fs.count + removal - first + 1
        with pytest.warns(UserWarning, match="no longer needed could not be removed"):
            save(store, 2)
    assert step_of(last_valid(OsFs(), folder, NAME)[0]) == 2


class SaveFails:
    """Gives every `Store` a disk on which the n-th ``create`` and those after it fail.

    Args:
        monkeypatch: pytest's.
        first: the first that fails, from 1; a save has two.
        last: the last that fails.
    """

    def __init__(self, monkeypatch, first, last):
        creates = 0

        class Fs(UnsyncedFs):
            def create(self, path):
                nonlocal creates
                creates += 1
                if first <= creates <= last:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                return super().create(path)

        monkeypatch.setattr(store_module, "OsFs", Fs)


def fit(root, *, steps=3, **arguments):
    """Fit with a save after each update; return the trainer, and raise what ends the run."""
    made = trainer(root, steps=steps, chkpt_frequency=1, **arguments)
    made.train_exceptions.append(CheckpointError)
    made.fit(zoo.Line(), Batches(zoo.regression(5)))
    return made


def saved(root):
    return sorted(path.name for path in (root / "line").glob("*.pth"))


def hidden(root):
    return [path.name for path in (root / "line").glob(".*") if path.name != ".lock"]


EVER = 10**9
both_ways = pytest.mark.parametrize("in_background", [False, True], ids=["sync", "async"])


@both_ways
def test_a_fit_stops_at_a_save_that_fails_and_says_why(tmp_path, monkeypatch, in_background):
    SaveFails(monkeypatch, 3, EVER)
    with pytest.raises(CheckpointError, match="No space left") as failure:
        fit(tmp_path, steps=5, async_saving=in_background)
    assert failure.value.__cause__.errno == errno.ENOSPC
    assert (saved(tmp_path), hidden(tmp_path)) == (["line_epoch_1_iter_1.pth"], [])


@both_ways
def test_a_fit_that_stopped_so_goes_on_where_its_checkpoint_is(
    tmp_path, monkeypatch, in_background
):
    with monkeypatch.context() as patched:
        SaveFails(patched, 3, EVER)
        with pytest.raises(CheckpointError):
            fit(tmp_path / "b", steps=5, async_saving=in_background)
    whole = run(tmp_path / "a", steps=5, chkpt_frequency=1)
    resumed = run(tmp_path / "b", steps=5, chkpt_frequency=1)
    assert resumed.state.current_iteration == 5
    ends = [
        read_checkpoint(tmp_path / which / "line" / "line_epoch_1_iter_5.pth")["carry"]
        for which in ("a", "b")
    ]
    assert same(*ends)
    assert whole.state.current_iteration == 5


@both_ways
def test_a_tolerant_fit_warns_of_a_save_that_fails_and_goes_on(
    tmp_path, monkeypatch, in_background
):
    SaveFails(monkeypatch, 3, 3)
    with pytest.warns(UserWarning, match="a save failed, and the run goes on.*No space left"):
        fit(tmp_path, tolerate_failed_saves=True, async_saving=in_background)
    assert saved(tmp_path) == ["line_epoch_1_iter_1.pth", "line_epoch_1_iter_3.pth"]
    assert hidden(tmp_path) == []


@both_ways
def test_a_tolerant_fit_raises_if_its_last_save_fails(tmp_path, monkeypatch, in_background):
    SaveFails(monkeypatch, 5, EVER)
    with (
        pytest.warns(UserWarning, match="a save failed"),
        pytest.raises(CheckpointError, match="No space left"),
    ):
        fit(tmp_path, tolerate_failed_saves=True, async_saving=in_background)
    assert saved(tmp_path) == ["line_epoch_1_iter_1.pth", "line_epoch_1_iter_2.pth"]


def test_a_save_in_the_background_that_fails_surfaces_at_the_next_one(tmp_path, monkeypatch):
    SaveFails(monkeypatch, 1, EVER)
    made = trainer(tmp_path, steps=5, chkpt_frequency=1, async_saving=True)
    made.train_exceptions.append(CheckpointError)
    with pytest.raises(CheckpointError, match=r"iter_1\.pth"):
        made.fit(zoo.Line(), Batches(zoo.regression(5)))
    assert made.state.current_iteration == 2


def test_the_failure_of_the_last_save_in_the_background_surfaces_at_the_end(tmp_path, monkeypatch):
    SaveFails(monkeypatch, 5, EVER)
    with pytest.raises(CheckpointError, match=r"iter_3\.pth"):
        fit(tmp_path, async_saving=True)


@pytest.mark.parametrize("tolerant", [False, True])
def test_a_fit_whose_folder_cannot_be_made_says_so_before_it_trains(
    tmp_path, monkeypatch, tolerant
):
    class Fs(UnsyncedFs):
        def mkdir(self, folder):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(store_module, "OsFs", Fs)
    made = trainer(tmp_path / "runs", tolerate_failed_saves=tolerant)
    made.train_exceptions.append(CheckpointError)
    with pytest.raises(CheckpointError, match="Read-only file system") as failure:
        made.fit(zoo.Line(), Batches(zoo.regression(5)))
    assert failure.value.__cause__.errno == errno.EROFS
