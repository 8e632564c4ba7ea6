"""One job at a time beside the training thread; its failure reaches whoever waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Background:
    """Runs jobs in a thread of its own, one at a time, in order.

    A job that fails raises where its result is taken: at the next `start`, or at `finish`.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], Any]) -> None:
        """Begin a job; the one before must have been finished.

        Raises:
            RuntimeError: if it has not.
        """
        if self._thread is not None:
            raise RuntimeError("a job is under way; finish() it before the next")
        # A process that is told to leave at once does not wait for it: the store stays whole.
        self._thread = threading.Thread(target=self._run, args=(job,), name="save", daemon=True)
        self._thread.start()

    def finish(self) -> Any:
        """Wait for the job under way, if any, and return its result.

        Returns:
            What the job returned; None if there was none.

        Raises:
            BaseException: what the job raised.
        """
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        result, error = self._result, self._error
        self._result = self._error = None
        if error is not None:
            raise error
        return result

    def _run(self, job: Callable[[], Any]) -> None:
        try:
            self._result = job()
        except BaseException as error:
            self._error = error
