"""A checkpoint with parts is there whole or not at all, wherever the power fails."""

from __future__ import annotations

import io

import pytest

from helios.trainer.store import Store
from helios.trainer.store.commit import (
    Part,
    part_temporary,
    recover,
    remove,
    write_digested,
)
from helios.trainer.store.index import Index, encode_index
from tests.trainer.store.faulty import (
    CrashDiskFs,
    Everything,
    MutedFs,
    Nothing,
    PowerCut,
    Random,
    materialise,
)
from tests.trainer.store.test_power_loss import ALL_SITES, PARTS, in_words
from tests.trainer.store.tiny import NAME, UnsyncedFs, manifest, payload, stem, step_of

LOSSES = [Everything, Nothing, *(lambda seed=seed: Random(seed) for seed in range(20))]


def parts_of(fs, folder, step):
    """Do what the ranks do before rank 0 commits."""
    contents = {None: encode_index(Index(1, {})), 0: b"0" * 700 + bytes([step]), 1: b"1" * 900}
    parts = []
    for number, data in contents.items():
        path = part_temporary(folder, stem(step), number)
        parts.append(
            Part(path, *write_digested(fs, path, lambda file, data=data: file.write(data)))
        )
    fs.fsync_dir(folder)
    return parts


def save(store, fs, step):
    parts = parts_of(fs, store.folder, step)
    store.save(
        f"{stem(step)}.pth",
        lambda file: file.write(io.BytesIO(payload(step)).getbuffer()),
        lambda *known: manifest(*known, step=step),
        parts=parts,
    )


class Cut:
    """Lets the power fail before an operation."""

    def __init__(self):
        self.left = 1 << 30

    def __call__(self, name):
        self.left -= 1
        if self.left < 0:
            raise PowerCut


def survivors(root):
    """Return the step of the newest checkpoint after a crash, once a new run has cleared up."""
    folder = root / NAME
    with Store(folder, fs=UnsyncedFs()) as store:
        content, path = store.last_valid(joined=False)
        names = {p.name for p in folder.iterdir()} - {".lock"}
    assert not [name for name in names if name.startswith(".")], sorted(names)
    kinds = {name.split(".", 1)[1] for name in names if name.startswith(f"{path.stem}.")}
    assert kinds == {"0.shard", "1.shard", "index", "json", "pth"}
    for name in names:
        assert f"{name.split('.')[0]}.json" in names, sorted(names)
    return step_of(content)


def crashes(tmp_path, act, muted=None):
    """Let the power fail at every operation of an act on a folder with two checkpoints."""
    seen = []
    for at in range(200):
        root = tmp_path / f"run-{at}"
        root.mkdir()
        cut = Cut()
        disk = CrashDiskFs(root, cut)
        fs = MutedFs(disk, muted)
        store = Store(root / NAME, fs=fs)
        for step in (1, 2):
            save(store, disk, step)
        done = act(store, fs, lambda at=at, cut=cut: setattr(cut, "left", at))
        for number, loss in enumerate(LOSSES):
            after = tmp_path / f"after-{at}-{number}"
            materialise(disk.crash(loss()), after)
            seen.append((done, survivors(after)))
        cut.left = 1 << 30
        store.close()
        if done:
            return seen
    raise AssertionError("it does not end")


def until_cut(act):
    try:
        act()
    except PowerCut:
        return False
    return True


def commit(store, fs, begin):
    begin()
    return until_cut(lambda: save(store, fs, 3))


def removal(store, fs, begin):
    names = [f"{stem(2)}.{kind}" for kind in ("index", "0.shard", "1.shard")]
    begin()
    return until_cut(lambda: remove(fs, store.folder, stem(2), names))


def recovery(store, fs, begin):
    """A power failure has kept the name of a manifest, and not that of its file."""
    fs.unlink(store.folder / f"{stem(2)}.pth")
    fs.fsync_dir(store.folder)
    begin()
    return until_cut(lambda: recover(fs, store.folder, NAME))


def test_a_commit_that_is_cut_off_leaves_the_one_before_or_the_new_one(tmp_path):
    seen = crashes(tmp_path, commit)
    assert {step for _, step in seen} == {2, 3}
    assert {step for done, step in seen if done} == {3}


def test_a_removal_that_is_cut_off_leaves_it_whole_or_nothing_of_it(tmp_path):
    seen = crashes(tmp_path, removal)
    assert {step for _, step in seen} == {1, 2}
    assert {step for done, step in seen if done} == {1}


def test_a_recovery_that_is_cut_off_is_made_again(tmp_path):
    assert {step for _, step in crashes(tmp_path, recovery)} == {1}


ACTS = {
    "commit.py-commit-2": commit,
    "commit.py-_finish_removal-1": removal,
    "commit.py-_remove_parts-1": recovery,
}


@pytest.mark.parametrize("site", sorted(PARTS))
def test_no_sync_of_parts_can_be_left_out(site, tmp_path):
    [muted] = [place for place in ALL_SITES if in_words(place) == site]
    with pytest.raises((AssertionError, UserWarning)):
        crashes(tmp_path, ACTS[site], muted)


@pytest.mark.parametrize("kind", ["index", "0.shard", "17.shard"])
def test_what_a_rank_left_behind_is_removed_by_the_next_run(tmp_path, kind):
    folder = tmp_path / NAME
    with Store(folder, fs=UnsyncedFs()) as store:
        save(store, UnsyncedFs(), 1)
    (folder / f".{stem(2)}.{kind}.tmp").write_bytes(b"half")
    (folder / f".other.{kind}.tmp").write_bytes(b"a stranger's")
    Store(folder, fs=UnsyncedFs()).close()
    left = [path.name for path in folder.glob(".*.tmp")]
    assert left == [f".other.{kind}.tmp"]
