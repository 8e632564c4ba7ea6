"""The campaigns of a torture run that kill nothing: disks that fail, damaged and hostile files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture.children import Child, Nursery
from tests.torture.tally import Tally

CAMPAIGNS: dict[str, dict[str, Any]] = {
    "process_death": {},
    "operations_failed": {},
    "removal": {},
    "power_loss": {"trials": 100},
    "corruption": {"trials": 4000},
    "lock_contest": {"rounds": 200},
}
"""Functions of ``tests.trainer.store.campaigns``, and how much of each."""

_LONGEST = 900.0  # seconds of one campaign


def run(
    nursery: Nursery,
    tally: Tally,
    say: Callable[[str], None],
    root: Path,
    seed: int,
    stopped: Callable[[], bool],
) -> None:
    """Run every campaign in a child of its own, two at a time."""
    waiting = [
        *((name, lambda name=name: _campaign(name, seed)) for name in CAMPAIGNS),
        ("hostile files", lambda: _hostile(root / "hostile")),
    ]
    running: dict[int, tuple[str, Child]] = {}
    while (waiting and not stopped()) or running:
        while waiting and len(running) < 2 and not stopped():
            name, act = waiting.pop(0)
            child = nursery.start(_writing(act, root / f"{name}.json"), root / f"{name}.output")
            running[child.pid] = name, child
        for child, status in nursery.wait():
            name, _ = running.pop(child.pid)
            _count(tally, say, root, name, status)
            say(f"{name}: {time.monotonic() - child.started:.0f} s")
        for name, child in running.values():
            if stopped() or time.monotonic() - child.started > _LONGEST:
                say(f"{name} is stopped")
                child.end()


def _count(tally: Tally, say: Callable[[str], None], root: Path, name: str, status: int) -> None:
    if status != 0:
        if status > 0:
            tally.problems["campaign"] += 1
        say(f"FAILURE: {name} ended with {status}\n{(root / f'{name}.output').read_text()}")
        return
    result = json.loads((root / f"{name}.json").read_text())
    for kind, count in result.get("injected", {}).items():
        tally.injected[kind] += count
    for kind, texts in result.get("problems", {}).items():
        tally.problems[kind] += len(texts)
        for text in texts:
            say(f"FAILURE ({kind}) in {name}: {text}")


def _writing(act: Callable[[], dict[str, Any]], path: Path) -> Callable[[int], int]:
    def work(notify: int) -> int:
        path.write_text(json.dumps(act()))
        return 0

    return work


def _campaign(name: str, seed: int) -> dict[str, Any]:
    from tests.trainer.store import campaigns

    counts = getattr(campaigns, name)(**CAMPAIGNS[name], seed=seed)
    title = "corrupted files" if name == "corruption" else f"faults: {name.replace('_', ' ')}"
    injected = {title: counts.trials}
    for outcome, number in counts.outcomes.items():
        injected[f"{title}: {outcome}"] = number
    return {"injected": injected}


def _hostile(folder: Path) -> dict[str, Any]:
    from helios.trainer.store.fs import OsFs
    from tests.trainer.store import hostile
    from tests.trainer.store.jail import jailed

    folder.mkdir()
    files = [entry.make(folder) for entry in hostile.FILES]
    outcomes = jailed(files)
    named = [(entry.name, outcome) for entry, outcome in zip(hostile.FILES, outcomes, strict=True)]
    payloads = [f"{name}: {outcome['events']}" for name, outcome in named if outcome["events"]]
    if (folder / "ran").exists():
        payloads.append("the code of a file ran")
    accepted = [f"{name}: {outcome}" for name, outcome in named if outcome.get("refused") is None]
    opened = []
    paths = [entry.make(folder) for entry in hostile.PATHS]
    for path in paths:
        try:
            OsFs().open(path).close()
        except OSError:
            continue
        opened.append(f"{path.name} was opened")
    return {
        "injected": {"hostile files": len(files) + len(paths)},
        "problems": {"payload": payloads, "silent": accepted + opened},
    }
