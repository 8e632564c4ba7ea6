"""The flight record of several ranks is that of one, whatever puts their gradients together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import helios
from helios.trainer.flight import flight_record
from tests import zoo
from tests.trainer.ranks import world

OPTIONS = {
    "mean": {},
    "canonical": {"reduction": "canonical", "pieces": 2},
    "sharded": {"parallel": helios.FSDP()},
}


class Mean(helios.Model):
    """A mean loss in float64, on two ranks of more than one element each."""

    def __init__(self):
        super().__init__("net")

    def setup(self, fast_init=False):
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.optimizer = helios.optim.AdamW(lr=0.05)

    def loss(self, batch):
        x, y, _ = batch
        return F.mse_loss(self.net(x), y.expand(-1, 2))


class Weighted(Mean):
    """A loss that is a sum, with a weight."""

    def loss(self, batch):
        x, y, mask = batch
        return helios.Loss(((self.net(x) - y).square() * mask[:, None]).sum(), weight=mask.sum())


MODELS = {"mean": Mean, "weighted": Weighted}


class Data(helios.DataModule):
    """Seven samples in batches of three: the last has one, and of its two shares one has none."""

    def setup(self):
        columns = zip(*zoo.batches_for(zoo.Weighted(), 1, size=7), strict=True)
        samples = TensorDataset(*map(torch.cat, columns))
        self._train_dataset = self._create_dataset(samples, {"batch_size": 3, "shuffle": True})


def fit(root, loss, how, steps):
    """On a rank: train, and record it."""
    made = helios.Trainer(
        train_unit="iteration",
        total_steps=steps,
        accumulation_steps=2,
        print_frequency=2,
        chkpt_root=Path(root),
        use_cpu=True,
        print_banner=False,
        rank_timeout=20,
        flight_recorder=True,
        **OPTIONS[how],
    )
    return made.fit(MODELS[loss](), Data())


def recorded(ranks, root, loss, how, steps=7):
    root.mkdir(exist_ok=True)
    assert all(world.values(world.run(fit, ranks, args=(str(root), loss, how, steps))))
    found = flight_record(root / "net")
    found.check()
    return found


@pytest.mark.parametrize("how", OPTIONS)
@pytest.mark.parametrize("loss", MODELS)
def test_two_ranks_record_what_one_records(loss, how, tmp_path):
    one = recorded(1, tmp_path / "1", loss, "canonical" if how == "canonical" else "mean")
    two = recorded(2, tmp_path / "2", loss, how)
    assert len(one) == len(two) == 7
    for a, b in zip(one, two, strict=True):
        assert (a.indices, a.batches, a.rest) == (b.indices, b.batches, b.rest)
        assert a.loss == pytest.approx(b.loss, rel=1e-12)
        assert a.norm == pytest.approx(b.norm, rel=1e-12)
    if how == "canonical":
        assert one.path.read_bytes() == two.path.read_bytes()


@pytest.mark.parametrize("how", OPTIONS)
def test_a_resumed_run_of_two_ranks_has_the_record_of_an_uninterrupted_one(how, tmp_path):
    whole = recorded(2, tmp_path / "whole", "mean", how)
    for steps in (2, 3, 7):
        parts = recorded(2, tmp_path / "parts", "mean", how, steps)
    assert parts.path.read_bytes() == whole.path.read_bytes()
