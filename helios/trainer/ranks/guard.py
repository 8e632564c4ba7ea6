"""The body of a run on one rank: how it ends there is how it ends everywhere."""

from __future__ import annotations

import contextlib
import faulthandler
import re
import sys
import traceback
from collections.abc import Callable, Iterator

import torch.distributed as dist

from helios.errors import RankError
from helios.trainer.ranks.board import Failure
from helios.trainer.ranks.join import Joined, finish
from helios.trainer.ranks.watch import Watcher

_OF_GLOO = re.compile(
    r"gloo/transport/|Connection closed by peer|Connection reset by peer|"
    r"Application timeout caused pair closure|Timed out waiting \d+ms for"
)
_MOST_TEXT = 1 << 16  # characters of a traceback; the last ones


class Guard:
    """What the body of a run tells its guard."""

    def __init__(self, joined: Joined, watcher: Watcher) -> None:
        self.has_ended = False
        self._joined = joined
        self._watcher = watcher
        self._named: tuple[BaseException, BaseException] | None = None

    def ended(self) -> None:
        """Say that all ranks have agreed to end here.

        ``SystemExit`` and ``KeyboardInterrupt`` are no failure from here on, other exceptions are.
        """
        self.has_ended = True

    def named(self, error: BaseException) -> BaseException:
        """Post an exception that the body raised, and return the failure of the run.

        Args:
            error: the exception. It is looked at once: asked again, the answer is the same.

        Returns:
            The exception itself if it is the first failure; else a `RankError` that names it.
        """
        if self._named is None or self._named[0] is not error:
            self._named = error, self._name(error)
        return self._named[1]

    def _name(self, error: BaseException) -> BaseException:
        joined, watcher = self._joined, self._watcher
        left = isinstance(error, (SystemExit, KeyboardInterrupt))
        if left and self.has_ended:
            failure = finish(joined)
            if failure is None:
                return error
        else:
            failure = _post(joined, watcher, error)
        watcher.tell(failure)
        own = failure.rank == joined.rank and (left or failure.kind == "raised")
        if own and not _looks_like_success(error):
            return error
        named = rank_error(joined, failure)
        named.__cause__ = error
        return named


@contextlib.contextmanager
def guarded(
    joined: Joined,
    describe: Callable[[], str] = lambda: "",
    log: Callable[[Failure], None] = lambda failure: None,
    grace: float = 3.0,
) -> Iterator[Guard]:
    """Run the body of a fit so that a failure of any rank ends all of them, named.

    The rank that fails first posts its exception, which goes on unchanged. On the others,
    `RankError` is raised in the place of what they saw of it, from that, with the traceback of the
    first. Where a main thread does not get that far, its process is ended after the grace. At the
    end of the body, all ranks wait for each other: all have done their work, or none has.

    Keep what must not end in the middle, such as closing a log, outside of the body, and what can
    hang inside.

    Args:
        joined: the run.
        describe: says in words where the run is; it is called from other threads, too.
        log: is called once, with the first failure; what it raises is dropped.
        grace: seconds in which a main thread may leave by itself.

    Raises:
        RankError: if another rank failed first, or this one left by ``sys.exit(0)``.
    """
    with _stack_on_crash(), Watcher(joined.board, describe, log, grace) as watcher:
        guard = Guard(joined, watcher)
        try:
            yield guard
        except BaseException as error:
            named = guard.named(error)
            if named is error:
                raise
            raise named from error
        failure = finish(joined)
        if failure is not None:
            watcher.tell(failure)
            raise rank_error(joined, failure)


def rank_error(joined: Joined, failure: Failure) -> RankError:
    """Return the error of a run in which this is the first failure."""
    return RankError(f"[rank {joined.rank}] the run failed: {failure}", rank=failure.rank)


def is_of_a_peer(error: BaseException) -> bool:
    """Tell whether an exception is what is seen of the failure of another rank.

    It is if a collective or the store failed, or something that was raised because of that.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, dist.DistError):
            return True
        if isinstance(cause, RuntimeError) and _OF_GLOO.search(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _post(joined: Joined, watcher: Watcher, error: BaseException) -> Failure:
    blamed = error.rank if isinstance(error, RankError) else joined.rank
    waited = is_of_a_peer(error) or blamed != joined.rank
    failure = Failure(
        joined.rank,
        "waited" if waited else "raised",
        watcher.describe(),
        _formatted(error, traceback.format_exception_only).strip(),
        _formatted(error, traceback.format_exception)[-_MOST_TEXT:],
    )
    try:
        return joined.board.blame(failure) if waited else joined.board.post(failure)
    except RuntimeError:
        return joined.board.gone() if waited else failure


def _looks_like_success(error: BaseException) -> bool:
    """Tell whether a process that is left by an exception ends with status 0."""
    return isinstance(error, SystemExit) and error.code in (None, 0)


def _formatted(error: BaseException, form: Callable[[BaseException], list[str]]) -> str:
    try:
        return "".join(form(error))
    except Exception:  # without memory, or with a __str__ that fails
        return type(error).__name__


@contextlib.contextmanager
def _stack_on_crash() -> Iterator[None]:
    """Print the stack if native code ends the process, as gloo does if sizes do not match."""
    ours = not faulthandler.is_enabled()
    if ours:
        try:
            faulthandler.enable(sys.__stderr__ or 2)
        except (OSError, ValueError, AttributeError):  # there is no standard error
            ours = False
    try:
        yield
    finally:
        if ours:
            faulthandler.disable()
