"""S1: some ranks get a signal, and all of them save at the same step, leave and go on exactly."""

from __future__ import annotations

import functools
import json
import os
import random
import select
import signal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from helios.functional.tree import first_difference
from tests.trainer.ranks import signalled, small, world
from tests.trainer.ranks.signalled import Config, Shot

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
SIGNALS = [signal.SIGTERM, signal.SIGINT]
PLAIN = Config()


class Whole(NamedTuple):
    """A run that nothing happened to, and how many calls each rank made."""

    contents: dict[str, Any]
    calls: list[int]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What returns the uninterrupted run of a config."""

    @functools.cache
    def play(config: Config) -> Whole:
        folder = tmp_path_factory.mktemp("whole")
        world.values(run(folder, config))
        calls = [int((folder / f"calls-{rank}").read_text()) for rank in range(config.ranks)]
        return Whole(small.contents(folder), calls)

    return play


def run(folder, config, shots=None):
    plain = None if shots is None else msgspec.to_builtins(shots)
    args = (str(folder), msgspec.to_builtins(config), plain)
    return world.run(signalled.fit, config.ranks, args=args, timeout=30)


def counters(folder, name, ranks):
    """Return the counters that the ranks wrote down; None for one that wrote none."""
    paths = [Path(folder, f"{name}-{rank}.json") for rank in range(ranks)]
    return [json.loads(path.read_text()) if path.exists() else None for path in paths]


def check_left(folder, config, shot, outcomes):
    """All ranks have left by the signal, at the same step, soon after it, and it is saved."""
    told = world.explain(outcomes)
    assert [outcome.status for outcome in outcomes] == [128 + shot.number] * config.ranks, told
    ended = counters(folder, "ended", config.ranks)
    assert all(one == ended[0] for one in ended), ended
    hits = [hit for hit in counters(folder, "hit", config.ranks) if hit is not None]
    assert hits
    # The first one to be told decides, of those that learned of it before the others.
    soonest = min(hit["current_iteration"] for hit in hits)
    assert soonest <= ended[0]["current_iteration"] <= soonest + 1, (hits, ended)
    assert ended[0]["window_iter"] == 0
    saved = small.newest(folder)[0]["training_state"]
    # Within an event beside the updates it may be the state before it, which repeats the event.
    for name in ("current_iteration", "global_iteration", "window_iter"):
        assert saved[name] == ended[0][name]


def check_resumed(folder, config, whole):
    world.values(run(folder, config, []))
    assert first_difference(small.contents(folder), whole(config).contents) is None


def check_no_reader_is_left(folder):
    """No process that read data lives."""
    for path in folder.glob("reader-*"):
        try:
            handle = os.pidfd_open(int(path.name.split("-")[1]))
        except ProcessLookupError:
            continue
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        assert poll.poll(5000), f"{path.name} lives"
        os.close(handle)


def draw(seed: int, whole) -> tuple[Config, Shot]:
    """Return a random run and a random shot."""
    drawn = random.Random(seed)
    config = drawn.choice(
        [
            PLAIN,
            PLAIN,
            Config(ranks=3),
            Config(accumulation=2),
            Config(reduction="canonical"),
            Config(unit="epoch"),
            Config(unit="epoch", accumulation=2),
        ]
    )
    config = msgspec.structs.replace(
        config, workers=drawn.choice([0, 0, 2]), async_saving=drawn.random() < 0.3
    )
    rank = drawn.randrange(config.ranks)
    every = list(range(config.ranks))
    to = drawn.choice([[rank], [(rank + 1) % config.ranks], every])
    call = drawn.randint(1, whole(config).calls[rank])
    return config, Shot(drawn.choice(SIGNALS), rank, to, call=call)


def check_shot(folder, whole, config, shot):
    check_left(folder, config, shot, run(folder, config, [shot]))
    check_no_reader_is_left(folder)
    check_resumed(folder, config, whole)


@pytest.mark.parametrize("seed", range(15))
def test_a_signal_at_any_time_stops_all_ranks_at_one_step_and_the_run_goes_on(
    tmp_path, whole, seed
):
    check_shot(tmp_path, whole, *draw(seed, whole))


@pytest.mark.nightly
@pytest.mark.skipif(not NIGHTLY, reason="the same, 85 times more")
@pytest.mark.parametrize("seed", range(15, 100))
def test_a_signal_at_any_time_stops_all_ranks_at_one_step_always(tmp_path, whole, seed):
    check_shot(tmp_path, whole, *draw(seed, whole))


HOOKS = [
    ("on_training_batch_start", 5, 5),
    ("on_training_batch_end", 5, 6),  # the votes of that update are cast
    ("on_validation_batch_end", 8, 8),
    ("on_training_epoch_end", 6, 6),
    ("append_metadata_to_chkpt_name", 8, 8),
]


@pytest.mark.parametrize(("hook", "at", "saved"), HOOKS)
def test_a_signal_in_a_hook_is_answered_at_the_end_of_the_event_or_of_the_next_update(
    tmp_path, whole, hook, at, saved
):
    shot = Shot(signal.SIGTERM, 0, [0], hook=(hook, at))
    check_left(tmp_path, PLAIN, shot, run(tmp_path, PLAIN, [shot]))
    assert counters(tmp_path, "hit", 2)[0]["current_iteration"] == at
    assert small.update(tmp_path) == saved
    check_resumed(tmp_path, PLAIN, whole)


@pytest.mark.parametrize("micro_batch", [4, 5, 6, 7])
def test_a_signal_inside_a_window_is_answered_at_an_end_of_a_window(tmp_path, whole, micro_batch):
    config = Config(accumulation=2)
    shot = Shot(signal.SIGTERM, 1, [1], hook=("on_training_batch_start", micro_batch))
    check_shot(tmp_path, whole, config, shot)
    assert counters(tmp_path, "hit", 2)[1]["global_iteration"] == micro_batch


OPEN = Config(accumulation=2)
"""Windows of two micro-batches, of which the second is open at the end of an epoch of three."""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_at_an_epoch_s_end_inside_a_window_is_answered_at_the_window_s_end(
    tmp_path, whole, rank
):
    shot = Shot(signal.SIGTERM, rank, [rank], hook=("on_training_epoch_end", 3))
    check_left(tmp_path, OPEN, shot, run(tmp_path, OPEN, [shot]))
    assert counters(tmp_path, "hit", 2)[rank]["window_iter"] == 1
    assert counters(tmp_path, "ended", 2)[rank]["global_iteration"] == 4
    check_resumed(tmp_path, OPEN, whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_wish_to_stop_at_an_epoch_s_end_inside_a_window_is_granted_at_the_window_s_end(
    tmp_path, whole, rank
):
    shot = Shot(None, rank, [], hook=("on_training_epoch_end", 3))
    world.values(run(tmp_path, OPEN, [shot]))
    ended = counters(tmp_path, "ended", 2)
    assert [(one["global_iteration"], one["window_iter"]) for one in ended] == [(4, 0)] * 2
    check_resumed(tmp_path, OPEN, whole)


@pytest.mark.parametrize(
    ("number", "ranks"), [(signal.SIGTERM, [0]), (signal.SIGINT, [1]), (signal.SIGTERM, [0, 1])]
)
@pytest.mark.parametrize("hook", ["on_training_batch_end", "on_training_end"])
def test_a_signal_after_the_last_update_is_answered_by_all_ranks(
    tmp_path, whole, number, ranks, hook
):
    shots = [Shot(number, rank, [rank], hook=(hook, small.UPDATES)) for rank in ranks]
    check_left(tmp_path, PLAIN, shots[0], run(tmp_path, PLAIN, shots))
    check_resumed(tmp_path, PLAIN, whole)


def test_different_signals_to_different_ranks_stop_all_of_them(tmp_path, whole):
    hook = ("on_training_batch_end", 5)
    shots = [Shot(signal.SIGTERM, 0, [0], hook=hook), Shot(signal.SIGINT, 1, [1], hook=hook)]
    outcomes = run(tmp_path, PLAIN, shots)
    assert [outcome.status for outcome in outcomes] == [143, 130], world.explain(outcomes)
    assert small.update(tmp_path) == 6
    check_resumed(tmp_path, PLAIN, whole)


@pytest.mark.parametrize("hook", ["on_training_batch_end", "on_validation_batch_end"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_sigint_to_all_ranks_ends_them_at_once_with_the_store_valid(
    tmp_path, whole, hook, workers
):
    config = Config(workers=workers)
    shots = [Shot(signal.SIGINT, rank, [rank], hook=(hook, 8), times=2) for rank in (0, 1)]
    outcomes = run(tmp_path, config, shots)
    statuses = [outcome.status for outcome in outcomes]
    # One may see the end of the other before it comes to its own.
    assert sorted(statuses) in ([-signal.SIGINT] * 2, [-signal.SIGINT, 1]), world.explain(outcomes)
    assert small.every(tmp_path)
    check_no_reader_is_left(tmp_path)
    check_resumed(tmp_path, config, whole)


@pytest.mark.parametrize(
    ("rank", "hook"),
    [
        (0, "on_training_batch_end"),
        (1, "on_training_batch_end"),
        (0, "append_metadata_to_chkpt_name"),
    ],
)
def test_a_second_sigint_to_one_rank_ends_it_at_once_and_the_others_with_an_error(
    tmp_path, whole, rank, hook
):
    shot = Shot(signal.SIGINT, rank, [rank], hook=(hook, 8), times=2)
    outcomes = run(tmp_path, PLAIN, [shot])
    assert outcomes[rank].status == -signal.SIGINT, world.explain(outcomes)
    assert outcomes[1 - rank].status == 1, world.explain(outcomes)
    assert f"rank {rank} failed first" in outcomes[1 - rank].output
    assert small.every(tmp_path)
    check_resumed(tmp_path, PLAIN, whole)
