"""Ranks that a parent starts: what it gives them, what comes back, and that none is left behind."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from queue import Queue

import pytest
import torch

from helios.errors import RankError
from helios.trainer.ranks.spawn import spawn
from tests.trainer.ranks import spawned

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

ROOT = Path(__file__).parents[3]


def run(work, world_size=2, args=(), grace=0.2):
    queue = Queue()
    result = spawn(work, world_size, args, grace=grace, queue=queue)
    return result, [queue.get() for _ in range(queue.qsize())]


def failure(work, **given):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run(work, **given)
    return caught.value


@pytest.fixture(scope="module")
def world():
    """What two ranks returned and put; of one world, since it takes seconds to start one."""
    tensor = torch.zeros(2)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    result, items = run(spawned.tell, args=(tensor,), grace=30.0)
    assert {number: signal.getsignal(number) for number in before} == before
    assert tensor.tolist() == [0.0, 0.0], "a rank has changed it"
    return result, items


@pytest.fixture(scope="module")
def facts(world):
    last = {rank: item for rank, number, item in world[1] if number == spawned.ITEMS}
    return [last[0], last[1]]


def test_what_rank_0_returns_comes_back_however_large(world):
    assert world[0] == spawned.large()


def test_all_items_of_the_queue_are_there_afterwards_in_the_order_of_each_rank(world):
    for rank in range(2):
        numbers = [number for r, number, _ in world[1] if r == rank]
        assert numbers == list(range(spawned.ITEMS + 1))


def test_every_rank_is_told_which_it_is(facts):
    assert [fact["ranks"] for fact in facts] == [(0, 0, 2), (1, 1, 2)]
    assert facts[0]["name"] == facts[1]["name"]


def test_each_rank_has_a_copy_of_a_tensor_and_all_reach_the_store(facts):
    assert [fact["tensors"] for fact in facts] == [["[0.0, 0.0]", "[1.0, 1.0]"]] * 2


def test_ranks_have_the_threads_that_the_parent_is_set_to(facts):
    assert [fact["threads"] for fact in facts] == [(1, "1")] * 2


def test_a_rank_leads_a_session_and_holds_no_signal_back(facts):
    assert all(fact["leads a session"] for fact in facts)
    assert all(fact["held"] == set() for fact in facts)


def test_ranks_put_what_can_be_pickled_and_get_nothing(facts):
    assert [fact["refused"] for fact in facts] == [["AttributeError", "RuntimeError"]] * 2


def test_a_process_of_a_rank_cannot_put(facts):
    assert [fact["refused in a fork"] for fact in facts] == [7, 7]


def test_the_exception_of_a_rank_comes_back_and_those_that_hang_are_killed():
    error = failure(spawned.refuse_on_rank_1)
    assert type(error) is spawned.Refusal
    assert error.amount == 3
    assert 'in refuse_on_rank_1\n    raise Refusal("not with rank 1"' in str(error.__cause__)
    assert error.__notes__ == [
        "This was raised on rank 1.",
        "Rank 0 did not end, and was ended by SIGKILL.",
    ]


def test_a_rank_that_is_killed_is_named_with_its_signal():
    error = failure(spawned.die_on_rank_1)
    assert type(error) is RankError
    assert error.rank == 1
    assert "rank 1 was killed by SIGKILL" in str(error)
    assert error.__notes__ == ["Rank 0 did not end, and was ended by SIGTERM."]


def test_what_cannot_be_rebuilt_on_a_rank_is_named():
    with pytest.raises(TypeError, match=r"cannot be rebuilt.*LookupError: made for process"):
        run(spawned.leave_a_thread, world_size=1, args=(spawned.Homesick(),))


def test_a_rank_that_lingers_after_its_work_is_ended_with_a_warning():
    with pytest.warns(RuntimeWarning, match="rank 0 had done its work, but did not end"):
        result, _ = run(spawned.leave_a_thread, world_size=1)
    assert result == b"done"


def test_a_result_that_is_not_bytes_is_refused():
    with pytest.raises(TypeError, match=r"work: received str from rank 0; expected bytes"):
        run(spawned.return_text, world_size=1)


def test_no_ranks_are_refused():
    with pytest.raises(ValueError, match="world_size: received 0"):
        run(spawned.return_text, world_size=0)


# Programs.


@contextlib.contextmanager
def program(*arguments):
    """A parent in a process group of its own; whatever is left at the end is killed."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        process_group=0,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def two_ranks():
    with program("-m", "tests.trainer.ranks.spawned") as process:
        pids = [int(process.stdout.readline()) for _ in range(2)]
        handles = [os.pidfd_open(pid) for pid in pids]
        try:
            yield process, pids, handles
        finally:
            for handle in handles:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                os.close(handle)


def wait_until_ended(handle, seconds=20.0):
    """Wait for the end of a process, of which this one need not be the parent."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    assert poll.poll(seconds * 1000), "the process lives on"


def wait_for_state(pid, states, seconds=20.0):
    end = time.monotonic() + seconds
    while (
        state := Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    ) not in states:
        assert time.monotonic() < end, f"{pid} is in the state {state}"
        select.select([], [], [], 0.01)


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="pidfd and /proc")


@needs_linux
@pytest.mark.parametrize(
    ("number", "raised", "status"),
    [
        (signal.SIGINT, "KeyboardInterrupt()", -signal.SIGINT),
        (signal.SIGTERM, "SystemExit(143)", 143),
    ],
)
def test_a_signal_to_the_parents_group_is_told_to_ranks_once_and_decides_its_end(
    number, raised, status
):
    with two_ranks() as (process, _, handles):
        os.killpg(process.pid, number)
        output, errors = process.communicate(timeout=30)
        for handle in handles:
            wait_until_ended(handle, 0.0)
    name = signal.Signals(number).name
    assert sorted(output.splitlines()) == sorted([f"{name} came"] * 2 + [raised])
    assert process.returncode == status
    assert "Traceback" not in errors or number == signal.SIGINT


@needs_linux
def test_ranks_are_suspended_with_their_parent_and_do_not_outlive_it():
    with two_ranks() as (process, pids, handles):
        os.kill(process.pid, signal.SIGTSTP)
        for pid in [*pids, process.pid]:
            wait_for_state(pid, "T")
        os.kill(process.pid, signal.SIGCONT)
        for pid in [*pids, process.pid]:
            wait_for_state(pid, "RS")
        process.kill()
        for handle in handles:
            wait_until_ended(handle)


def test_a_script_without_a_guard_is_told_to_have_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from queue import Queue\n"
        "from helios.trainer.ranks.spawn import spawn\n"
        "from tests.trainer.ranks.spawned import return_text\n"
        "print('one more')\n"
        "spawn(return_text, 2, (), grace=5.0, queue=Queue())\n"
    )
    with program(str(script)) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output == "one more\n" * 3
    assert errors.count("Traceback") == 1
    assert 'if __name__ == "__main__":' in errors
