from __future__ import annotations

import pytest
import torch.distributed as dist

from helios.trainer.ranks.board import Answer, Board, Failure


@pytest.fixture
def boards():
    store = dist.HashStore()
    return [Board(store, rank, 3, hosting_rank=0) for rank in range(3)]


def raised(rank):
    return Failure(rank, "raised", "update 7", "ValueError: no", f"traceback of {rank}")


def waited(rank):
    return Failure(rank, "waited", "update 7", "Connection closed", f"traceback of {rank}")


def computing(rank):
    return Answer("update 7", f"stack of {rank}")


def in_collective(rank):
    return Answer("update 7", f"stack of {rank}", in_collective=True)


def test_there_is_no_failure_before_one_is_posted(boards):
    assert boards[0].failure() is None


def test_the_first_failure_stands(boards):
    assert boards[1].post(raised(1)) == raised(1)
    assert boards[2].post(raised(2)) == raised(1)
    assert boards[0].failure() == raised(1)


def test_a_failure_rings_every_bell(boards):
    boards[1].post(raised(1))
    for board in boards:
        board.wait_for_bell()


def test_an_own_bell_wakes_no_other(boards):
    boards[1].ring_own_bell()
    boards[1].wait_for_bell()
    assert not boards[0]._has("bell", 0)


def test_ranks_that_do_not_come_are_known(boards):
    boards[2].arrive(0)
    assert boards[0].arrive(0) == [1]


def test_all_ranks_come(boards):
    boards[2].arrive(0)
    boards[1].arrive(0)
    assert boards[0].arrive(0) == []


def test_an_exception_of_another_rank_goes_before_waiting_in_vain(boards):
    boards[1].post(raised(1))
    assert boards[0].blame(waited(0), patience=0) == raised(1)


def test_a_rank_that_does_not_answer_has_died(boards):
    boards[1].answer(computing(1))
    blamed = boards[0].blame(waited(0), patience=0)
    assert (blamed.rank, blamed.kind) == (2, "died")
    assert "rank 0 (update 7) noticed it: Connection closed" in blamed.message


def test_a_rank_that_answers_and_has_not_waited_has_stalled(boards):
    boards[1].answer(in_collective(1))
    boards[2].answer(computing(2))
    blamed = boards[0].blame(waited(0), patience=0)
    assert (blamed.rank, blamed.kind) == (2, "stalled")
    assert blamed.traceback == "stack of 2"


def test_a_rank_that_has_ended_while_others_wait_is_named(boards):
    for rank in (1, 2):
        boards[rank].answer(in_collective(rank))
    boards[1]._mark("finished")
    blamed = boards[0].blame(waited(0), patience=0)
    assert blamed.rank == 1
    assert "ended its work while other ranks waited" in blamed.message


def test_ranks_that_all_waited_have_collectives_that_do_not_fit(boards):
    for rank in (1, 2):
        boards[rank].answer(in_collective(rank))
    blamed = boards[0].blame(waited(0), patience=0)
    assert (blamed.rank, blamed.kind) == (0, "waited")
    assert "do not fit each other" in blamed.message
    assert "traceback of 0" in blamed.traceback


def test_all_ranks_finish(boards):
    for board in boards:
        board._mark("finished")
        board._store.add("finished", 1)
    boards[0]._store.set("agreed", "")
    assert [board.finish(0) for board in boards] == [None] * 3


def test_a_rank_may_finish_twice():
    alone = Board(dist.HashStore(), 0, 1)
    assert alone.finish(0) is None
    assert alone.finish(0) is None


def test_a_failure_is_told_to_a_rank_that_has_finished(boards):
    boards[1].post(raised(1))
    assert boards[0].finish(1.0) == raised(1)


def test_a_failure_in_words_has_all_that_is_known_of_it():
    assert str(raised(1)) == (
        "rank 1 failed first (update 7): ValueError: no\nThe traceback of rank 1:\ntraceback of 1"
    )


def test_without_a_rank_to_blame_it_is_what_started_them(boards):
    assert "rank 0 failed first: died" in str(boards[1].gone())
    assert "what started the ranks failed first: died" in str(Board(dist.HashStore(), 0, 1).gone())
