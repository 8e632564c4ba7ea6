"""Which checkpoints stay."""

from __future__ import annotations

import math

import pytest

from helios.functional.plan import Plan
from helios.trainer.store import Retention, Store, pin_checkpoint, unpin_checkpoint
from helios.trainer.store.reading import committed
from helios.trainer.store.retention import superfluous
from tests.trainer.store.tiny import NAME, UnsyncedFs, counters, manifest, save, stem


def saved(step, sequence=None, **fields):
    """Return the manifest of a step; it is the step's commit if no other number is given."""
    return manifest(f"{stem(step)}.pth", 1, "", sequence or step, **fields)


def scored(scores, mode="min"):
    """Return manifests of steps 1, 2, ... with scores."""
    return [
        saved(step, score=score, metric=None if score is None else "loss", mode=mode)
        for step, score in enumerate(scores, start=1)
    ]


def kept(retention, manifests, pinned=()):
    """Return the steps that are kept, once the last one is written."""
    pins = {stem(step) for step in pinned}
    gone = superfluous(retention, manifests, manifests[-1].stem, pins)
    return [m.position[1] for m in manifests if m.stem not in gone]


@pytest.mark.parametrize(
    ("last", "steps"), [(0, [5]), (1, [5]), (2, [4, 5]), (3, [3, 4, 5]), (9, [1, 2, 3, 4, 5])]
)
def test_so_many_of_the_last_are_kept(last, steps):
    assert kept(Retention(last=last), [saved(step) for step in range(1, 6)]) == steps


@pytest.mark.parametrize(
    ("mode", "best", "steps"),
    [("min", 0, [6]), ("min", 1, [2, 6]), ("min", 2, [2, 4, 6]), ("max", 1, [3, 6])],
)
def test_the_best_are_kept(mode, best, steps):
    manifests = scored([5.0, 1.0, 9.0, 2.0, 3.0, 4.0], mode)
    assert kept(Retention(last=1, best=best), manifests) == steps


@pytest.mark.parametrize("mode", ["min", "max"])
def test_of_equal_scores_the_earlier_is_the_best(mode):
    assert kept(Retention(best=1), scored([2.0, 2.0, 2.0], mode)) == [1, 3]


@pytest.mark.parametrize("none", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_has_no_score_is_not_the_best(none, mode, place):
    scores = [7.0, 7.0, 7.0]
    scores[place] = none
    best = 2 if place == 0 else 1
    assert kept(Retention(best=1), [*scored(scores, mode), saved(4)]) == [best, 4]


def test_where_nothing_has_a_score_only_the_last_are_kept():
    assert kept(Retention(best=3), [saved(step) for step in (1, 2, 3)]) == [3]


def test_scores_of_another_metric_are_not_compared():
    manifests = [
        saved(1, score=0.1, metric="error", mode="min"),
        saved(2, score=0.7, metric="accuracy", mode="max"),
        saved(3, score=0.6, metric="accuracy", mode="max"),
    ]
    assert kept(Retention(best=1), manifests) == [2, 3]


def test_the_best_of_the_last_count_once():
    assert kept(Retention(last=2, best=1), scored([3.0, 2.0, 1.0])) == [2, 3]


def test_every_so_many_epochs_one_is_kept():
    epochs = [counters(step) | {"global_epoch": step // 2} for step in range(1, 9)]
    manifests = [saved(n, counters=known, plan=Plan()) for n, known in enumerate(epochs, 1)]
    assert kept(Retention(every=2), manifests) == [1, 4, 5, 8]


def test_every_so_many_updates_one_is_kept_where_updates_count():
    assert kept(Retention(every=3), [saved(step) for step in range(1, 8)]) == [3, 6, 7]


def test_the_pinned_are_kept_and_take_nobody_s_place():
    manifests = [saved(step) for step in range(1, 6)]
    assert kept(Retention(last=2), manifests, pinned=[1, 5]) == [1, 4, 5]


def test_what_is_not_finite_takes_nobody_s_place():
    manifests = [saved(1), saved(2), saved(3, finite=False), saved(4, finite=False)]
    assert kept(Retention(last=2), manifests) == [1, 2, 4]


def test_what_is_not_finite_is_never_the_best():
    manifests = scored([5.0, 4.0])
    manifests.insert(0, saved(9, sequence=1, finite=False, score=0.0, metric="loss", mode="min"))
    assert kept(Retention(last=0, best=1), manifests) == [2]


def test_the_newest_healthy_one_is_kept_even_if_none_of_the_last_are_to_be():
    manifests = [saved(1), saved(2), saved(3, finite=False)]
    assert kept(Retention(last=0), manifests) == [2, 3]


def test_the_order_is_that_of_the_commits_not_that_of_the_numbers():
    """A run that went on from step 2 writes lower numbers than are there."""
    manifests = [saved(8, sequence=1), saved(9, sequence=2), saved(3, sequence=3)]
    assert kept(Retention(last=2), manifests) == [9, 3]


def test_the_oldest_is_removed_first():
    manifests = [saved(9, sequence=1), saved(8, sequence=2), saved(3, sequence=3)]
    assert superfluous(Retention(), manifests, stem(3), ()) == [stem(9), stem(8)]


def store(tmp_path, **retention):
    return Store(tmp_path / NAME, Retention(**retention), UnsyncedFs())


def on_disk(tmp_path):
    found = committed(UnsyncedFs(), tmp_path / NAME, NAME)
    return sorted(int(entry.stem.split("_")[4]) for entry in found)


def test_a_store_without_a_retention_keeps_all(tmp_path):
    with Store(tmp_path / NAME, None, UnsyncedFs()) as opened:
        for step in (1, 2, 3):
            save(opened, step)
    assert on_disk(tmp_path) == [1, 2, 3]


def test_a_store_keeps_what_its_retention_says(tmp_path):
    with store(tmp_path, last=2) as opened:
        for step in (1, 2, 3, 4):
            save(opened, step)
    assert on_disk(tmp_path) == [3, 4]


def test_what_is_unpinned_goes_with_the_next_save(tmp_path):
    with store(tmp_path) as opened:
        save(opened, 1)
        pin_checkpoint(tmp_path / NAME / f"{stem(1)}.pth")
        save(opened, 2)
        assert on_disk(tmp_path) == [1, 2]
        unpin_checkpoint(tmp_path / NAME / f"{stem(1)}.pth")
        save(opened, 3)
    assert on_disk(tmp_path) == [3]


@pytest.mark.parametrize("kind", ["json", "pth"])
def test_the_broken_are_never_removed_and_count_for_nothing(tmp_path, kind):
    with store(tmp_path, last=2) as opened:
        save(opened, 1)
        save(opened, 2)
    (tmp_path / NAME / f"{stem(2)}.{kind}").write_bytes(b"broken")
    with store(tmp_path, last=2) as opened:
        with pytest.warns(UserWarning, match="passed over"):
            assert opened.last_valid()[1].stem == stem(1)
        save(opened, 3)
        assert on_disk(tmp_path) == [1, 2, 3]
        save(opened, 4)
    assert on_disk(tmp_path) == [2, 3, 4]


def test_what_is_written_again_has_a_name_of_its_own(tmp_path):
    with store(tmp_path, last=3) as opened:
        for step in (1, 2, 1):
            save(opened, step)
    names = {path.name for path in (tmp_path / NAME).glob("*.pth")}
    assert names == {f"{stem(1)}.pth", f"{stem(2)}.pth", f"{stem(1)}_2.pth"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"last": -1}, ValueError),
        ({"best": -1}, ValueError),
        ({"every": 0}, ValueError),
        ({"last": 1.0}, TypeError),
        ({"best": True}, TypeError),
        ({"last": None}, TypeError),
    ],
)
def test_a_retention_of_other_numbers_is_refused_by_name(arguments, error):
    with pytest.raises(error, match=f"{next(iter(arguments))}: received"):
        Retention(**arguments)


def test_a_broken_checkpoint_of_an_earlier_process_takes_nobody_s_place(tmp_path):
    folder = tmp_path / NAME
    with Store(folder) as store:
        for step, score in ((1, 0.1), (2, 0.2), (3, 0.3)):
            save(store, step, score=score, metric="loss", mode="min")
    path = folder / f"{stem(1)}.pth"
    path.write_bytes(path.read_bytes()[:-1])
    with Store(folder, Retention(best=1)) as store:
        assert store.last_valid() is not None
        with pytest.warns(UserWarning, match=rf"takes nobody's place: .*{stem(1)}"):
            save(store, 4)
    left = sorted(p.stem for p in folder.glob("*.pth"))
    assert left == [stem(1), stem(2), stem(4)]  # the broken one is for people to look at
