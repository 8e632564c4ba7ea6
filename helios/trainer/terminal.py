"""A stream to show things on, of which a run does not depend."""

from __future__ import annotations

import contextlib
from typing import Any, TextIO


class Stream:
    """Writes to a stream as long as it can be written to, and then keeps quiet.

    A program without a console has no standard error, and a pipe may be closed at its other end:
    training goes on.

    Args:
        stream: the stream, None for none.

    Example:
        >>> Stream(None).write("nobody sees this")
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.is_terminal = False
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.is_terminal = stream is not None and stream.isatty()

    def write(self, text: str) -> None:
        """Write some text, if that can be done."""
        self._do("write", text)

    def flush(self) -> None:
        """Write out what is still in memory, if that can be done."""
        self._do("flush")

    def _do(self, method: str, *args: Any) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, method)(*args)
        except (OSError, ValueError):
            self._stream = None

    def __getattr__(self, name: str) -> Any:
        # What tqdm asks for beside: the encoding, the file number.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._stream, name)
