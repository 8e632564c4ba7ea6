"""C3: a power failure at any operation loses nothing acknowledged, and needs every sync."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import helios.trainer.store
from tests.trainer.store import campaigns
from tests.trainer.store.crashes import sites_reached
from tests.trainer.store.faulty import BLOCK, CrashDiskFs, Everything, Nothing, Random


def call_sites():
    """Return the places of the store that sync, as module and line."""
    sites = set()
    for path in Path(helios.trainer.store.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name, owner = node.func.attr, ast.unparse(node.func.value)
                if name in {"fsync", "fsync_dir"} and owner != "os":  # os is what OsFs calls
                    sites.add((path.name, node.lineno))
    return sorted(sites)


ALL_SITES = call_sites()


def in_words(site):
    """Return the function around a site, and which of its syncs it is: lines move."""
    module, line = site
    text = (Path(helios.trainer.store.__file__).parent / module).read_text()
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    around = max((f for f in functions if f.lineno <= line), key=lambda f: f.lineno)
    before = [
        other for other in ALL_SITES if other[0] == module and around.lineno <= other[1] <= line
    ]
    return f"{module}-{around.name}-{len(before)}"


PARTS = {"commit.py-commit-2", "commit.py-_finish_removal-1", "commit.py-_remove_parts-1"}
"""The syncs that are there for the parts of a checkpoint; ``test_parts.py`` leaves them out."""

SITES = [site for site in ALL_SITES if in_words(site) not in PARTS]


@pytest.mark.parametrize("seed", [0, 1])
def test_no_power_failure_at_any_operation_loses_a_checkpoint_or_leaves_a_part_of_one(seed):
    assert campaigns.power_loss(trials=20, seed=seed).trials > 10_000


@pytest.mark.parametrize("site", SITES, ids=in_words)
def test_no_sync_can_be_left_out(site):
    with pytest.raises(campaigns.Violation):
        campaigns.power_loss(trials=20, muted=site)


def test_the_run_comes_to_every_sync():
    assert sites_reached() == set(SITES)


def test_the_syncs_of_parts_are_named_right():
    assert {in_words(site) for site in ALL_SITES} - {in_words(site) for site in SITES} == PARTS


def written(root, *, sync=False, sync_name=False):
    """Return a disk with a file of four blocks."""
    disk = CrashDiskFs(root)
    descriptor = disk.create(root / "file")
    disk.write(descriptor, memoryview(b"x" * 4 * BLOCK))
    if sync:
        disk.fsync(descriptor)
    disk.close(descriptor)
    if sync_name:
        disk.fsync_dir(root)
    return disk


def test_the_disk_loses_a_name_that_was_not_synced(tmp_path):
    assert written(tmp_path, sync=True).crash(Everything()) == {}


def test_the_disk_loses_bytes_that_were_not_synced(tmp_path):
    assert written(tmp_path, sync_name=True).crash(Everything()) == {"file": b""}


def test_the_disk_keeps_what_was_synced(tmp_path):
    whole = {"file": b"x" * 4 * BLOCK}
    disk = written(tmp_path, sync=True, sync_name=True)
    assert [disk.crash(loss) for loss in (Everything(), Nothing(), Random(0))] == [whole] * 3


def test_the_disk_may_keep_what_was_not_synced(tmp_path):
    assert written(tmp_path).crash(Nothing()) == {"file": b"x" * 4 * BLOCK}


def test_the_disk_tears_files_at_blocks(tmp_path):
    disk = written(tmp_path, sync_name=True)
    torn = [disk.crash(Random(seed))["file"] for seed in range(200)]
    blocks = {data[at : at + BLOCK] for data in torn for at in range(0, len(data) - BLOCK, BLOCK)}
    assert blocks == {b"x" * BLOCK, bytes(BLOCK)}


def test_the_disk_loses_renames_in_any_combination(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    disk = CrashDiskFs(tmp_path)
    for name in "ab":
        disk.replace(tmp_path / name, tmp_path / name.upper())
    images = {"".join(sorted(disk.crash(Random(seed)))) for seed in range(200)}
    assert images == {"ab", "Ab", "Ba", "AB"}
