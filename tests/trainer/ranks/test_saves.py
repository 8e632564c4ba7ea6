"""R3: rank 0 cannot save, all ranks know it at the same step, and nothing saved is lost."""

from __future__ import annotations

import os

import pytest

from helios.functional.tree import first_difference
from tests.trainer.ranks import disks, small, world

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
SECOND = 1
"""The save that fails: that after update 8."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run on two ranks, and the folder of it."""
    folder = tmp_path_factory.mktemp("whole")
    world.values(world.run(disks.fit, args=(str(folder),)))
    return folder


def fail(folder, at, *, lasting=False, arguments=None):
    return world.run(disks.fit, args=(str(folder), at, lasting, arguments or {}))


def check_named(outcomes):
    assert [outcome.status for outcome in outcomes] == [1, 1], world.explain(outcomes)
    assert "helios.errors.CheckpointError: " in outcomes[0].output, world.explain(outcomes)
    assert "rank 0 failed first" in outcomes[1].output, world.explain(outcomes)
    assert "helios.errors.CheckpointError: " in outcomes[1].output, world.explain(outcomes)
    assert os.strerror(disks.ERROR) in outcomes[1].output, world.explain(outcomes)


def check_resumed(folder, whole):
    """The run goes on to the bits of one that was not interrupted."""
    world.values(world.run(disks.fit, args=(str(folder),)))
    assert first_difference(small.contents(folder), small.contents(whole)) is None


def check_failed_save(root, whole, operations, *, lasting=False, arguments=None, at_update=8):
    """Let each operation fail; the run ends on all ranks at once, and goes on."""
    for at in operations:
        folder = root / str(at)
        folder.mkdir()
        outcomes = fail(folder, at, lasting=lasting, arguments=arguments)
        check_named(outcomes)
        first, second = disks.ended(folder, 2)
        assert first == second
        assert first["current_iteration"] == at_update, (at, first)
        # It may be on the disk after all, if what failed came after it.
        assert small.update(folder) in (4, 8), small.every(folder)
        check_resumed(folder, whole)


def test_a_save_of_rank_0_that_fails_at_any_operation_ends_all_ranks_at_that_step(tmp_path, whole):
    check_failed_save(tmp_path, whole, disks.operations(whole, SECOND, every=NIGHTLY))


@pytest.mark.nightly
@pytest.mark.skipif(not NIGHTLY, reason="the same again")
def test_a_disk_that_fails_for_good_ends_all_ranks_at_the_same_step(tmp_path, whole):
    check_failed_save(tmp_path, whole, disks.operations(whole, SECOND), lasting=True)


def some(whole):
    """Return every operation of the second save, or some of each kind."""
    operations = disks.operations(whole, SECOND, every=NIGHTLY)
    return operations if NIGHTLY else operations[::3]


def test_a_save_in_the_background_that_fails_ends_all_ranks_at_the_next_one(tmp_path, whole):
    check_failed_save(
        tmp_path, whole, some(whole), arguments={"async_saving": True}, at_update=small.UPDATES
    )


@pytest.mark.parametrize("async_saving", [False, True])
def test_a_failed_save_that_is_tolerated_changes_nothing_of_the_run(tmp_path, whole, async_saving):
    arguments = {"tolerate_failed_saves": True, "async_saving": async_saving}
    for at in some(whole):
        folder = tmp_path / str(at)
        folder.mkdir()
        outcomes = fail(folder, at, arguments=arguments)
        world.values(outcomes)
        assert "a save failed, and the run goes on" in outcomes[0].output
        assert disks.ended(folder, 2) == disks.ended(whole, 2)
        assert first_difference(small.contents(folder), small.contents(whole)) is None


def test_the_last_save_that_fails_ends_all_ranks_even_if_failures_are_tolerated(tmp_path, whole):
    last = disks.operations(whole, 2)[0]
    for async_saving in (False, True):
        folder = tmp_path / str(async_saving)
        folder.mkdir()
        arguments = {"tolerate_failed_saves": True, "async_saving": async_saving}
        check_named(fail(folder, last, lasting=True, arguments=arguments))
        first, second = disks.ended(folder, 2)
        assert first == second
        check_resumed(folder, whole)


def test_a_folder_that_cannot_be_opened_ends_all_ranks(tmp_path):
    (tmp_path / small.NAME).write_text("in the way")
    outcomes = world.run(small.fit, args=(str(tmp_path), {"rank_timeout": 3.0}))
    assert [outcome.status for outcome in outcomes] == [1, 1], world.explain(outcomes)
    assert "rank 0 failed first" in outcomes[1].output
    assert "CheckpointError: chkpt_root: " in outcomes[1].output
