"""What a child wraps around helios, to mark on the board where it is, and to be hit there."""

from __future__ import annotations

import functools
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from helios.data import EpochSource
from helios.data.feeds import WorkerFeed
from helios.functional.step import Step
from helios.trainer import loop as loops
from helios.trainer.loop import Loop
from helios.trainer.saving import Saver
from helios.trainer.signals import Signals
from helios.trainer.store import store as stores
from helios.trainer.store.fs import OsFs
from helios.trainer.store.store import Store
from tests.torture.aims import Aim
from tests.torture.board import Board, Phase, Saving

_OPERATIONS = [
    "create",
    "write",
    "fsync",
    "close",
    "open",
    "replace",
    "unlink",
    "listdir",
    "mkdir",
    "fsync_dir",
    "lock",
]


class Watch:
    """Counts how often this process comes to each point, and does there what is aimed.

    Args:
        board: what the harness sees.
        aim: where to hit, None for nowhere.
        notify: the descriptor of a pipe to the harness, for it to hit.

    Attributes:
        counts: how often it has come to each point.
        arrived: called once a signal is noted.
    """

    def __init__(self, board: Board, aim: Aim | None, notify: int) -> None:
        self.board = board
        self.counts: Counter[str] = Counter()
        self.arrived: Callable[[], object] = lambda: None
        self._aim = aim
        self._notify = notify

    def reach(self, point: str) -> None:
        """Note that the process has come to a point."""
        self.counts[point] += 1
        aim = self._aim
        if aim is None or aim.point != point or aim.count != self.counts[point]:
            return
        if aim.delay is not None:
            os.write(self._notify, b"!")
        elif aim.group:
            os.killpg(0, aim.number)
        else:
            os.kill(os.getpid(), aim.number)

    def install(self) -> None:
        """Wrap everything, in this process."""
        board, reach = self.board, self.reach

        def around(phase: Phase, point: str = "") -> Callable[..., Any]:
            def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
                @functools.wraps(function)
                def wrapper(*args: Any, **kwargs: Any) -> Any:
                    with board.during(phase):
                        if point:
                            reach(point)
                        result = function(*args, **kwargs)
                        if point:
                            reach(f"{point} done")
                        return result

                return wrapper

            return wrap

        _replace(Store, "__init__", around(Phase.RECOVERY))
        _replace(Store, "last_valid", around(Phase.OPENING))
        _replace(Store, "save", self._save)
        _replace(Store, "_collect", self._collect)
        _replace(Saver, "finish", around(Phase.FINISH, "finish"))
        _replace(Loop, "run", self._run)
        _replace(Loop, "_on_epoch_end", around(Phase.EPOCH_END, "epoch end"))
        _replace(Step, "compute", self._step)
        _replace(EpochSource, "_run", self._batches)
        _replace(WorkerFeed, "iterate", self._start_workers)
        _replace(Signals, "_note", self._note)
        _replace(Signals, "__enter__", self._enter)
        _replace(loops, "validate", around(Phase.VALIDATION, "validation"))
        stores.OsFs = lambda: WatchedFs(self)  # type: ignore[assignment,misc]

    def _save(self, save: Callable[..., Any]) -> Callable[..., Any]:
        board = self.board

        def wrapper(store: Store, *args: Any, **kwargs: Any) -> Any:
            with _saving(board, Phase.SAVE, Saving.SAVE):
                self.reach("save")
                manifest = save(store, *args, **kwargs)
                board.acknowledge(manifest.sequence, manifest.sha256)
                self.reach("save done")
                return manifest

        return wrapper

    def _collect(self, collect: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(store: Store, *args: Any) -> Any:
            with _saving(self.board, Phase.REMOVAL, Saving.REMOVAL):
                return collect(store, *args)

        return wrapper

    def _run(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(loop: Loop, *args: Any) -> Iterator[Any]:
            self.board.phase = Phase.LOOP
            for event, state in run(loop, *args):
                self.board.micro_batches = state.global_iteration
                yield event, state
            self.board.phase = Phase.FINISH

        return wrapper

    def _step(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(step: Step, state: Any, *args: Any, **kwargs: Any) -> Any:
            with self.board.during(Phase.STEP):
                self.board.micro_batches = state.global_iteration
                self.reach("step")
                result = compute(step, state, *args, **kwargs)
                self.reach("step done")
                return result

        return wrapper

    def _batches(self, run: Callable[..., Any]) -> Callable[..., Any]:
        board = self.board

        def wrapper(source: EpochSource, *args: Any) -> Iterator[Any]:
            batches = run(source, *args)
            validating = board.phase == Phase.VALIDATION
            try:
                while True:
                    self.reach("validation batch" if validating else "fetch")
                    with board.during(Phase.VALIDATION if validating else Phase.FETCH):
                        batch = next(batches, None)
                    if batch is None:
                        return
                    yield batch
            finally:
                batches.close()

        return wrapper

    def _start_workers(self, iterate: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(feed: WorkerFeed) -> Any:
            if feed.loader.num_workers == 0:
                return iterate(feed)
            with self.board.during(Phase.WORKER_START):
                self.reach("worker start")
                context = feed.loader.multiprocessing_context or _default_context()
                start = context.Process.start

                def started(process: Any) -> None:
                    start(process)
                    self.reach("worker started")

                context.Process.start = started
                try:
                    iterator = iterate(feed)
                finally:
                    context.Process.start = start
                self.reach("workers started")
                return iterator

        return wrapper

    def _note(self, note: Callable[..., Any]) -> Callable[..., Any]:
        board = self.board

        def wrapper(signals: Signals, number: int, frame: Any) -> None:
            if board.arrived < 0:
                board.arrived, board.arrived_in = board.micro_batches, board.phase
            note(signals, number, frame)
            self.arrived()

        return wrapper

    def _enter(self, enter: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(signals: Signals) -> Any:
            entered = enter(signals)
            self.board.handlers_set = 1
            return entered

        return wrapper


class WatchedFs(OsFs):
    """The operating system's files, with every operation counted."""

    def __init__(self, watch: Watch) -> None:
        for name in _OPERATIONS:
            setattr(self, name, self._counted(watch, getattr(super(), name)))

    @staticmethod
    def _counted(watch: Watch, operation: Callable[..., Any]) -> Callable[..., Any]:
        # A save writes hundreds of times: among the other operations nothing else would be hit.
        usual = "write" if operation.__name__ == "write" else "operation"

        def counted(*args: Any) -> Any:
            watch.board.operations += 1
            point = "removal" if watch.board.saving == Saving.REMOVAL else usual
            watch.reach(point)
            result = operation(*args)
            watch.reach(f"{point} done")
            return result

        return counted


class _saving(AbstractContextManager[None]):  # noqa: N801
    """Mark a phase of the store: of the training thread, or of another one beside it."""

    def __init__(self, board: Board, phase: Phase, saving: Saving) -> None:
        import threading

        self._board, self._values = board, (phase, saving)
        self._alone = threading.current_thread() is threading.main_thread()
        self._before = board.phase, board.saving

    def __enter__(self) -> None:
        if self._alone:
            self._board.phase = self._values[0]
        self._board.saving = self._values[1]

    def __exit__(self, *exc: object) -> None:
        if self._alone:
            self._board.phase = self._before[0]
        self._board.saving = self._before[1]


def _replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    setattr(owner, name, wrap(getattr(owner, name)))


def _default_context() -> Any:
    import multiprocessing

    return multiprocessing.get_context()


def restore_signals() -> None:
    """Give a forked process the handlers that a fresh interpreter has."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
