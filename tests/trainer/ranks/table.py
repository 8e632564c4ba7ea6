"""How a run ends if one of its ranks fails: every kind of failure in every place.

``python -m tests.trainer.ranks.table`` runs all of it, and writes what it saw as a table.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from tests.trainer.ranks import faulty, world
from tests.trainer.ranks.faulty import PLACES, WORDS, Fault

TIMEOUT = 2.0
"""Seconds that a rank waits for others."""

SLACK = 5.0
"""Seconds beyond it that the run may take to end."""

KINDS = ("raises", "is_killed", "sleeps", "spins", "calls_another_collective")
SAVING = ("state_dict of a plugin", "name of a checkpoint")
"""Places where rank 0 alone comes."""


class Case(NamedTuple):
    """A row of the table."""

    kind: str
    place: str
    rank: int
    ranks: int = 2

    @property
    def survivors(self) -> list[int]:
        """The ranks that live to tell of it."""
        dead = self.kind == "is_killed" and self.place != "worker"
        return [rank for rank in range(self.ranks) if not (dead and rank == self.rank)]


class Row(NamedTuple):
    """How a case ended.

    Args:
        case: what was done.
        statuses: the exit status of each rank.
        seconds: from the failure to the end of the last rank.
        named: for each rank, which one its output says failed first; None if it says nothing.
        shown: for each rank, whether its output has the traceback or the stack of that one.
        logged: how often the log of rank 0 holds the failure.
        output: of all ranks, for the message of a failed assertion.
    """

    case: Case
    statuses: list[int]
    seconds: float
    named: list[int | None]
    shown: list[bool]
    logged: int
    output: str


def cases(ranks: int = 2, failing: Iterable[int] = (0, 1)) -> list[Case]:
    """Return every kind in every place on some ranks, but for what cannot be.

    Rank 0 alone saves, and a worker is in no group of ranks.
    """
    return [
        Case(kind, place, rank, ranks)
        for place in PLACES
        for kind in KINDS
        for rank in failing
        if not (place in SAVING and rank != 0)
        and not (place == "worker" and kind == "calls_another_collective")
    ]


def play(case: Case, after: int = 5) -> Row:
    """Run a case.

    Args:
        case: what is to fail.
        after: the update after which it does.
    """
    with tempfile.TemporaryDirectory() as folder:
        fault = Fault(case.kind, case.place, case.rank, folder, after)
        outcomes = world.run(
            faulty.fit,
            case.ranks,
            args=(msgspec.to_builtins(fault), TIMEOUT),
            timeout=TIMEOUT + 4 * SLACK,
        )
        begin = min(faulty.noted(folder, f"begin-{rank}") for rank in range(case.ranks))
        failed = faulty.noted(folder, "fault") - begin
        log = faulty.log(folder)
    return Row(
        case,
        [outcome.status for outcome in outcomes],
        max(outcome.seconds for outcome in outcomes) - failed,
        [_named(case, rank, outcome.output) for rank, outcome in enumerate(outcomes)],
        [_shows(case, outcome.output) for outcome in outcomes],
        log.count("the run failed: "),
        f"{world.explain(outcomes)}\n--- log\n{log}",
    )


def _named(case: Case, rank: int, output: str) -> int | None:
    for other in range(case.ranks):
        if f"rank {other} failed first" in output:
            return other
    # A rank that raises shows its own traceback as Python does.
    return rank if "Traceback (most recent call last)" in output else None


def _shows(case: Case, output: str) -> bool:
    """Tell whether an output shows what the rank that failed was doing."""
    return all(words in output for words in _to_show(case))


def _to_show(case: Case) -> list[str]:
    if case.kind in ("raises", "has_no_memory"):
        return [f"in {case.kind}\n", f"Error: {WORDS}"]
    if case.kind == "calls_another_collective":  # nobody can tell whose is the wrong one
        everybody = [f"--- rank {rank}: " for rank in range(case.ranks)]
        return ["their collectives do not fit each other", *everybody]
    if case.place == "worker":  # the rank itself is seen to wait for it
        return ["was ended by SIGKILL" if case.kind == "is_killed" else "in _try_get_data\n"]
    if case.kind == "is_killed":
        return ["ended without a word: it was killed"]
    return [f"in {case.kind}\n"]


HEAD = """\
| what a rank does | where | rank | ranks | statuses | seconds | named |
|---|---|---|---|---|---|---|"""


def line(row: Row) -> str:
    """Return a row as a line of a table."""
    case = row.case
    cells = [
        case.kind.replace("_", " "),
        case.place,
        case.rank,
        case.ranks,
        ", ".join(map(str, row.statuses)),
        f"{row.seconds:.1f}",
        ", ".join("-" if rank is None else str(rank) for rank in row.named),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    sys.stdout.write(HEAD + "\n")
    for planned in [*cases(2), *cases(4, failing=(2,))]:
        sys.stdout.write(line(play(planned)) + "\n")
        sys.stdout.flush()
