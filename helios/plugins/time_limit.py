"""Stopping a run after some time, at an update, with its state saved."""

from __future__ import annotations

import datetime
import math
import re
import time
from typing import Any

from helios.plugins.plugin import Plugin
from helios.plugins.registry import PLUGIN_REGISTRY

_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):([0-5]?\d):([0-5]?\d)")
SCOPES = ("process", "run")


@PLUGIN_REGISTRY.register
class TimeLimit(Plugin):
    """Stops a run at the first update after a time limit.

    The time runs from the first batch on. What is due at the update is left to the resumed run; the
    state is saved, as at every stop. Several ranks stop together, after the same update.

    Args:
        limit: seconds, a ``timedelta``, or a string ``"HH:MM:SS"`` or ``"D-HH:MM:SS"``.
        counts: ``"process"`` to count the time since this fit began; ``"run"`` to count that of
            the fits before it too, as the checkpoint tells. A run whose time is up trains nothing
            more; raise the limit and it goes on.
        plug_id: the id of the plugin.

    Raises:
        TypeError: if the limit is something else.
        ValueError: if it is not above 0, or a string of another form, or ``counts`` is another
            word.

    Example:
        >>> TimeLimit("1:30:00").limit
        5400.0
    """

    def __init__(
        self,
        limit: float | str | datetime.timedelta,
        counts: str = "process",
        *,
        plug_id: str = "time_limit",
    ) -> None:
        super().__init__(plug_id)
        self.limit = seconds_of(limit)
        if counts not in SCOPES:
            raise ValueError(f"counts: received {counts!r}; expected one of {list(SCOPES)}")
        self.counts = counts
        self._spent = 0.0  # by the fits before
        self._began: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken so far, over all fits."""
        return self._spent + (0.0 if self._began is None else time.monotonic() - self._began)

    def on_training_start(self) -> None:
        """Let the time run."""
        self._began = time.monotonic()

    def on_training_end(self) -> None:
        """Let the time stand."""
        self._spent, self._began = self.elapsed, None

    def should_training_stop(self) -> bool:
        """Tell whether the time is up, and no window is open."""
        return self._counted() >= self.limit and self.trainer.state.window_iter == 0

    def is_over(self) -> bool:
        """Tell whether the time of the whole run is up."""
        return self.counts == "run" and self.elapsed >= self.limit

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds that the run has taken so far."""
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self._spent, self._began = float(state_dict["elapsed"]), None

    def _counted(self) -> float:
        return self.elapsed if self.counts == "run" else self.elapsed - self._spent


def seconds_of(limit: Any) -> float:
    """Return a time limit in seconds.

    Args:
        limit: seconds, a ``timedelta``, ``"HH:MM:SS"`` or ``"D-HH:MM:SS"``.

    Raises:
        TypeError: if it is something else.
        ValueError: if it is not above 0, or a string of another form.

    Example:
        >>> seconds_of("2-00:00:01")
        172801.0
    """
    if isinstance(limit, datetime.timedelta):
        seconds = limit.total_seconds()
    elif isinstance(limit, str):
        match = _CLOCK.fullmatch(limit)
        if match is None:
            raise ValueError(
                f"limit: received {limit!r}; expected 'HH:MM:SS' or 'D-HH:MM:SS', such as "
                "'01:30:00'"
            )
        days, hours, minutes, rest = (int(part or 0) for part in match.groups())
        seconds = float(((days * 24 + hours) * 60 + minutes) * 60 + rest)
    elif isinstance(limit, (int, float)) and not isinstance(limit, bool):
        seconds = float(limit)
    else:
        raise TypeError(
            f"limit: received a {type(limit).__name__}; expected seconds, a timedelta or 'HH:MM:SS'"
        )
    if not 0 < seconds < math.inf:
        raise ValueError(f"limit: received {limit!r}; expected a time above 0")
    return seconds
