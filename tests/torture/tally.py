"""What a torture run has counted, and the table of it."""

from __future__ import annotations

import platform
import signal
import time
from collections import Counter

import torch

_KINDS = {
    "bits": "runs that ended with a differing bit",
    "events": "runs whose events differ",
    "lost": "lost checkpoints",
    "silent": "silent loads",
    "broken": "checkpoints broken, or something left behind",
    "status": "processes that ended in another way than they should",
    "late": "signals answered too late",
    "hung": "processes that hung",
    "campaign": "campaigns that failed",
    "payload": "executed payloads",
}


class Tally:
    """Counts."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.trials = self.finished = self.legs = self.leaked = 0
        self.hits: Counter[tuple[int, str]] = Counter()
        self.killed: Counter[int] = Counter()
        self.groups = 0
        self.problems: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()

    def hit(self, number: int, place: str, *, group: bool) -> None:
        """Count a signal that ended a process, or made it end itself."""
        self.hits[number, place] += 1
        self.groups += group

    def signals(self, number: int) -> int:
        """Return how many processes a signal has ended."""
        return sum(count for (kind, _), count in self.hits.items() if kind == number)

    def _killed(self, least: int, most: int) -> int:
        return sum(count for hits, count in self.killed.items() if least <= hits <= most)

    @property
    def failed(self) -> bool:
        """Whether anything did not hold."""
        return bool(self.leaked or sum(self.problems.values()))

    def line(self) -> str:
        """Return how far it is, in one line."""
        seconds = time.monotonic() - self.begun
        kills = self.signals(signal.SIGKILL)
        return (
            f"{seconds:6.0f} s: {self.trials} runs, {self.finished} finished, {kills} SIGKILLs "
            f"({kills / max(seconds, 1e-9):.1f}/s), {sum(self.problems.values())} failures, "
            f"{self.leaked} leaks"
        )

    def table(self, seed: int) -> str:
        """Return the report, in Markdown."""
        rows: list[tuple[str, object]] = [
            ("trials (runs)", self.trials),
            ("runs finished", self.finished),
            ("processes", self.legs),
            ("runs hit once or twice", self._killed(1, 2)),
            ("runs hit 3 to 9 times", self._killed(3, 9)),
            ("runs hit 10 times", self._killed(10, 10)),
        ]
        for number in sorted({number for number, _ in self.hits}, key=lambda n: -self.signals(n)):
            name = signal.Signals(number).name
            rows.append((f"{name}, total", self.signals(number)))
            places = {place: n for (kind, place), n in self.hits.items() if kind == number}
            rows += [
                (f"{name} in {place}", places[place])
                for place in sorted(places, key=lambda place: -places[place])
            ]
        rows.append(("of all signals, sent to the process group", self.groups))
        rows += sorted(self.injected.items())
        rows += [(text, self.problems[kind]) for kind, text in _KINDS.items()]
        rows.append(("leaked workers", self.leaked))
        rows.append(("duration", f"{time.monotonic() - self.begun:.0f} s"))
        rows.append(("seed", seed))
        rows.append(
            (
                "torch, Python, machine",
                f"{torch.__version__}, {platform.python_version()}, {platform.machine()}",
            )
        )
        lines = [f"| {name} | {value} |" for name, value in rows]
        return "\n".join(["| what | how many |", "|---|---|", *lines])
