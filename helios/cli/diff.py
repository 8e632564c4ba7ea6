"""``helios diff``: where two runs, or two states, part."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from helios.cli.again import UnusableError, Update, flight_of, manifests, shown_update
from helios.cli.command import add_command, add_json
from helios.cli.output import GOOD, USAGE, WRONG, complain, counted, say, say_json, table
from helios.cli.survey import at
from helios.errors import CheckpointError, SerialisationError
from helios.functional.state import TrainingState
from helios.functional.tree import digest, first_difference, leaves_with_paths, same_bits
from helios.trainer.store.content import stored_state
from helios.trainer.store.manifest import Manifest
from helios.trainer.store.reading import read_checkpoint

_EXAMPLES = """\
examples:
  helios diff runs/a/digits runs/b/digits
  helios diff a/digits_epoch_4_iter_8.pth b/digits_epoch_4_iter_8.pth
  helios diff a.bin b.bin              states of helios replay --output

Of two runs the flight records are bisected by their chained digests, if both have one, and then the
checkpoints that both have, tensor by tensor. The exit status is 1 if there is a difference.

"""
_WALL_CLOCK = "average_iter_time"


class Parted(msgspec.Struct, frozen=True):
    """The first update on record in which two runs differ.

    Args:
        update: its number.
        what: what of it differs: ``indices``, ``loss``, ``norm``, ``skipped``, ``batches``, or
            ``rest``: another objective, or the counters.
        a: what one run recorded.
        b: what the other recorded.
    """

    update: int
    what: list[str]
    a: Update
    b: Update


class Differing(msgspec.Struct, frozen=True):
    """Two states that differ.

    Args:
        after: the update that both come after.
        first: the first leaf that differs, such as ``carry/params/net.weight``.
        count: how many leaves differ.
        of: how many leaves there are.
    """

    after: int
    first: str
    count: int
    of: int


class Diff(msgspec.Struct, frozen=True, kw_only=True):
    """What differs between two runs.

    Args:
        a: one.
        b: the other.
        compared: updates on record of both, None if one has no flight record.
        parted: the first update on record that differs.
        checkpoints: how many checkpoints of both are of the same update.
        equal_after: the last of these whose states are equal.
        differing: the first whose states differ.
        causes: what differs in the seeds, the plans and the fingerprints.
        notes: what else is to be known.
    """

    a: str
    b: str
    compared: int | None = None
    parted: Parted | None = None
    checkpoints: int = 0
    equal_after: int | None = None
    differing: Differing | None = None
    causes: list[str] = []
    notes: list[str] = []


def add(commands: Any) -> None:
    """Add the command to the parsers."""
    parser = add_command(
        commands,
        "diff",
        run,
        brief="find where two runs part",
        full="Find the first update and the first tensor in which two runs differ.",
        examples=_EXAMPLES,
    )
    for name in ("a", "b"):
        parser.add_argument(
            name, metavar=f"RUN_{name.upper()}", type=Path, help="a run, a .pth, or a state's bytes"
        )
    add_json(parser)


def run(given: argparse.Namespace) -> int:
    """Compare two runs, and return the exit status."""
    try:
        if given.a.is_dir() and given.b.is_dir():
            found = diff_of_runs(given.a, given.b)
        else:
            found = diff_of_states(given.a, given.b)
    except (UnusableError, CheckpointError, SerialisationError) as error:
        return complain("diff", str(error), USAGE)
    if given.json:
        say_json(found)
    else:
        say(described(found))
    return GOOD if found.parted is None and found.differing is None else WRONG


def diff_of_states(a: Path, b: Path) -> Diff:
    """Compare two checkpoints, or bytes of states.

    Raises:
        UnusableError: if one cannot be read.
        CheckpointError: likewise.
    """
    one, two = _state(a), _state(b)
    notes = []
    if one.current_iteration != two.current_iteration:
        notes.append(f"they are after updates {one.current_iteration} and {two.current_iteration}")
    differing = None if digest(one) == digest(two) else _differing(one, two)
    return Diff(a=str(a), b=str(b), differing=differing, checkpoints=1, notes=notes)


def diff_of_runs(a: Path, b: Path) -> Diff:
    """Compare two runs by their flight records and their checkpoints.

    Raises:
        UnusableError: if there is nothing that both have.
        CheckpointError: if something of them cannot be read.
    """
    notes: list[str] = []
    saved = manifests(a), manifests(b)
    compared, parted = _by_record(a, b, notes)
    places = [{_place(m): m for m in found} for found in saved]
    common = sorted(places[0].keys() & places[1].keys())
    if compared is None and not common:
        raise UnusableError(
            f"{str(a)!r} and {str(b)!r} have no checkpoint of the same update, and no flight "
            "records that can be compared: there is nothing to tell them apart by"
        )

    def states(place: Any) -> tuple[TrainingState, TrainingState]:
        return _state(a / places[0][place].file), _state(b / places[1][place].file)

    # Two runs that differ once differ ever after.
    low, high = 0, len(common)
    while low < high:
        middle = (low + high) // 2
        one, two = states(common[middle])
        if digest(one) == digest(two):
            low = middle + 1
        else:
            high = middle
    differing = _differing(*states(common[low])) if low < len(common) else None
    return Diff(
        a=str(a),
        b=str(b),
        compared=compared,
        parted=parted,
        checkpoints=len(common),
        equal_after=common[low - 1][0] if low else None,
        differing=differing,
        causes=causes(saved[0][-1], saved[1][-1]),
        notes=notes,
    )


def _by_record(a: Path, b: Path, notes: list[str]) -> tuple[int | None, Parted | None]:
    """Return how many updates both have on record, and the first that differs."""
    from helios.trainer import flight

    records = flight_of(a), flight_of(b)
    missing = [str(run) for run, record in zip((a, b), records, strict=True) if record is None]
    if missing:
        notes.append(f"no flight record in {', '.join(missing)}: checkpoints alone are compared")
        return None, None
    one, two = records
    if one.first != two.first:
        notes.append(
            f"the flight records begin at updates {one.first} and {two.first}: they are not "
            "compared"
        )
        return None, None
    update = flight.first_difference(one, two)
    common = min(len(one), len(two))
    if update is None:
        if len(one) != len(two):
            notes.append(f"the flight records end after updates {one.last} and {two.last}")
        return common, None
    x, y = one.at(update), two.at(update)
    what = flight.what_differs(x, y)
    return common, Parted(update, what, shown_update(x), shown_update(y))


def causes(a: Manifest, b: Manifest) -> list[str]:
    """Return what differs in the seeds, the plans and the fingerprints of two runs."""
    sides = [
        {
            "seed": m.seed,
            **{f"plan {n}": getattr(m.plan, n) for n in m.plan.__struct_fields__},
            **m.fingerprint,
        }
        for m in (a, b)
    ]
    one, two = sides
    return [
        f"{name}: {_word(one.get(name))} and {_word(two.get(name))}"
        for name in {**one, **two}
        if one.get(name) != two.get(name)
    ]


def _word(value: Any) -> str:
    return value.name.lower() if hasattr(value, "name") else "none" if value is None else str(value)


def _place(manifest: Manifest) -> tuple[int, ...]:
    """Return the counters that say which states of two runs are of the same place."""
    names = ("current_iteration", "global_iteration", "dataset_iter", "validation_cycles")
    return tuple(int(manifest.counters[name]) for name in names)


def _state(path: Path) -> TrainingState:
    problem = at(path)
    if problem is not None or path.is_dir():
        raise UnusableError(problem or f"{str(path)!r} is a folder, and the other is none")
    if path.suffix == ".pth":
        return stored_state(read_checkpoint(path))
    return TrainingState.from_bytes(path.read_bytes())


def _differing(a: TrainingState, b: TrainingState) -> Differing:
    a, b = _timeless(a), _timeless(b)
    one, two = dict(leaves_with_paths(a)), dict(leaves_with_paths(b))
    names = {**one, **two}
    count = sum(n not in one or n not in two or not same_bits(one[n], two[n]) for n in names)
    return Differing(a.current_iteration, first_difference(a, b) or "", count, len(names))


def _timeless(state: TrainingState) -> TrainingState:
    return msgspec.structs.replace(state, **{_WALL_CLOCK: 0.0})


def described(found: Diff) -> list[str]:
    """Return the lines for a comparison."""
    lines = [f"a: {found.a}", f"b: {found.b}"]
    lines += [f"note: {note}" for note in found.notes]
    if found.compared is not None and found.parted is None:
        lines.append(f"flight records: {counted(found.compared, 'update')} are the same")
    if found.parted is not None:
        parted = found.parted
        lines.append(
            f"flight records: update {parted.update} is the first that differs, in "
            f"{', '.join(_NAMES[name] for name in parted.what)}"
        )
        rows = [["", "a", "b"]]
        for name in ("loss", "norm", "batches", "indices", "skipped"):
            if name in parted.what:
                values = [getattr(side, name) for side in (parted.a, parted.b)]
                rows.append([_NAMES[name], *("not known" if v is None else str(v) for v in values)])
        lines += table(rows) if len(rows) > 1 else []
    if found.differing is not None:
        state = found.differing
        since = "the start" if found.equal_after is None else f"update {found.equal_after}"
        lines.append(f"states: they part after {since} and not after update {state.after}")
        lines.append(f"  the first to differ is {state.first}, of {state.count} in {state.of}")
    elif found.checkpoints:
        lines.append(f"states: equal in {counted(found.checkpoints, 'checkpoint')}")
    else:
        lines.append("states: no checkpoints of the same update")
    if found.causes and (found.parted or found.differing):
        lines.append("what else differs, and may be why")
        lines += [f"  {cause}" for cause in found.causes]
    return lines


_NAMES = {
    "indices": "samples",
    "loss": "loss",
    "norm": "norm of the gradients",
    "batches": "number of micro-batches",
    "skipped": "whether it was left out",
    "rest": "another objective or the counters",
}
