"""What must hold of a run's folder after a process died, and after the run has ended."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import msgspec

import helios
from helios.errors import CheckpointError
from helios.trainer.store.fs import OsFs
from helios.trainer.store.manifest import Manifest
from helios.trainer.store.reading import committed, last_valid

NAME = "recorded"


class Reference(msgspec.Struct):
    """An uninterrupted run.

    Args:
        events: one line each, in order.
        contents: what its checkpoints hold, by `position`.
        last: the content of the last one.
    """

    events: list[str]
    contents: dict[Any, dict[str, Any]]
    last: dict[str, Any]


class Problem(msgspec.Struct, frozen=True):
    """What does not hold.

    Args:
        kind: ``"lost"``, ``"silent"``, ``"bits"``, ``"events"`` or ``"broken"``.
        text: what was found.
    """

    kind: str
    text: str


def newest(folder: Path) -> tuple[Manifest, dict[str, Any]] | None:
    """Return the newest checkpoint that can be loaded, reading alone.

    Raises:
        CheckpointError: if there are checkpoints, and none of them is whole.
    """
    checkpoints = folder / "chkpt" / NAME
    if not checkpoints.is_dir():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a kill never makes a checkpoint that is passed over
        found = last_valid(OsFs(), checkpoints, NAME)
    if found is None:
        return None
    content, path = found
    (manifest,) = [
        entry.manifest
        for entry in committed(OsFs(), checkpoints, NAME)
        if entry.manifest is not None and entry.manifest.file == path.name
    ]
    return manifest, content


def position(content: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return what tells the states of a run apart."""
    counters = content["training_state"]
    return tuple((name, counters[name]) for name in counters if name != "average_iter_time")


def bits(content: dict[str, Any]) -> dict[str, Any]:
    """Return what must be equal: everything but wall clock and the names of logs."""
    counters = dict(content["training_state"])
    del counters["average_iter_time"]
    return {**content, "training_state": counters, "log": None}


def difference(content: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Return the first place in which two checkpoints differ in a bit."""
    found = helios.first_difference(bits(content), bits(expected))
    return None if found is None else str(found)


def after_death(
    folder: Path,
    acknowledged: dict[int, str],
    last: int | None,
    reference: Reference,
) -> tuple[list[Problem], Manifest | None]:
    """Judge what a process that died has left.

    Args:
        folder: of the run.
        acknowledged: the digests of the checkpoints for which a save has returned, by sequence.
        last: how many of them are kept, None for all.
        reference: the run without a death.

    Returns:
        The problems, and the newest manifest.
    """
    try:
        found = newest(folder)
    except (CheckpointError, UserWarning) as error:
        return [Problem("broken", f"{type(error).__name__}: {error}")], None
    newest_known = max(acknowledged, default=0)
    if found is None:
        if acknowledged:
            return [Problem("lost", f"of {sorted(acknowledged)}, nothing is left")], None
        return [], None
    manifest, content = found
    problems = []
    if manifest.sequence not in (newest_known, newest_known + 1):
        problems.append(
            Problem("lost", f"{newest_known} was acknowledged, {manifest.sequence} is the newest")
        )
    present = {
        entry.manifest.sequence: entry.manifest.sha256
        for entry in committed(OsFs(), folder / "chkpt" / NAME, NAME)
        if entry.manifest is not None
    }
    kept = sorted(acknowledged) if last is None else sorted({*acknowledged, *present})[-last:]
    for sequence in kept:
        if sequence in acknowledged and present.get(sequence) != acknowledged[sequence]:
            problems.append(
                Problem("lost", f"the acknowledged {sequence} is not among {sorted(present)}")
            )
    expected = reference.contents.get(position(content))
    if expected is not None and (place := difference(content, expected)):
        problems.append(Problem("silent", f"{manifest.file} was loaded, and differs at {place}"))
    return problems, manifest


def at_the_end(folder: Path, legs: int, reference: Reference) -> list[Problem]:
    """Judge a run that has come to its end."""
    try:
        found = newest(folder)
    except (CheckpointError, UserWarning) as error:
        return [Problem("broken", f"{type(error).__name__}: {error}")]
    if found is None:
        return [Problem("lost", "the run has ended, and left no checkpoint")]
    problems = []
    if place := difference(found[1], reference.last):
        problems.append(Problem("bits", f"{found[0].file} differs at {place}"))
    lines = [
        (folder / f"leg-{leg}.events").read_text().splitlines()
        if (folder / f"leg-{leg}.events").exists()
        else []
        for leg in range(legs)
    ]
    if problem := events_differ(lines, reference.events):
        problems.append(Problem("events", problem))
    left = [
        name
        for name in OsFs().listdir(folder / "chkpt" / NAME)
        if name.startswith(".") and name not in (".lock", ".pins")
    ]
    if left:
        problems.append(Problem("broken", f"left behind: {left}"))
    return problems


def events_differ(legs: list[list[str]], whole: list[str]) -> str | None:
    """Say where the events of the legs are not those of the whole run, with repetitions.

    Every leg is a piece of the whole run, with the same counters and the same random numbers. None
    begins after the end of the one before, and the last comes to the end.
    """
    places = {line: number for number, line in enumerate(whole)}
    reached = 0
    for number, lines in enumerate(legs):
        inner = [line for line in lines if not line.startswith(("start ", "end "))]
        # An epoch that is taken up is announced once more, with draws of its own.
        if inner and inner[0].startswith("epoch_start "):
            place = places.get(inner[0])
            if place is None or (len(inner) > 1 and places.get(inner[1]) != place + 1):
                del inner[0]
        if not inner:
            continue
        begin = places.get(inner[0])
        if begin is None:
            return f"leg {number} begins with {inner[0]!r}, which the whole run never did"
        for line, expected in zip(inner, whole[begin : begin + len(inner)], strict=False):
            if line != expected:
                return f"leg {number} did {line!r} instead of {expected!r}"
        if begin + len(inner) > len(whole):
            return f"leg {number} goes on after the end of the whole run"
        if begin > reached:
            return f"leg {number} begins at event {begin}, and those from {reached} on are missing"
        reached = max(reached, begin + len(inner))
    if reached != len(whole):
        return f"only {reached} of {len(whole)} events happened"
    return None
