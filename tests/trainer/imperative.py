"""Models that train by side effect, for the tests of them."""

from __future__ import annotations

import os
import random
import signal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import helios
from helios.trainer.store.fs import OsFs
from helios.trainer.store.reading import last_valid
from tests import zoo
from tests.trainer.runs import Batches, PlannedError, trainer


def network() -> nn.Module:
    """Return what draws from torch and keeps buffers."""
    return nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1)
    )


class Whole(helios.ImperativeModel):
    """Dropout, batch normalisation, a rate that falls, draws of Python and numpy.

    Args:
        fails: the place and the micro-batch at which it fails: ``("train_step", 3)``.
        kills: whether it fails by a signal that nothing can hold up.
    """

    def __init__(self, save_name="whole", fails=("", 0), kills=False):
        super().__init__(save_name)
        self.fails, self.kills = fails, kills

    def setup(self, fast_init=False):
        self._net = network().to(self.device)
        self._optimizer = torch.optim.AdamW(self._net.parameters(), lr=1e-2)
        self._scheduler = torch.optim.lr_scheduler.MultiStepLR(self._optimizer, [2, 4], gamma=0.5)

    def reach(self, place, iteration=None):
        done = self.trainer.state.global_iteration if iteration is None else iteration
        if self.fails[0] == place and done >= self.fails[1]:
            if self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            raise PlannedError(place)

    def train_step(self, batch, state):
        x, y = batch
        noise = random.random() + float(np.random.rand())
        loss = F.mse_loss(self._net(x), y * noise)
        (loss / self.trainer.accumulation_steps).backward()
        self.reach("train_step")
        if state.window_iter == 0:
            self._optimizer.step()
            self._scheduler.step()
            self._optimizer.zero_grad()
        self._loss_items["loss"] = loss

    def on_training_batch_start(self, state):
        super().on_training_batch_start(state)
        self.reach("batch_start", state.global_iteration)

    def on_training_batch_end(self, state, should_log=False):
        self.reach("batch_end")

    def valid_step(self, batch, step):
        x, y = batch
        self._val_scores["error"] = F.mse_loss(self._net(x), y).item()
        self.reach("valid_step")

    def on_validation_end(self, validation_cycle):
        # A rate that hangs on a validation is a state that validations change.
        self._optimizer.param_groups[0]["lr"] *= 0.9
        self.reach("validation_end")

    def on_training_epoch_end(self, current_epoch):
        self._optimizer.param_groups[0]["lr"] *= 0.8
        self.reach("epoch_end")

    def state_dict(self):
        return {
            "net": self._net.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
        }

    def load_state_dict(self, state_dict, fast_init=False):
        self._net.load_state_dict(state_dict["net"])
        if not fast_init:
            self._optimizer.load_state_dict(state_dict["optimizer"])
            self._scheduler.load_state_dict(state_dict["scheduler"])


BATCHES = 5
PLANS = {
    ("iteration", 1): {"steps": 8, "valid_frequency": 2, "chkpt_frequency": 3},
    ("iteration", 3): {"steps": 4, "valid_frequency": 2, "chkpt_frequency": 1},
    ("epoch", 1): {"steps": 2, "valid_frequency": 1, "chkpt_frequency": 1},
    ("epoch", 3): {"steps": 2, "valid_frequency": 1, "chkpt_frequency": 1},
}


def fit(root, plan, model=None, plugins=(), **arguments) -> bool:
    """Run a plan to its end, or to where it fails; tell whether it did not."""
    unit, accumulation = plan
    given = {"print_frequency": 2, "plugins": plugins, "random_seed": 3, **PLANS[plan]}
    made = trainer(root, unit=unit, accumulation_steps=accumulation, **{**given, **arguments})
    return made.fit(Whole() if model is None else model, data())


def data() -> Batches:
    """Return five batches to train on, two to validate and two to test on."""
    return Batches(zoo.regression(BATCHES), zoo.regression(2, seed=1), zoo.regression(2, seed=2))


def content(root, name="whole"):
    """Return what the last checkpoint holds, without wall clock and names."""
    found = last_valid(OsFs(), root / name, name)
    assert found is not None
    held, _ = found
    del held["training_state"]["average_iter_time"], held["log"]
    return held
