"""The fault injection campaigns against the store, with as many trials as one likes.

The tests run them with small numbers; a torture run imports them with large ones:

    from tests.trainer.store import campaigns
    print(campaigns.power_loss(trials=1000, seed=7))

Every function takes a ``seed``, makes its own temporary folder, returns `Counts`, and raises
`Violation`, which names the place and the seed, at the first trial that breaks what must hold.
"""

from __future__ import annotations

from typing import NamedTuple


class Violation(AssertionError):  # noqa: N818 it is one
    """The store broke a promise; the message says where, and what is to be passed to see it again."""


class Counts(NamedTuple):
    """What a campaign did.

    Args:
        trials: how many faults were injected and judged.
        outcomes: how many trials ended in which way, by name.
    """

    trials: int
    outcomes: dict[str, int]


def process_death(seed: int = 0) -> Counts:
    """C1: the process dies before and after every operation of a run, and of the recovery."""
    raise NotImplementedError


def power_loss(trials: int = 20, seed: int = 0) -> Counts:
    """C3: the power fails at every operation, with ``trials`` random losses at each."""
    raise NotImplementedError


def operations_failed(seed: int = 0) -> Counts:
    """C5: every operation fails, with each error, once and from then on, before and after it."""
    raise NotImplementedError


def corruption(trials: int = 2000, seed: int = 0) -> Counts:
    """C4: ``trials`` checkpoints are cut short, changed or swapped, and then read."""
    raise NotImplementedError


def removal(seed: int = 0) -> Counts:
    """G2: a reader at every operation of a removal, and a crash there."""
    raise NotImplementedError


def lock_contest(rounds: int = 50, seed: int = 0) -> Counts:
    """C7: two processes ask for one lock at the same moment, ``rounds`` times."""
    raise NotImplementedError
