"""``helios inspect``: what a checkpoint is, and whether its bytes are those that were committed."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from helios.cli.command import add_command, add_json
from helios.cli.contents import Group, groups, sharded_leaves
from helios.cli.output import (
    GOOD,
    USAGE,
    WRONG,
    complain,
    counted,
    in_bytes,
    printable,
    say,
    say_json,
    table,
)
from helios.cli.survey import (
    VALID,
    Surveyed,
    at,
    nothing_there,
    size_of,
    status_of,
    survey,
)
from helios.cli.verify import line, summary
from helios.errors import CheckpointError
from helios.trainer.store.commit import load_manifest
from helios.trainer.store.fs import Fs, OsFs
from helios.trainer.store.manifest import Manifest
from helios.trainer.store.reading import read_checkpoint, verify

_EXAMPLES = """\
examples:
  helios inspect runs/digits/digits_epoch_4_iter_8.pth
  helios inspect runs/digits             the newest valid one, after a list of all
  helios inspect runs/digits --summary   without the single tensors
  helios inspect runs/digits --json

Digests are compared with the manifest before anything is parsed, and no code of a file is run. Of a
sharded checkpoint, give the .pth or the folder; its tensors are described and not loaded.

"""


class Inspected(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a checkpoint.

    Args:
        path: its ``.pth`` file.
        status: as of `helios.cli.survey.Surveyed`.
        problem: what is wrong, None if nothing is.
        pinned: whether it is kept by every retention.
        save_name: the model's name, as its file name has it.
        logs: the names of the run's logs, as far as it has any.
        size: the bytes of all its files.
        manifest: its manifest, None if that is broken.
        groups: its tensors; none unless it is valid.
    """

    path: str
    status: str
    problem: str | None = None
    pinned: bool = False
    save_name: str | None = None
    logs: dict[str, str] = {}
    size: int | None = None
    manifest: Manifest | None = None
    groups: list[Group] = []


def add(commands: Any) -> None:
    """Add the command to the parsers."""
    parser = add_command(
        commands,
        "inspect",
        run,
        brief="show what is in a checkpoint, or in the newest of a run",
        full="Show what is in a checkpoint, or in the newest valid one of a run.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "path", metavar="CKPT", type=Path, help="a .pth file, or the folder of a run's checkpoints"
    )
    parser.add_argument("--summary", action="store_true", help="leave out the single tensors")
    add_json(parser)


def run(given: argparse.Namespace) -> int:
    """Inspect a checkpoint or a run, and return the exit status."""
    path, fs, found = given.path, OsFs(), None
    problem = at(path)
    if problem is None and path.is_dir():
        try:
            found = list(survey(fs, path))
        except CheckpointError as error:
            problem = str(error)
        else:
            problem = None if found else nothing_there(path)
    elif problem is None and path.suffix != ".pth":
        problem = f"{str(path)!r} is no .pth file; expected one, or the folder of a run"
    if problem is not None:
        return complain("inspect", problem, USAGE)
    shown = inspect(fs, path) if found is None else _newest(fs, path, found)
    if shown is not None and given.summary:
        shown = replace(shown, groups=[replace(group, tensors=()) for group in shown.groups])
    if given.json:
        say_json({"checkpoints": found, "checkpoint": shown})
    else:
        if found is not None:
            say([*map(line, found), summary(found)])
        if shown is not None:
            say([""] if found is not None else [])
            say(describe(shown))
    fine = shown is not None and shown.status == VALID
    return GOOD if fine and all(one.status == VALID for one in found or ()) else WRONG


def inspect(fs: Fs, path: Path) -> Inspected:
    """Return what is known of a checkpoint; what is wrong with it is in the result.

    Args:
        fs: the disk.
        path: its ``.pth`` file.
    """
    known: dict[str, Any] = {
        "path": printable(str(path)),
        "pinned": path.with_suffix(".pin").exists(),
    }
    manifest = None
    with contextlib.suppress(CheckpointError, OSError):  # reading the checkpoint says it better
        manifest = load_manifest(fs, path.parent, path.stem)
        known |= _from_manifest(manifest)
    try:
        content = read_checkpoint(path, fs, joined=False)
        if manifest is None:  # it has come meanwhile
            manifest = load_manifest(fs, path.parent, path.stem)
            known |= _from_manifest(manifest)
        if manifest.files:
            verify(fs, path.parent, manifest)
        found = groups(content, sharded_leaves(fs, path.parent, manifest))
    except (CheckpointError, OSError) as error:
        status = status_of(error) if path.with_suffix(".json").exists() else "uncommitted"
        return Inspected(**known, status=status, problem=str(error))
    logs = {key: value for key, value in content["log"].items() if type(value) is str}
    return Inspected(**known, status=VALID, logs=logs, groups=found)


def _newest(fs: Fs, folder: Path, found: list[Surveyed]) -> Inspected | None:
    """Return the newest checkpoint that is valid, or the newest of all if none is."""
    first = None
    for one in found:
        if one.status == VALID:
            shown = inspect(fs, folder / one.file)
            if shown.status == VALID:
                return shown
            first = first or shown
    return first


def _from_manifest(manifest: Manifest) -> dict[str, Any]:
    counters = manifest.counters
    place = f"_epoch_{counters['global_epoch']}_iter_{counters['current_iteration']}"
    save_name = manifest.stem.partition(place)[0]
    return {"manifest": manifest, "save_name": save_name, "size": size_of(manifest)}


def describe(shown: Inspected) -> list[str]:
    """Return the lines for a checkpoint."""
    lines = [shown.path]
    digests = "its bytes are those that were committed"
    state = f"{shown.status}: {shown.problem or digests}".replace("\n", " ")
    rows = [["status", state], ["pinned", "yes" if shown.pinned else "no"]]
    if shown.manifest is None:
        return lines + table(rows)
    rows.append(["save name", str(shown.save_name)])
    rows += [[kind.replace("_", " "), name] for kind, name in shown.logs.items()]
    lines += table(rows + _facts(shown.manifest, shown.size))
    lines += _section("counters", shown.manifest.counters)
    lines += _section("plan", _plan(shown.manifest))
    lines += _section("fingerprint", shown.manifest.fingerprint)
    for group in shown.groups:
        lines.append(f"{group.name}: {_amount(group)}")
        rows = [
            [leaf.path, f"{leaf.dtype}{list(leaf.shape)}", in_bytes(leaf.bytes)]
            for leaf in group.tensors
        ]
        lines += table(rows) if rows else []
    if shown.groups:
        total = Group(
            "all",
            sum(group.count for group in shown.groups),
            sum(group.elements for group in shown.groups),
            sum(group.bytes for group in shown.groups),
            (),
        )
        lines.append(f"all: {_amount(total)}")
    return lines


def _amount(group: Group) -> str:
    tensors, elements = counted(group.count, "tensor"), counted(group.elements, "element")
    return f"{tensors}, {elements}, {in_bytes(group.bytes)}"


def _facts(manifest: Manifest, size: int | None) -> list[list[str]]:
    rows = [
        ["written by", f"helios {manifest.version}, schema {manifest.schema}"],
        ["commit", str(manifest.sequence)],
        ["size", f"{in_bytes(size or 0)} in {counted(1 + len(manifest.files), 'file')}"],
        ["sha256", manifest.sha256],
        ["seed", str(manifest.seed)],
        ["open window", counted(manifest.window_iter, "micro-batch")],
        ["finite", "yes" if manifest.finite else "no: a parameter is NaN or infinite"],
        ["skipped", counted(manifest.skipped, "update")],
    ]
    if manifest.metric is not None:
        rows.append(["score", f"{manifest.metric} {manifest.score} ({manifest.mode})"])
    return rows


def _plan(manifest: Manifest) -> dict[str, object]:
    plan = manifest.plan
    fields = {name: getattr(plan, name) for name in plan.__struct_fields__}
    return {**fields, "unit": plan.unit.name.lower()}


def _section(title: str, values: dict[str, Any]) -> list[str]:
    rows = [[name, "none" if value is None else str(value)] for name, value in values.items()]
    return [title, *(table(rows) if rows else ["  none"])]
