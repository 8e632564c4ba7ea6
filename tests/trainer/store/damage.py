"""Campaigns against readers: bytes that were changed, and checkpoints that go away meanwhile."""

from __future__ import annotations

import contextlib
import functools
import io
import random
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import helios
from helios.errors import CheckpointError, CorruptCheckpointError
from helios.trainer.store import Store, find_last_checkpoint, read_checkpoint
from helios.trainer.store.commit import remove
from helios.trainer.store.reading import committed, last_valid
from tests.trainer.runs import run
from tests.trainer.store.bench import Bench, Counts, bench
from tests.trainer.store.faulty import CountingFs, PowerCut, image_of, materialise
from tests.trainer.store.judging import KEEP, Ledger, Violation, judge
from tests.trainer.store.tiny import NAME, UnsyncedFs, save, stem, step_of

PAGE = 4096

Damage = tuple[str, bytes]
"""What was done to a file, and what it holds then."""


def corruption(trials: int = 2000, seed: int = 0) -> Counts:
    """C4: ``trials`` checkpoints of a trained model are cut short or changed, and then read.

    They are cut at every 64th byte, emptied, lose a page to zeros, and have one random bit of a
    byte of their zip headers, their directory, their pickle or their tensors turned over.

    Args:
        trials: how many; where there are more than places, bits are drawn again.
        seed: which bits, and which places first.

    Raises:
        Violation: unless each is a `CorruptCheckpointError` when it is read, and passed over for
            the one before it, with a warning that names it, when the last whole one is looked for.
    """
    outcomes: Counter[str] = Counter()
    with bench() as bed:
        folder = bed.root / "line"
        run(bed.root, steps=2, chkpt_frequency=1)
        older, newer = sorted(folder.glob("*.pth"))
        data, before = newer.read_bytes(), read_checkpoint(older)
        damages = _damages(data, random.Random(seed))
        for trial, (what, damaged) in zip(range(trials), damages, strict=False):
            newer.write_bytes(damaged)
            try:
                _is_refused(newer)
                if trial % 20 == 0:
                    _is_passed_over(newer, before)
            except Violation as violation:
                raise Violation(f"{what} (seed {seed}, trial {trial}): {violation}") from violation
            outcomes[what.split(" at ")[0]] += 1
    return Counts(outcomes.total(), dict(outcomes))


def _damages(data: bytes, chance: random.Random) -> Iterator[Damage]:
    """Yield damages without end: each cut and page once, then bits, for each kind in turn."""
    yield "emptied at 0", b""
    for end in range(64, len(data), 64):
        yield f"cut at {end}", data[:end]
    for start in range(0, len(data), PAGE):
        end = min(start + PAGE, len(data))
        if any(data[start:end]):
            yield f"zeros at {start}", data[:start] + bytes(end - start) + data[end:]
    kinds = regions(data)
    while True:
        for kind in kinds.values():
            chance.shuffle(kind)
        for turn in range(max(map(len, kinds.values()))):
            for kind, places in kinds.items():
                if turn < len(places):
                    place = places[turn]
                    changed = bytearray(data)
                    changed[place] ^= 1 << chance.randrange(8)
                    yield f"bit in {kind} at {place}", bytes(changed)


def regions(data: bytes) -> dict[str, list[int]]:
    """Return the places of the bytes of a checkpoint's headers, directory, pickle and the rest."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    kinds = {"directory": list(range(archive.start_dir, len(data))), "header": [], "pickle": []}
    for entry in archive.infolist():
        start = entry.header_offset
        name, extra = (
            int.from_bytes(data[start + at : start + at + 2], "little") for at in (26, 28)
        )
        content = start + 30 + name + extra
        kinds["header"] += range(start, content)
        if entry.filename.endswith("/data.pkl"):
            kinds["pickle"] += range(content, content + entry.compress_size)
    known = {place for places in kinds.values() for place in places}
    kinds["tensors"] = [place for place in range(len(data)) if place not in known]
    return kinds


def _is_refused(path: Path) -> None:
    try:
        read_checkpoint(path)
    except CorruptCheckpointError:
        return
    except Exception as error:
        raise Violation(f"reading it raises {error!r}") from error
    raise Violation("it is read as if it were whole")


def _is_passed_over(path: Path, before: dict[str, object]) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = last_valid(UnsyncedFs(), path.parent, path.parent.name)
    if found is None or helios.first_difference(found[0], before) is not None:
        raise Violation("the one before it is not found in its place")
    if [path.name in str(warning.message) for warning in said] != [True]:
        raise Violation(f"the warnings do not name it: {[str(w.message) for w in said]}")


def removal(seed: int = 0) -> Counts:
    """G2: a reader at every operation of a removal, a removal at every one of a reader, a crash.

    Args:
        seed: nothing here is random; it is there for all campaigns to be called alike.

    Raises:
        Violation: if a reader gets something half there, or an error that is not named; if the
            newest checkpoint is not found; or if a removal that was cut off is not finished.
    """
    del seed
    with bench() as bed:
        _read_during_a_run(bed)
        _remove_during_a_read(bed)
        _crash_in_a_removal(bed)
        return bed.counts()


def _read_during_a_run(bed: Bench) -> None:
    """Read everything before every operation of saves and removals."""
    folder = bed.folder() / NAME
    saved = [0]

    def read(operation: str) -> None:
        newest = _read_all(folder)
        if newest not in {saved[-1], saved[-1] + 1}:
            raise Violation(f"before {operation}, the newest is {newest}, and {saved[-1]} is saved")
        bed.outcomes["read at an operation of a run"] += 1

    with Store(folder, KEEP, CountingFs(UnsyncedFs(), watch=read)) as store:
        for step in range(1, 5):
            save(store, step)
            saved.append(step)


def _read_all(folder: Path) -> int:
    """Read a folder in every way; return the step of the newest, 0 if there is none."""
    if not folder.exists():
        return 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entries = committed(UnsyncedFs(), folder, NAME)
        found = last_valid(UnsyncedFs(), folder, NAME)
    for entry in entries:
        step_of(read_checkpoint(folder / f"{entry.stem}.pth"))
    if found is None:
        return 0
    content, path = found
    if path.stem != entries[0].stem or find_last_checkpoint(folder) != path:
        raise Violation(f"{entries[0].stem}, {path} and {find_last_checkpoint(folder)} are newest")
    return step_of(content)


def _remove_during_a_read(bed: Bench) -> None:
    """Let a removal begin, and go on or not, at every operation of a reader."""
    for victim in (1, 2, 3):  # the newest goes away only where others came after the reader began
        for read in (
            lambda fs, folder, path: committed(fs, folder, NAME),
            lambda fs, folder, path: last_valid(fs, folder, NAME),
            lambda fs, folder, path: read_checkpoint(path, fs),
        ):
            for removed in range(1, 6):
                at = 1
                while _read_beside(bed, read, victim, removed, at):
                    at += 1


def _read_beside(
    bed: Bench, read: Callable[..., object], victim: int, removed: int, at: int
) -> bool:
    """Read, with a removal's first operations at one of the reader's; False if it has no such."""
    folder = bed.folder() / NAME
    materialise(three_checkpoints(), folder)
    path = folder / f"{stem(victim)}.pth"

    def interfere(operation: str) -> None:
        if reader.count + 1 == at:
            with contextlib.suppress(PowerCut):
                remove(CountingFs(UnsyncedFs(), removed + 1), folder, stem(victim))

    reader = CountingFs(UnsyncedFs(), watch=interfere)
    outcome = "whole"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error" if victim != 3 else "ignore")
            result = read(reader, folder, path)
        if isinstance(result, list):
            entries = {entry.stem for entry in result}
            if not entries >= {stem(step) for step in (1, 2, 3) if step != victim}:
                raise Violation(f"only {entries} are listed")
        elif isinstance(result, tuple):
            step = step_of(result[0])
            if step != 3 and not (victim == 3 and step == 2):
                raise Violation(f"the last whole one is said to be {step}")
        else:
            assert isinstance(result, dict)
            if step_of(result) != victim:
                raise Violation(f"{step_of(result)} was read in place of {victim}")
    except CheckpointError as error:
        if f"{stem(victim)}" not in str(error):
            raise Violation(f"the error does not name it: {error!r}") from error
        outcome = "error"
    except (OSError, Warning, AssertionError) as error:
        raise Violation(
            f"{removed} operations of the removal of {victim}, at {at} of a reader: {error!r}"
        ) from error
    bed.outcomes[f"{outcome} beside a removal"] += 1
    return reader.count >= at


def _crash_in_a_removal(bed: Bench) -> None:
    """Let the process die in a removal; read before and after the recovery."""
    for victim in (1, 2):
        for at in range(1, 5):
            for after in (False, True):
                top = bed.folder()
                (top / "runs").mkdir()
                folder = top / "runs" / NAME
                materialise(three_checkpoints(), folder)
                fs = CountingFs(UnsyncedFs(), at, after=after)
                with contextlib.suppress(PowerCut):
                    remove(fs, folder, stem(victim))
                if not fs.failed:
                    raise Violation(f"a removal has {fs.log}, and no operation {at}")
                if _read_all(folder) != 3:
                    raise Violation(f"the newest is lost in a removal cut off at {at}")
                ledger = Ledger()
                ledger.acknowledged = 3
                judge(folder, ledger)
                bed.outcomes["crash in a removal"] += 1


@functools.cache
def three_checkpoints() -> dict[str, object]:
    """Return the image of a folder of three checkpoints."""
    with tempfile.TemporaryDirectory(prefix="helios-") as root:
        folder = Path(root) / NAME
        with Store(folder, fs=UnsyncedFs()) as store:
            for step in (1, 2, 3):
                save(store, step)
        return image_of(folder)
