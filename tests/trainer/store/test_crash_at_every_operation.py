"""C1: a process that dies at any operation loses nothing that was acknowledged."""

from __future__ import annotations

import pytest

from tests.trainer.store import campaigns
from tests.trainer.store.faulty import CountingFs, PowerCut
from tests.trainer.store.judging import KEEP, Ledger, Run, judge
from tests.trainer.store.tiny import NAME, UnsyncedFs


@pytest.fixture(scope="module")
def counts():
    return campaigns.process_death()


def test_no_death_at_any_operation_loses_a_checkpoint_or_leaves_a_part_of_one(counts):
    assert counts.trials > 1000


@pytest.mark.parametrize("outcome", ["none", "acknowledged", "in flight"])
def test_the_deaths_lie_on_both_sides_of_the_commit(counts, outcome):
    assert counts.outcomes[outcome] > 50


def test_a_run_that_nobody_kills_ends_with_its_last_checkpoint(tmp_path):
    ledger = Ledger()
    folder = tmp_path / "runs" / NAME
    Run(UnsyncedFs(), folder, ledger).whole()
    assert (ledger.acknowledged, judge(folder, ledger)) == (5, "acknowledged")


def test_the_dead_clean_nothing_up(tmp_path):
    fs = CountingFs(UnsyncedFs(), at=30)
    with pytest.raises(PowerCut):
        Run(fs, tmp_path / "runs" / NAME, Ledger()).whole()
    assert fs.count == 30
    fs.bury()


def test_a_lost_checkpoint_is_seen(tmp_path):
    ledger = Ledger()
    folder = tmp_path / "runs" / NAME
    Run(UnsyncedFs(), folder, ledger).whole()
    for path in folder.glob("*iter_5.*"):
        path.unlink()
    with pytest.raises(campaigns.Violation, match="the newest is 4; acknowledged was 5"):
        judge(folder, ledger)


def test_something_left_behind_is_seen(tmp_path):
    ledger = Ledger()
    folder = tmp_path / "runs" / NAME
    Run(UnsyncedFs(), folder, ledger).whole()
    (folder / ".rest.tmp").touch()
    with pytest.raises(campaigns.Violation, match=r"left behind: \['.rest.tmp'\]"):
        judge(folder, ledger)


def test_the_run_keeps_what_its_retention_says(tmp_path):
    folder = tmp_path / "runs" / NAME
    Run(UnsyncedFs(), folder, Ledger()).whole()
    assert KEEP.last == 1
    assert [path.name for path in sorted(folder.glob("*.pth"))] == [
        "m_epoch_0_iter_4.pth",  # it is pinned
        "m_epoch_0_iter_5.pth",
    ]
