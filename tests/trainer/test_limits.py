"""The first batches alone: the same in every epoch, from any position, for any workers."""

from __future__ import annotations

import pytest
import torch

import helios
from helios.data import EpochSource, source_of
from helios.trainer import find_last_checkpoint
from helios.trainer.limits import FirstBatches
from helios.trainer.store import read_checkpoint
from tests import zoo
from tests.trainer.runs import Batches, Stopper, run, same, trainer

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(3))
Y = X.sum(1, keepdim=True)


def shuffled(workers=0):
    return helios.data.from_datasets(
        train=list(zip(X, Y, strict=True)), valid=(X[:4], Y[:4]), batch_size=4, num_workers=workers
    )


def digest(made):
    """The bits of a run; wall clock is not in it."""
    return helios.digest(made.state)


class Seen(zoo.Line):
    """Notes the batches it is given, in training and in validation."""

    def setup(self, fast_init=False):
        super().setup(fast_init)
        self.trained, self.validated = [], []

    def loss(self, batch):
        (self.trained if self.training else self.validated).append(batch[0].clone())
        return super().loss(batch)


def test_no_more_batches_than_there_are():
    source = FirstBatches(EpochSource(["a", "b"]), 5)
    assert source.batches_per_epoch == 2
    assert list(source.open(0)) == ["a", "b"]


@pytest.mark.parametrize("same_epoch", [False, True])
@pytest.mark.parametrize("start", [0, 1, 3])
def test_an_epoch_opened_in_its_middle_goes_on_as_from_its_start(same_epoch, start):
    def opened(epoch, first):
        source = source_of(shuffled_loader(), seed=5)
        return list(FirstBatches(source, 3, same=same_epoch).open(epoch, first))

    assert same(opened(2, start), opened(2, 0)[start:])


def shuffled_loader():
    data = shuffled()
    data.seed = 5
    return data.train_dataloader()


def test_every_epoch_has_the_batches_that_the_first_begins_with():
    whole, model = Seen(), Seen()
    run(model=whole, data=shuffled(), unit="epoch", steps=1)
    run(model=model, data=shuffled(), unit="epoch", steps=3, overfit_batches=2)
    assert same(model.trained, whole.trained[:2] * 3)


def test_it_validates_on_the_batches_that_it_trains_on():
    model = Seen()
    run(model=model, data=shuffled(), unit="epoch", steps=1, overfit_batches=2, valid_frequency=1)
    assert same(model.validated, model.trained)


def test_it_validates_in_the_middle_of_an_epoch_too():
    model = Seen()
    loader = torch.utils.data.DataLoader(list(zip(X, Y, strict=True)), batch_size=4)
    data = Batches(loader)
    run(model=model, data=data, steps=4, overfit_batches=3, valid_frequency=2)
    assert same(model.validated, model.trained[:3] * 2)


def test_a_model_that_can_learn_gets_its_loss_down():
    made = helios.Trainer(
        *("", "epoch", 600, 600), overfit_batches=1, use_cpu=True, print_banner=False
    )
    model = zoo.Line(optimizer=lambda: helios.optim.Adam(lr=0.05))
    assert made.fit(model, shuffled())
    assert model.valid_metrics["loss"] < 1e-3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_overfit_has_the_bits_of_one_that_was_not_interrupted(tmp_path, workers):
    options = {"unit": "epoch", "steps": 3, "overfit_batches": 3, "valid_frequency": 1}
    whole = run(tmp_path / "whole", data=shuffled(), **options)
    run(tmp_path / "cut", data=shuffled(workers), plugins=[Stopper(4)], **options)
    again = run(tmp_path / "cut", data=shuffled(workers), **options)
    assert digest(again) == digest(whole)


def test_an_iterable_dataset_begins_anew_in_each_epoch():
    model = Seen()
    data = helios.data.from_datasets(train=zoo_stream(), batch_size=4)
    run(model=model, data=data, unit="epoch", steps=2, overfit_batches=2)
    assert same(model.trained, model.trained[:2] * 2)
    assert len(model.trained) == 4


class Counted(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def zoo_stream():
    return Counted()


def test_a_resume_with_another_value_is_noticed(tmp_path):
    run(tmp_path, data=shuffled(), unit="epoch", steps=1, overfit_batches=2)
    other = trainer(tmp_path, "epoch", 2)
    with pytest.warns(UserWarning, match="overfit_batches was 2 and is 0"):
        assert other.fit(zoo.Line(), shuffled())


def test_a_replay_overfits_as_the_run_did(tmp_path):
    options = {"unit": "epoch", "overfit_batches": 2, "chkpt_frequency": 1}
    run(tmp_path, data=shuffled(), steps=3, **options)
    folder = tmp_path / "line"
    first = folder / "line_epoch_1_iter_2.pth"
    assert read_checkpoint(first)["fingerprint"]["overfit_batches"] == 2
    states = helios.replay(zoo.Line(), shuffled(), first, use_cpu=True)
    assert helios.verify(states, helios.recorded_digests(folder)) is None
    assert find_last_checkpoint(folder) == folder / "line_epoch_3_iter_6.pth"


@pytest.mark.parametrize("value", [0, -1])
def test_less_than_one_batch_is_refused(value):
    with pytest.raises(ValueError, match="overfit_batches"):
        trainer(overfit_batches=value)


def test_it_stands_for_all_of_a_source():
    """It never calls the constructor of a source, so what it does not override would fail."""
    public = {name for name in vars(EpochSource) if not name.startswith("_")}
    assert public - {"batches_per_epoch"} <= vars(FirstBatches).keys()


@pytest.mark.parametrize("same", [False, True])
def test_indices_in_a_row_are_those_one_by_one(same):
    data = helios.data.from_datasets(train=(torch.arange(20.0),), batch_size=3)
    data.setup()
    first = FirstBatches(source_of(data.train_dataloader()), 4, same=same)
    for epoch in range(2):
        in_a_row = [list(batch) for batch in first.indices_from(epoch, 1)]
        assert in_a_row == [first.indices(epoch, number) for number in range(1, 4)]
