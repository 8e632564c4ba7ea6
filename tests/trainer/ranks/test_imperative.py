"""A model that trains by side effect on two ranks, its network wrapped by the user in setup()."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import helios
from helios.trainer.store import read_checkpoint
from tests import zoo
from tests.trainer.ranks import small, world
from tests.trainer.runs import Stopper, same

UPDATES = small.UPDATES


class Wrapped(helios.ImperativeModel):
    """Dropout and batch normalisation, in DistributedDataParallel where there are several ranks."""

    def __init__(self, save_name=small.NAME, wrap=True):
        super().__init__(save_name)
        self.wrap = wrap

    def setup(self, fast_init=False):
        net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
        self._net = net.to(self.device)
        self._model = self._net
        if self.is_distributed and self.wrap:
            self._model = DistributedDataParallel(self._net)
        self._optimizer = torch.optim.Adam(self._net.parameters(), lr=1e-2)

    def train_step(self, batch, state):
        x, y = batch
        self._optimizer.zero_grad()
        loss = F.cross_entropy(self._model(x), y)
        loss.backward()
        self._optimizer.step()
        self._loss_items["loss"] = loss.detach()

    def valid_step(self, batch, step):
        x, y = batch
        logits = self._net(x)
        return F.cross_entropy(logits, y), {"accuracy": logits.argmax(1) == y}

    def state_dict(self):
        return {"net": self._net.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state_dict, fast_init=False):
        self._net.load_state_dict(state_dict["net"])
        self._optimizer.load_state_dict(state_dict["optimizer"])


def fit(folder, stop=0, wrap=True):
    plugins = [Stopper(stop)] if stop else []
    made = small.trainer(folder, plugins=plugins)
    assert made.fit(Wrapped(wrap=wrap), small.Data())
    return made.state.current_iteration


def last(folder):
    held = small.contents(folder)
    return {key: held[key] for key in ("model", "carry", "training_state", "rng", "data")}


def test_a_stop_and_a_resume_change_no_bit(tmp_path):
    world.values(world.run(fit, 2, args=(str(tmp_path / "whole"),)))
    for stop in (2, 5):
        folder = str(tmp_path / f"cut-{stop}")
        assert world.values(world.run(fit, 2, args=(folder, stop))) == [stop, stop]
        assert world.values(world.run(fit, 2, args=(folder,))) == [UPDATES, UPDATES]
        assert helios.first_difference(last(folder), last(tmp_path / "whole")) is None


def by_hand(folder):
    """Train as the model does: each rank on its half of every batch."""
    rank = world.join()
    torch.set_num_threads(1)
    model = Wrapped()
    model.is_distributed = True
    model.prepare(0)
    batches = zoo.classes(3, size=8)
    for number, (x, y) in enumerate(batches, 1):
        torch.manual_seed(helios.train_key(0, number))
        half = slice(0, 4) if rank == 0 else slice(4, 8)
        model.train_step((x[half], y[half]), helios.trainer.TrainingState())
    if rank == 0:
        torch.save(model.state_dict()["net"], Path(folder) / "by_hand.pt")


class Tensors(helios.DataModule):
    def setup(self):
        batches = zoo.classes(3, size=8)
        rows = torch.utils.data.TensorDataset(
            *(torch.cat(parts) for parts in zip(*batches, strict=False))
        )
        self._train_dataset = self._create_dataset(rows, {"batch_size": 8})


def by_trainer(folder):
    arguments = {"total_steps": 3, "valid_frequency": None, "random_seed": 0}
    assert small.trainer(folder, **arguments).fit(Wrapped(), Tensors())


def test_it_has_the_bits_of_a_loop_written_by_hand_on_two_ranks(tmp_path):
    world.values(world.run(by_hand, 2, args=(str(tmp_path),)))
    world.values(world.run(by_trainer, 2, args=(str(tmp_path),)))
    expected = torch.load(tmp_path / "by_hand.pt", weights_only=True)
    assert same(dict(expected), dict(last(tmp_path)["model"]["net"]))


def test_networks_that_drift_apart_are_an_error_that_says_so(tmp_path):
    ended = world.run(fit, 2, args=(str(tmp_path), 0, False))
    assert all(outcome.status != 0 for outcome in ended)
    assert "has other parameters than rank 0" in ended[0].output


class Stopping(Wrapped):
    """Asks to stop on one rank alone."""

    def should_training_stop(self):
        return self.rank == 1 and self.trainer.state.global_iteration >= 2


def stopped_by_one(folder):
    made = small.trainer(folder)
    assert made.fit(Stopping(), small.Data())
    return made.state.current_iteration


def test_one_rank_that_asks_to_stop_stops_all(tmp_path):
    assert world.values(world.run(stopped_by_one, 2, args=(str(tmp_path),))) == [2, 2]


def test_ranks_that_are_started_for_it_give_the_model_back(tmp_path):
    model = Wrapped()
    made = small.trainer(tmp_path, cpu_ranks=2)
    assert made.fit(model, small.Data())
    assert made.state.current_iteration == UPDATES
    (path,) = (tmp_path / small.NAME).glob(f"*iter_{UPDATES}.pth")
    assert same(dict(model._net.state_dict()), dict(read_checkpoint(path)["model"]["net"]))
