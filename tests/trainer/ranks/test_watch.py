"""However a run fails on one rank, it ends on all, in time, and says which was the first."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from tests.trainer.ranks import bodies, world

DEADLINE = bodies.TIMEOUT + 5.0  # seconds from the failure to the last exit
BLEW_UP = ("ValueError: rank blew up", "in blow_up")
DIED = ("ended without a word",)
STALLED = "did not come to where others waited for it"
EARLY = "ended its work while other ranks waited for it in a collective"
CASES = {
    # what happens on rank 1: the words for it on the other ranks
    "raises": BLEW_UP,
    "raises_with_a_collective_under_way": BLEW_UP,
    "raises_while_others_compute": BLEW_UP,
    "raises_after_the_last_collective": BLEW_UP,
    "is_killed": DIED,
    "is_killed_after_the_last_collective": DIED,
    "is_ended_by_native_code": DIED,
    "stalls_in_a_sleep": (STALLED, "in sleep_for_ever"),
    "stalls_on_an_event": (STALLED, "in wait_for_ever"),
    "stalls_in_a_loop": (STALLED, "in spin_for_ever"),
    "returns_early": (EARLY,),
    "leaves_with_status_0": ("SystemExit: 0", "in leaves_with_status_0"),
    "leaves_with_status_3": ("SystemExit: 3", "in leaves_with_status_3"),
    "is_interrupted": ("KeyboardInterrupt", "in is_interrupted"),
    "has_no_memory": ("MemoryError", "in has_no_memory"),
    "cannot_say_what": ("SilentError",),
}


def check(outcomes, first, words):
    """Every rank ends in time and with a failure; the others name the first one, and why."""
    story = world.explain(outcomes)
    assert all(outcome.status != 0 for outcome in outcomes), story
    assert max(outcome.seconds for outcome in outcomes) < DEADLINE, story
    for rank, outcome in enumerate(outcomes):
        if rank != first:
            assert f"rank {first} failed first" in outcome.output, story
            assert all(word in outcome.output for word in words), story


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("ranks", "agent"), [(4, True), (2, False)])
def test_all_ranks_end_in_time_and_name_the_first(case, ranks, agent):
    check(world.run(bodies.run, ranks, args=(case,), agent=agent), 1, CASES[case])


@pytest.mark.parametrize("case", ["raises", "is_killed", "stalls_in_a_sleep", "returns_early"])
def test_it_is_the_same_in_a_group_of_the_user(case):
    outcomes = world.run(bodies.run_in_a_group_of_the_user, 2, args=(case,))
    check(outcomes, 1, CASES[case])


@pytest.mark.parametrize("agent", [True, False])
def test_the_rank_that_hosts_the_store_stays_until_the_others_know(agent):
    check(world.run(bodies.run, 3, args=("raises_on_rank_0",), agent=agent), 0, BLEW_UP)


@pytest.mark.parametrize("agent", [True, False])
def test_rank_0_may_be_killed(agent):
    outcomes = world.run(bodies.run, 3, args=("is_killed_on_rank_0",), agent=agent)
    check(outcomes, 0, () if not agent else DIED)


def test_a_rank_that_raises_shows_its_own_exception_alone():
    failed = world.run(bodies.run, 2, args=("raises",))[1]
    assert "ValueError: rank blew up" in failed.output
    assert "RankError" not in failed.output


def test_the_exit_status_of_the_first_is_its_own():
    assert world.run(bodies.run, 2, args=("leaves_with_status_3",))[1].status == 3


def test_the_first_failure_is_logged_once_on_every_rank():
    for case in ("raises", "stalls_in_a_sleep"):
        outcomes = world.run(bodies.run, 2, args=(case,))
        assert [o.output.count("noted 1") for o in outcomes] == [1, 1], world.explain(outcomes)


def test_the_words_for_where_the_run_is_are_told():
    outcomes = world.run(bodies.run, 2, args=("raises",))
    assert "rank 1 failed first (update 7)" in outcomes[0].output


def test_a_collective_of_another_shape_is_told():
    # gloo ends the process that gets the wrong size: on some rank, whichever is first to notice.
    outcomes = world.run(bodies.run, 3, args=("gives_another_shape",))
    story = world.explain(outcomes)
    (died,) = (rank for rank, outcome in enumerate(outcomes) if outcome.status < 0)
    check(outcomes, died, DIED)
    assert "collective mismatch" in outcomes[died].output, story
    assert "in gives_another_shape" in outcomes[died].output, story


def test_collectives_that_do_not_fit_each_other_are_shown_with_all_places():
    outcomes = world.run(bodies.run, 3, args=("calls_another_collective",))
    words = ("do not fit each other", "in broadcast", "in all_reduce")
    check(outcomes, 0, words)
    assert all(word in outcomes[0].output for word in words)


def test_two_ranks_that_raise_at_once_agree_on_the_first():
    outcomes = world.run(bodies.both_raise, 2)
    story = world.explain(outcomes)
    (later,) = (rank for rank, outcome in enumerate(outcomes) if "RankError" in outcome.output)
    check(outcomes, 1 - later, (f"words of rank {1 - later}", f"words of rank {later}"))
    assert f"words of rank {later}" not in outcomes[1 - later].output, story


def test_all_ranks_end_if_the_store_is_taken_away():
    environment = {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    outcomes = world.run(bodies.host_and_die, 3, agent=False, environment=environment)
    story = world.explain(outcomes)
    assert [outcome.status for outcome in outcomes] == [1, 1, 1], story
    assert max(outcome.seconds for outcome in outcomes) < DEADLINE, story
    assert all("what started the ranks failed first" in o.output for o in outcomes), story


def test_a_run_that_all_ranks_agree_to_leave_has_not_failed():
    outcomes = world.run(bodies.leave_in_agreement, 3)
    assert [outcome.status for outcome in outcomes] == [0, 0, 0], world.explain(outcomes)


def test_an_exception_after_the_agreement_still_fails_the_run():
    check(world.run(bodies.fail_after_an_agreement, 3), 1, BLEW_UP)


@pytest.mark.parametrize("agent", [True, False])
def test_a_run_that_ends_well_prints_nothing_and_does_not_hang(agent):
    for _ in range(25):
        outcomes = world.run(bodies.end_well, 3, agent=agent)
        assert world.values(outcomes) == [3.0] * 3
        assert [printed(outcome) for outcome in outcomes] == [[], [], []]


def printed(outcome):
    # The world keeps names from being looked up, which torch complains of.
    missing = "hostname of the client socket cannot be retrieved"
    return [line for line in outcome.output.splitlines() if missing not in line]


def test_ranks_that_are_started_again_at_the_same_store_see_nothing_old():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for restart in range(3):
        environment = {
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_RESTART_COUNT": str(restart),
        }
        outcomes = world.run(bodies.fail_at_first, 2, args=(2,), environment=environment)
        if restart < 2:
            check(outcomes, 1, BLEW_UP)
        else:
            assert world.values(outcomes) == [2.0, 2.0]
