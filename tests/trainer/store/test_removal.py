"""G2: a checkpoint that is being removed is there whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from helios.errors import CheckpointError
from helios.trainer.store import Store, find_last_checkpoint, read_checkpoint
from helios.trainer.store.commit import remove
from helios.trainer.store.reading import committed, last_valid
from tests.trainer.store import campaigns
from tests.trainer.store.damage import three_checkpoints
from tests.trainer.store.faulty import CountingFs, materialise
from tests.trainer.store.tiny import NAME, UnsyncedFs, stem


@pytest.fixture
def folder(tmp_path):
    materialise(three_checkpoints(), tmp_path / NAME)
    return tmp_path / NAME


def stems(folder):
    return [entry.stem for entry in committed(UnsyncedFs(), folder, NAME)]


def test_no_reader_and_no_crash_at_any_operation_sees_a_half_one():
    outcomes = campaigns.removal().outcomes
    assert set(outcomes) == {
        "read at an operation of a run",
        "whole beside a removal",
        "error beside a removal",
        "crash in a removal",
    }


def test_a_removal_leaves_nothing_of_it(folder):
    remove(UnsyncedFs(), folder, stem(2))
    assert not list(folder.glob("*iter_2*"))
    assert not list(folder.glob(".*iter_2*"))


def test_a_removal_is_over_with_its_first_operation(folder):
    with pytest.raises(OSError, match="full"):
        remove(CountingFs(UnsyncedFs(), 2, lambda: OSError(errno.ENOSPC, "full")), folder, stem(2))
    assert stems(folder) == [stem(3), stem(1)]
    with pytest.raises(CheckpointError, match="no manifest"):
        read_checkpoint(folder / f"{stem(2)}.pth")


def test_a_removal_that_was_cut_off_is_no_stranger_to_readers(folder):
    with pytest.raises(OSError, match="full"):
        remove(CountingFs(UnsyncedFs(), 2, lambda: OSError(errno.ENOSPC, "full")), folder, stem(2))
    _, path = last_valid(UnsyncedFs(), folder, NAME)  # and warns of nothing
    assert path.stem == stem(3)


def test_a_removal_that_was_cut_off_is_finished_by_the_next_run(folder):
    with pytest.raises(OSError, match="full"):
        remove(CountingFs(UnsyncedFs(), 2, lambda: OSError(errno.ENOSPC, "full")), folder, stem(2))
    Store(folder, fs=UnsyncedFs()).close()
    assert sorted(path.stem for path in folder.glob("*.pth")) == [stem(1), stem(3)]
    assert not [path for path in folder.glob(".*") if path.name != ".lock"]


def test_the_last_checkpoint_is_not_one_that_is_being_removed(folder):
    (folder / f"{stem(3)}.json").rename(folder / f".{stem(3)}.json")
    assert find_last_checkpoint(folder) == folder / f"{stem(2)}.pth"


@pytest.mark.parametrize("looks", range(1, 10))
def test_a_checkpoint_that_goes_away_is_no_error_to_who_looks_for_the_last(
    folder, looks, monkeypatch
):
    stat, count = Path.stat, 0

    def stat_late(path, **arguments):
        nonlocal count
        if path.suffix in {".pth", ".json"}:
            count += 1
            if count == looks:
                monkeypatch.setattr(Path, "stat", stat)
                remove(UnsyncedFs(), folder, stem(1))
        return stat(path, **arguments)

    monkeypatch.setattr(Path, "stat", stat_late)
    assert find_last_checkpoint(folder) == folder / f"{stem(3)}.pth"
