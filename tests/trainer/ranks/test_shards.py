"""Checkpoints of sharded models: whole on any number of ranks, there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from msgspec.structs import replace

import helios
from helios.errors import CheckpointError, CorruptCheckpointError, RankError, ResumeError
from helios.functional.plan import Plan
from helios.functional.serial import from_bytes, to_bytes
from helios.functional.state import TrainingState
from helios.functional.tree import digest, first_difference
from helios.trainer.ranks import shards
from helios.trainer.store import Retention, Store, read_checkpoint
from helios.trainer.store.content import restore_state, state_content, stored_state
from helios.trainer.store.guard import check_archive
from helios.trainer.store.manifest import SCHEMA, Manifest
from tests.trainer.ranks import world
from tests.trainer.ranks.sharded_runs import BLOCKS, MODELS, Run, alone
from tests.trainer.store.faulty import CountingFs
from tests.trainer.store.tiny import UnsyncedFs

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
LONG = [pytest.mark.nightly, pytest.mark.skipif(not NIGHTLY, reason="the same, at other moments")]
NAME = "m"
PLAN = Plan()


def name_of(update):
    return f"{NAME}_epoch_1_iter_{update}.pth"


def content_of(state, model):
    parts = {part: {} for part in ("rng", "log", "plugins", "fingerprint")}
    return {
        **state_content(state),
        **parts,
        "version": "1",
        "data": None,
        "plan": msgspec.to_builtins(PLAN),
        "model": dict(model.state_dict()),
    }


def describer(state):
    def describe(file, size, sha256, sequence):
        return Manifest(
            schema=SCHEMA,
            version="1",
            file=file,
            size=size,
            sha256=sha256,
            sequence=sequence,
            counters=state.dict(),
            window_iter=0,
            seed=state.seed,
            plan=PLAN,
            fingerprint={},
        )

    return describe


def folder_of(root):
    return Path(root, NAME)


def save(run, store, root, fs, update):
    return shards.save(
        store,
        run.ranks,
        fs,
        folder_of(root),
        name_of(update),
        content_of(run.state, run.model),
        run.binding,
        torch.save,
        describer(run.state),
        check_archive,
    )


def opened(run, root, fs, retention=None):
    store = Store(folder_of(root), retention, fs) if run.rank == 0 else None
    run.ranks.exchange(None)
    return store


def load(run, root):
    """Read the newest checkpoint into a run."""
    fs = UnsyncedFs()
    found = None
    if run.rank == 0:
        with Store(folder_of(root), fs=fs) as store:
            content, path = store.last_valid(joined=False)
            found = path.name
    path = folder_of(root) / run.ranks.told_by_first(found)
    if run.rank != 0:
        content = read_checkpoint(path, fs, joined=False)
    filled = shards.load(fs, path, content, run.state, run.binding)
    run.state = restore_state(filled, run.state)
    return run


def whole(run):
    """The state of all ranks, put together; it is told of by rank 0."""
    carry = run.state.carry
    slots = carry.opt_state["loss"]["slots"]
    together = [run.binding.whole(carry.params), run.binding.whole(carry.average)]
    together += [
        run.binding.whole({path: values[slot] for path, values in slots.items()})
        for slot in ("exp_avg", "exp_avg_sq")
    ]
    return to_bytes(TrainingState(carry=together))


def sharded_bits(state):
    """A digest of a rank's state but for the running metrics, of which rank 0's are saved."""
    return digest(replace(state, carry=replace(state.carry, metrics={})))


def make(root, updates=4):
    world.join()
    run = Run("Mean", 1, BLOCKS)
    fs = UnsyncedFs()
    store = opened(run, root, fs)
    for update in range(1, updates + 1):
        save(run.go(update), store, root, fs, update)
    bits = whole(run)
    world.leave()
    return bits, sharded_bits(run.state)


def take_over(root, update):
    """Read what other ranks wrote, and write it again."""
    world.join()
    run = Run("Mean", 1, BLOCKS)
    load(run, root)
    bits = whole(run)
    save(run, opened(run, root, UnsyncedFs()), root, UnsyncedFs(), update)
    world.leave()
    return bits, sharded_bits(run.state)


def whole_of(content):
    carry = stored_state(content).carry
    slots = carry.opt_state["loss"]["slots"]
    moments = [
        {path: values[slot] for path, values in slots.items()} for slot in ("exp_avg", "exp_avg_sq")
    ]
    return [carry.params, carry.average, *moments]


def test_checkpoints_go_from_any_number_of_ranks_to_any_other(tmp_path):
    root = str(tmp_path)
    first = world.values(world.run(make, 2, args=(root, 3)))
    bits = first[0][0]
    for update, ranks in enumerate((4, 1, 3, 2), 4):
        ends = world.values(world.run(take_over, ranks, args=(root, update)))
        assert [end[0] for end in ends] == [bits] * ranks
    assert [end[1] for end in ends] == [end[1] for end in first]


def test_one_process_reads_whole_tensors(tmp_path):
    [(bits, _), *_] = world.values(world.run(make, 3, args=(str(tmp_path), 2)))
    content = read_checkpoint(folder_of(tmp_path) / name_of(2))
    assert first_difference(whole_of(content), from_bytes(bits).carry) is None
    assert content["model"]["net.0.weight"] is content["carry"]["params"]["net.0.weight"]
    model = MODELS["Mean"]("mean")
    model.prepare(3)
    state = restore_state(content, helios.init_state(model, 3))
    assert list(state.carry.params) == [name for name, _ in model.named_parameters()]


def go_on(root, upto):
    world.join()
    run = load(Run("Mean", 1, BLOCKS), root)
    run.go(upto)
    bits = whole(run)
    world.leave()
    return bits


def test_a_run_goes_on_from_its_checkpoint_with_the_same_bits(tmp_path):
    [(bits, _), *_] = world.values(world.run(make, 3, args=(str(tmp_path / "a"), 6)))
    world.values(world.run(make, 3, args=(str(tmp_path / "b"), 3)))
    assert world.values(world.run(go_on, 3, args=(str(tmp_path / "b"), 6))) == [bits] * 3


def test_a_checkpoint_of_one_process_is_read_by_sharded_ranks(tmp_path):
    state = alone("Mean", 1, 3)
    model = MODELS["Mean"]("mean")
    model.prepare(3)
    content = content_of(state, model)
    with Store(folder_of(tmp_path), fs=UnsyncedFs()) as store:
        store.save(name_of(3), lambda file: torch.save(content, file), describer(state))
    for bits in world.values(world.run(go_on, 3, args=(str(tmp_path), 3))):
        assert first_difference(whole_of(content), from_bytes(bits).carry) is None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    world.values(world.run(make, 2, args=(str(root), 2)))
    return folder_of(root)


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made, folder_of(tmp_path)))


def parts(folder, update):
    stem = name_of(update).removesuffix(".pth")
    return sorted([*folder.glob(f"{stem}.*.shard"), *folder.glob(f"{stem}.index")])


def test_the_files_of_a_checkpoint_are_named_after_it(folder):
    assert [path.name.removeprefix(f"{NAME}_epoch_1_iter_2") for path in parts(folder, 2)] == [
        ".0.shard",
        ".1.shard",
        ".index",
    ]


def test_a_byte_that_is_changed_in_a_part_is_found(folder):
    for path in parts(folder, 2):
        data = path.read_bytes()
        for place in range(0, len(data), 1 if NIGHTLY else 7):
            changed = bytearray(data)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            with pytest.raises(CorruptCheckpointError, match="digest"):
                read_checkpoint(folder / name_of(2), UnsyncedFs())
        path.write_bytes(data)
    read_checkpoint(folder / name_of(2))


@pytest.mark.parametrize("damage", ["missing", "cut", "longer"])
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("joined", [True, False])
def test_a_checkpoint_with_a_broken_part_is_named_and_passed_over(folder, number, damage, joined):
    path = parts(folder, 2)[number]
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data + b"\0")
    left = {p.name for p in folder.iterdir()}
    with (
        Store(folder, fs=UnsyncedFs()) as store,
        pytest.warns(UserWarning, match="iter_2.pth is passed over"),
    ):
        content, found = store.last_valid(joined=joined)
    assert found.name == name_of(1)
    assert content["training_state"]["current_iteration"] == 1
    assert {p.name for p in folder.iterdir()} == left | {".lock"}


def retained(root):
    world.join()
    run = Run("Mean", 1, BLOCKS)
    store = opened(run, root, UnsyncedFs(), Retention(last=2))
    for update in range(1, 5):
        save(run.go(update), store, root, UnsyncedFs(), update)
    world.leave()
    return sorted(os.listdir(folder_of(root)))


def test_parts_are_removed_with_their_checkpoint(tmp_path):
    names, _ = world.values(world.run(retained, args=(str(tmp_path),)))
    kinds = ("0.shard", "1.shard", "index", "json", "pth")
    assert names == [
        ".lock",
        *(f"{NAME}_epoch_1_iter_{n}.{kind}" for n in (3, 4) for kind in kinds),
    ]


def write_with_faults(root, broken, after, lasting):
    """Save with the disk of one rank failing at each operation in turn, until none does."""
    world.join()
    run = Run("Mean", 1, BLOCKS)
    real = UnsyncedFs()
    store = opened(run, root, real)
    save(run.go(1), store, root, real, 1)
    if store is not None:
        store.close()
    run.go(2)
    failures = 0
    for at in range(1, 200):
        disk = CountingFs(
            real, 0, lambda: OSError(errno.ENOSPC, "full"), after=after, lasting=lasting
        )
        store = opened(run, root, disk)
        if run.rank == broken:
            disk.at = disk.count + at
        failed = None
        try:
            save(run, store, root, disk, 2)
        except (CheckpointError, RankError) as error:
            failed = str(error)
        disk.heal()
        told = run.ranks.exchange(failed is None)
        assert len(set(told)) == 1, told
        hit = run.ranks.exchange(bool(disk.failed))
        if store is not None:
            store.close()
            judge(folder_of(root), failed is None)
        run.ranks.exchange(None)
        if not any(hit):
            break
        failures += 1
    world.leave()
    return failures


def judge(folder, saved):
    """What is there is whole: what was acknowledged, or what was there before, and no rubbish."""
    with Store(folder, fs=UnsyncedFs()) as store:
        content, path = store.last_valid()
    update = content["training_state"]["current_iteration"]
    assert update == 2 or not saved, path
    names = {p.name for p in folder.iterdir()}
    for name in names - {".lock"}:
        assert not name.startswith("."), sorted(names)
        assert f"{name.split('.')[0]}.json" in names, sorted(names)
    for kept in folder.glob(f"{NAME}_epoch_1_iter_2*"):
        kept.unlink()


@pytest.mark.parametrize(
    ("after", "lasting"),
    [
        (False, False),
        pytest.param(True, False, marks=LONG),
        pytest.param(False, True, marks=LONG),
    ],
)
@pytest.mark.parametrize("broken", [0, 1])
def test_a_disk_that_fails_at_any_operation_leaves_what_was_saved(broken, after, lasting, tmp_path):
    told = world.values(
        world.run(write_with_faults, 2, 60.0, args=(str(tmp_path), broken, after, lasting))
    )
    assert told[0] == told[1]
    assert told[0] > (15 if broken == 0 else 4)


def say(root, broken):
    world.join()
    run = Run("Mean", 1, BLOCKS).go(1)
    fs = CountingFs(UnsyncedFs(), 0, lambda: OSError(errno.ENOSPC, "No space left"))
    store = opened(run, root, fs)
    if run.rank == broken:
        fs.at = fs.count + 3
    try:
        save(run, store, root, fs, 1)
    except CheckpointError as error:
        world.leave()
        return str(error)
    return ""


def test_all_ranks_learn_which_one_could_not_write_and_why(tmp_path):
    for message in world.values(world.run(say, 3, args=(str(tmp_path), 2))):
        assert "on rank 2: No space left" in message


def resume_another(root):
    world.join()
    run = Run("Float", 1, BLOCKS)
    try:
        load(run, root)
    except ResumeError as error:
        world.leave()
        return str(error)
    return ""


def test_a_checkpoint_of_another_dtype_is_refused_by_name(folder):
    for message in world.values(world.run(resume_another, args=(str(folder.parent),))):
        assert "params/gain is float64 [2] in it, and float32 [2] in the model" in message


def middle():
    world.join()
    run = Run("Mean", 2, BLOCKS).go(1)
    try:
        shards.split(content_of(run.state, run.model), run.binding)
    except CheckpointError as error:
        world.leave()
        return str(error)
    return ""


def test_the_middle_of_a_window_is_not_saved():
    for message in world.values(world.run(middle)):
        assert "middle of an accumulation window" in message
