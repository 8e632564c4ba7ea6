"""C4: what was changed is never loaded."""

from __future__ import annotations

import os
import shutil

import pytest

import helios
from helios.errors import CorruptCheckpointError
from helios.trainer.store import read_checkpoint
from helios.trainer.store.fs import OsFs
from helios.trainer.store.reading import last_valid
from tests.trainer.runs import run
from tests.trainer.store import campaigns
from tests.trainer.store.damage import regions


def test_no_damage_is_loaded():
    counts = campaigns.corruption(trials=2000)
    assert counts.trials == 2000
    assert set(counts.outcomes) == {
        "emptied",
        "cut",
        "zeros",
        "bit in directory",
        "bit in header",
        "bit in pickle",
        "bit in tensors",
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    run(root, steps=3, chkpt_frequency=1)
    return root / "line"


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "line")


def files(folder, step):
    return [folder / f"line_epoch_1_iter_{step}.{kind}" for kind in ("pth", "json")]


def swap(a, b):
    aside = a.with_name("aside")
    os.rename(a, aside)
    os.rename(b, a)
    os.rename(aside, b)


def test_every_byte_of_a_file_is_in_one_region(folder):
    data = files(folder, 3)[0].read_bytes()
    places = [place for kind in regions(data).values() for place in kind]
    assert sorted(places) == list(range(len(data)))


@pytest.mark.parametrize("kinds", [(0,), (1,), (0, 1)], ids=["files", "manifests", "both"])
def test_swapped_steps_are_passed_over_for_the_one_before_them(folder, kinds):
    whole = read_checkpoint(files(folder, 1)[0])
    for kind in kinds:
        swap(files(folder, 2)[kind], files(folder, 3)[kind])
    with pytest.warns(UserWarning, match="passed over") as said:
        content, path = last_valid(OsFs(), folder, "line")
    assert path == files(folder, 1)[0]
    assert helios.first_difference(content, whole) is None
    assert len(said) == 2


@pytest.mark.parametrize("kinds", [(0,), (1,), (0, 1)], ids=["files", "manifests", "both"])
@pytest.mark.parametrize("step", [2, 3])
def test_swapped_steps_are_not_read(folder, kinds, step):
    for kind in kinds:
        swap(files(folder, 2)[kind], files(folder, 3)[kind])
    with pytest.raises(CorruptCheckpointError):
        read_checkpoint(files(folder, step)[0])


@pytest.mark.parametrize("kind", [0, 1], ids=["file", "manifest"])
def test_an_empty_file_is_not_read(folder, kind):
    files(folder, 3)[kind].write_bytes(b"")
    with pytest.raises(CorruptCheckpointError):
        read_checkpoint(files(folder, 3)[0])


def test_where_nothing_is_whole_all_are_named(folder):
    for step in (1, 2, 3):
        files(folder, step)[0].write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(CorruptCheckpointError, match="none of the 3") as failure,
    ):
        last_valid(OsFs(), folder, "line")
    assert all(files(folder, step)[0].name in str(failure.value) for step in (1, 2, 3))


def test_what_is_broken_stays_on_the_disk(folder):
    before = sorted(path.name for path in folder.iterdir())
    files(folder, 3)[0].write_bytes(b"")
    with pytest.warns(UserWarning, match="passed over"):
        last_valid(OsFs(), folder, "line")
    assert sorted(path.name for path in folder.iterdir()) == before
