"""How spawned ranks ended, and what that makes of the run."""

from __future__ import annotations

import signal

import msgspec

from helios.errors import RankError
from helios.trainer.ranks.child import UNGUARDED, unguarded
from helios.trainer.signals import stop_by


class RankTraceback(Exception):  # noqa: N818 - it is the cause of an error, and none itself
    """The traceback of a rank, as text, for the cause of the exception that it raised.

    Args:
        rank: which one.
        text: its traceback.
    """

    def __init__(self, rank: int, text: str) -> None:
        super().__init__(f'\n"""\nrank {rank}:\n{text.rstrip()}\n"""')


class End(msgspec.Struct, frozen=True):
    """How a rank ended.

    Args:
        rank: which one.
        seconds: when, on the monotonic clock.
        status: its exit status; of a signal, the negative number; None while it runs.
        began: whether it got as far as its work.
        done: whether its work returned.
        error: what it raised; None if nothing, or if it cannot be rebuilt here.
        text: the traceback; empty if it raised nothing.
        forced: the signal by which it was ended, if until then it had not said how its work ended.
        asked: the signal by which the run was asked to stop.
    """

    rank: int
    seconds: float
    status: int | None
    began: bool = False
    done: bool = False
    error: BaseException | None = None
    text: str = ""
    forced: signal.Signals | None = None
    asked: int | None = None

    @property
    def is_failure(self) -> bool:
        """Whether its work did not return: it raised, or the rank has ended without a word."""
        return bool(self.text) or (not self.done and self.status is not None)

    @property
    def is_stop(self) -> bool:
        """Whether it left as it was asked to: as a signal ends a process, or by ``sys.exit()``."""
        if self.forced is not None:
            return False
        if self.text:
            return isinstance(self.error, KeyboardInterrupt) or self._left
        return self.asked is not None and self.status == -self.asked

    @property
    def _left(self) -> bool:
        if not isinstance(self.error, SystemExit):
            return False
        code = self.error.code
        return code is None or (isinstance(code, int) and (code == 0 or code > 128))

    @property
    def is_unguarded(self) -> bool:
        """Whether it was about to start ranks of its own as it imported the main module."""
        return self.status == UNGUARDED and not self.began

    @property
    def order(self) -> tuple[int, float]:
        """Failures in their order: what others died of comes first.

        A `RankError` is what a rank says of another one, and a status without a word is how a
        rank's watcher ends it because of another one. What was ended by force caused nothing.
        """
        if self.forced is not None:
            kind = 4
        elif self.is_stop:
            kind = 1
        elif isinstance(self.error, RankError) and self.error.rank != self.rank:
            kind = 2
        elif not self.text and (self.status or 0) >= 0 and self.began:
            kind = 3
        else:
            kind = 0
        return kind, self.seconds


def raise_first(ends: list[End]) -> None:
    """Raise the first failure of a run; return if there is none.

    Args:
        ends: of all ranks, which have all ended.

    Raises:
        BaseException: what the rank raised that failed first, with its traceback as the cause.
        RankError: if that cannot be rebuilt here, or if the rank ended without a word.
        KeyboardInterrupt: if the ranks were stopped by SIGINT.
        SystemExit: if they were stopped by another signal, with the status 128 + number, or left.
    """
    failures = sorted((end for end in ends if end.is_failure), key=lambda end: end.order)
    if not failures:
        return
    first = failures[0]
    error = _error(first)
    if not first.is_stop and not first.is_unguarded:
        for end in failures[1:]:
            if end.forced is not None:
                error.add_note(f"Rank {end.rank} did not end, and was ended by {end.forced.name}.")
            elif end.order[0] == 0:
                error.add_note(f"Rank {end.rank} failed as well: {_line(end)}")
    says_more = bool(first.text) and not first.is_stop
    cause = RankTraceback(first.rank, first.text) if says_more else None
    raise error from cause


def _error(end: End) -> BaseException:
    if end.error is not None:
        if not end.is_stop:
            end.error.add_note(f"This was raised on rank {end.rank}.")
        return end.error
    if end.is_stop and end.asked is not None:
        return stop_by(end.asked)
    if end.is_unguarded:
        return RankError(unguarded())
    return RankError(_line(end), rank=end.rank)


def _line(end: End) -> str:
    who = f"rank {end.rank}"
    if end.text:
        return f"{who} raised {end.text.rstrip().splitlines()[-1]}"
    status = end.status or 0
    if status < 0:
        name = _name(-status)
        why = "; the system does that if memory is short" if name == "SIGKILL" else ""
        return f"{who} was killed by {name}{why}. See what it printed last."
    if not end.began:
        return (
            f"{who} ended with status {status} before its work began. It imports the main script "
            "anew, which may have failed, or is not a file that can be imported; see what it "
            "printed, or start the script with torchrun."
        )
    return f"{who} ended with status {status} in the middle of its work; see what it printed last."


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
