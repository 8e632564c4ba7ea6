"""What the tests of the trainer share: data modules, trainers and recorders of a few lines."""

from __future__ import annotations

from typing import Any

import torch

import helios
from tests import zoo


class Batches(helios.DataModule):
    """Loaders that exist already; ``teardown`` is counted."""

    def __init__(self, train: Any = None, valid: Any = None, test: Any = None) -> None:
        self.loaders = train, valid, test
        self.torn_down = 0

    def setup(self):
        pass

    def train_dataloader(self):
        return self.loaders[0]

    def valid_dataloader(self):
        return self.loaders[1]

    def test_dataloader(self):
        return self.loaders[2]

    def teardown(self):
        self.torn_down += 1


class Stopper(helios.Plugin):
    """Asks to stop once ``batches`` micro-batches are done."""

    def __init__(self, batches):
        super().__init__("stopper")
        self.batches = batches

    def should_training_stop(self):
        state = self.trainer.state
        return state.global_iteration >= self.batches


class PlannedError(Exception):
    """What the tests let fail."""


class FailsAt(zoo.Line):
    """Raises at a place, in the n-th micro-batch, as long as it is armed."""

    def __init__(self, place, at=3, error=None, save_name="line"):
        super().__init__(save_name)
        self.place, self.at, self.error = place, at, error or PlannedError("boom")
        self.armed = True

    def reach(self, place):
        if self.armed and place == self.place and self.trainer.state.global_iteration >= self.at:
            raise self.error

    def loss(self, batch):
        self.reach("loss" if self.training else "valid_step")
        return super().loss(batch)

    def on_training_batch_start(self, state):
        if self.armed and self.place == "batch_start" and state.global_iteration >= self.at:
            raise self.error

    def on_training_epoch_start(self, current_epoch):
        self.reach("epoch_start")

    def on_training_epoch_end(self, current_epoch):
        self.reach("epoch_end")

    def on_training_end(self):
        self.reach("end")

    def have_metrics_improved(self):
        self.reach("improved")
        return super().have_metrics_improved()


def trainer(root=None, unit="iteration", steps: Any = 6, **arguments) -> helios.Trainer:
    """Return a quiet trainer on the CPU."""
    arguments = {"use_cpu": True, "print_banner": False, "chkpt_root": root, **arguments}
    return helios.Trainer(train_unit=unit, total_steps=steps, **arguments)


def run(root=None, model=None, data=None, **arguments) -> helios.Trainer:
    """Fit, successfully, and return the trainer."""
    made = trainer(root, **arguments)
    assert made.fit(zoo.Line() if model is None else model, data or Batches(zoo.regression(5)))
    return made


def names(folder) -> list[str]:
    """Return the names of the files below a folder, without manifests, locks and crashes.

    A manifest belongs to its checkpoint, and every checkpoint has one.
    """
    files = {path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    # A failing step leaves its record, and pins the checkpoint to begin at.
    files = {path for path in files if path.suffix != ".pin" and path.parent.name != "crashes"}
    manifests = {path.with_suffix(".json") for path in files if path.suffix == ".pth"}
    assert manifests <= files
    return sorted(path.name for path in files - manifests)


def params(model) -> dict[str, torch.Tensor]:
    """Return copies of a model's parameters."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def same(a, b) -> bool:
    """Tell whether two trees have the same bits."""
    return helios.first_difference(a, b) is None
