"""Being of one mind: whether to leave, whether to stop, and what was measured, over all ranks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from helios.functional import metrics
from helios.functional.metrics import Mean, Metrics
from helios.trainer.ranks.ballot import Ballot
from helios.trainer.ranks.group import Ranks
from helios.trainer.signals import Interrupted, Signals


class Agreement:
    """What all ranks of a run decide alike.

    One rank alone leaves and stops wherever it is asked to. Several do so at the end of an update,
    where the wish of one has reached all of them with the gradients, and at the events beside the
    micro-batches, where they talk to each other anyway.

    Args:
        stop_asked: whether the user's hooks ask to stop.
        signals: what tells of signals, None for nothing.
        ranks: the ranks; by default one alone.
        in_order: how many pieces of each batch are this rank's, if metrics are to be added in the
            order of all pieces; see `Tally`.
        in_step: whether ranks wait for each other in every forward pass, so that none may hurry.
        polled: whether ranks talk to each other after every update, for want of gradients that
            would carry their wishes.

    Attributes:
        ballot: where this rank's wish is cast.
    """

    def __init__(
        self,
        stop_asked: Callable[[], bool],
        signals: Signals | None = None,
        ranks: Ranks | None = None,
        in_order: int = 0,
        in_step: bool = False,
        polled: bool = False,
    ) -> None:
        self._stop_asked = stop_asked
        self._signals = signals
        self._ranks = Ranks() if ranks is None else ranks
        self._alone = not self._ranks.several
        self._leaving: int | None = None
        self._in_step = in_step
        self._polled = polled
        self._stopping = False  # whether a hook of this rank has asked to stop, once for all
        self.in_order = in_order
        self.ballot = Ballot(lambda: self._received() is not None or self._asked())

    def check(self) -> None:
        """Leave the run between two events, if that was agreed on.

        Raises:
            Interrupted: if a signal has come, to whichever rank.
        """
        number = self._received() if self._alone else self._leaving
        if number is not None:
            raise Interrupted(number)

    def check_inside(self) -> bool:
        """Look for a signal within an event.

        Returns:
            Whether this rank is to hurry to the end of the event, since all will leave there.

        Raises:
            Interrupted: if a signal has come, and there is one rank alone.
        """
        if self._alone:
            self.check()
            return False
        return self._received() is not None and not self._in_step

    def after_update(self, *, is_last: bool) -> bool:
        """Tell whether to stop after a micro-batch.

        Args:
            is_last: whether it was the last of its window.
        """
        if self._alone:
            return self._stop_asked()
        self._asked()  # a hook that asks within a window, and not any more at its end, has asked
        if not is_last:
            return False
        return (self._polled or self.ballot.carried()) and self.after_event()

    def after_event(self, *, in_window: bool = False) -> bool:
        """Tell whether to stop after an event that is no micro-batch.

        Args:
            in_window: whether a window is open, as it can be at the end of an epoch. Each of
                several ranks then has sums of its own, which no checkpoint holds: all go on to its
                end.
        """
        if self._alone:
            return self._stop_asked()
        asked = self._asked()
        if in_window:
            return False
        told = self._ranks.exchange([self._received(), asked])
        self._leave([number for number, _ in told])
        return any(stop for _, stop in told)

    def at_end(self) -> None:
        """Take a signal that came to some rank since the last event as one of all ranks.

        The run is over then, but what started the ranks is to see them end alike.
        """
        if not self._alone:
            self._leave(self._ranks.exchange(self._received()))

    def of_first(self, value: Any) -> Any:
        """Return what rank 0 decided; the others' value is not looked at."""
        return value if self._alone else self._ranks.told_by_first(value)

    def all_have(self, value: bool) -> bool:
        """Tell whether something holds on all ranks; asked by all of them or by none."""
        return value if self._alone else all(self._ranks.exchange(value))

    def merged(self, own: Metrics) -> Metrics:
        """Return the metrics of all ranks, added in the order of the ranks."""
        if self._alone:
            return own
        whole = Tally()
        for told in self._ranks.exchange(packed([own])):
            whole.add(*unpacked(told))
        return whole.total()

    def whole(self, tally: Tally) -> Metrics:
        """Return the metrics of an evaluation, once every rank is through with it.

        Args:
            tally: those of this rank.

        Raises:
            Interrupted: if a rank got a signal; all of them leave.
        """
        if self._alone:
            return tally.total()
        told = self._ranks.exchange([self._received(), packed(tally.parts)])
        self._leave([number for number, _ in told])
        self.check()
        ranks = [unpacked(parts) for _, parts in told]
        whole, each = Tally(), max(tally.in_order, 1)
        for first in range(0, len(ranks[0]), each):
            for parts in ranks:
                for part in parts[first : first + each]:
                    whole.add(part)
        return whole.total()

    def _asked(self) -> bool:
        self._stopping = self._stopping or self._stop_asked()
        return self._stopping

    def _received(self) -> int | None:
        return None if self._signals is None else self._signals.received

    def _leave(self, numbers: list[int | None]) -> None:
        """Leave at the next place if a rank has got a signal: the one of the first such rank."""
        received = [number for number in numbers if number is not None]
        if received and self._leaving is None:
            self._leaving = received[0]
            if self._signals is not None:
                self._signals.received_elsewhere(received[0])


class Tally:
    """The metrics of an evaluation on this rank.

    Args:
        in_order: how many parts this rank has of each batch, if they are to be added in the order
            of all ranks' parts, as canonical reduction wants it; 0 to add them as they come.

    Example:
        >>> tally = Tally()
        >>> tally.add({"loss": Mean(1.0, 2)})
        >>> tally.add({"loss": Mean(2.0, 1)})
        >>> tally.total()["loss"].compute()
        1.0
    """

    def __init__(self, in_order: int = 0) -> None:
        self.in_order = in_order
        self.parts: list[Metrics] = [] if in_order else [{}]

    def add(self, part: Metrics) -> None:
        """Count the metrics of a batch, or of a piece of one."""
        if self.in_order:
            self.parts.append(part)
        else:
            self.parts[0] = metrics.merge(self.parts[0], part)

    def total(self) -> Metrics:
        """Return what was counted."""
        return functools.reduce(metrics.merge, self.parts, {})


def packed(parts: list[Metrics]) -> list[dict[str, list[float]]]:
    """Return metrics as numbers. Waits for the device."""
    return [
        {name: [float(mean.total), float(mean.weight)] for name, mean in part.items()}
        for part in parts
    ]


def unpacked(values: list[dict[str, list[float]]]) -> list[Metrics]:
    """Return what `packed` was given, as sums on the host."""
    return [{name: Mean(*numbers) for name, numbers in part.items()} for part in values]
