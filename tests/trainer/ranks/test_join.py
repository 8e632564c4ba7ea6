from __future__ import annotations

import pytest

from tests.trainer.ranks import bodies, world


@pytest.mark.parametrize("agent", [True, False])
def test_ranks_join_and_leave_no_group_behind(agent):
    assert world.values(world.run(bodies.look_at_what_is_joined, 3, agent=agent)) == [
        [rank, rank, 3, "gloo", False] for rank in range(3)
    ]


def test_one_rank_can_join():
    outcomes = world.run(bodies.look_at_what_is_joined, 1)
    assert world.values(outcomes) == [[0, 0, 1, "gloo", False]]


@pytest.mark.parametrize("agent", [True, False])
def test_a_process_can_join_twice(agent):
    assert world.values(world.run(bodies.join_twice, 3, agent=agent)) == [[3.0, 3.0]] * 3


@pytest.mark.parametrize("agent", [True, False])
def test_a_group_of_the_user_is_used_and_lives_on(agent):
    outcomes = world.run(bodies.use_a_group_of_the_user, 3, agent=agent)
    assert world.values(outcomes) == [[3.0, 3.0, 3.0]] * 3


def test_a_rank_that_does_not_come_is_named():
    waiting, raised, waiting_too = world.run(bodies.raise_before_joining, 3)
    assert "ValueError: rank blew up" in raised.output
    for rank, outcome in ((0, waiting), (2, waiting_too)):
        said = f"rank {rank} waited 2 s at 127.0.0.1:"
        assert said in outcome.output, world.explain([outcome])
        assert "1 did not come: rank 1." in outcome.output
        assert outcome.status == 1
        assert outcome.seconds < bodies.TIMEOUT + 5


def test_a_rendezvous_is_refused_where_there_is_a_group():
    for outcome in world.run(bodies.join_a_group_that_is_there, 2):
        assert "ValueError: rendezvous: there is a default group already" in outcome.output


def test_joining_needs_a_rendezvous_or_a_group():
    (outcome,) = world.run(bodies.join_nothing, 1)
    assert "ValueError: rendezvous: received None" in outcome.output
