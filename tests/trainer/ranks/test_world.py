from __future__ import annotations

import os
import signal
import sys

import pytest
import torch
import torch.distributed as dist

from tests.trainer.ranks import world


def rank_of_args(*args):
    return [int(os.environ["RANK"]), *args]


def fail_on_rank_1():
    if os.environ["RANK"] == "1":
        raise ValueError("rank 1 will not")


def leave_as_told():
    rank = int(os.environ["RANK"])
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(rank + 2)


def wait_for_ever():
    signal.pause()


def sum_of_ranks():
    value = torch.tensor(world.join())
    dist.all_reduce(value)
    world.leave()
    return value.item()


def test_what_ranks_return_comes_back_in_their_order():
    assert world.values(world.run(rank_of_args, 3, args=(7, "x"))) == [
        [rank, 7, "x"] for rank in range(3)
    ]


def test_a_rank_that_raises_has_its_traceback_in_its_output():
    first, second = world.run(fail_on_rank_1)
    assert first.status == 0
    assert second.status == 1
    assert "ValueError: rank 1 will not" in second.output


def test_exit_statuses_and_signals_are_told():
    outcomes = world.run(leave_as_told)
    assert [outcome.status for outcome in outcomes] == [-signal.SIGKILL, 3]


def test_what_does_not_end_is_killed_and_said_to_be_late():
    outcomes = world.run(wait_for_ever, timeout=0.3)
    assert all(outcome.timed_out and outcome.status == -signal.SIGKILL for outcome in outcomes)


@pytest.mark.parametrize("agent", [True, False])
def test_ranks_find_each_other(agent):
    assert world.values(world.run(sum_of_ranks, 4, agent=agent)) == [6] * 4
