"""helios-ml, the public library of the same import name. Its step is written by its user."""

from __future__ import annotations

from typing import Any

import torch

import helios.core.logging as helios_logging
import helios.data as helios_data
import helios.model as helios_model
import helios.trainer as helios_trainer
from benchmarks.contestants import Job
from benchmarks.turns import Turns
from benchmarks.workloads import LEARNING_RATE, criterion, parameters_of


class Model(helios_model.Model):
    """The network of a job; the step is that of its documentation."""

    def __init__(self, job: Job) -> None:
        super().__init__("checkpoints")
        self.job = job

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.job.net
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=LEARNING_RATE)

    def train(self) -> None:
        self.net.train()

    def train_step(self, batch: Any, state: Any) -> None:
        x, y = batch
        self.optimizer.zero_grad()
        loss = criterion(self.net(x), y)
        loss.backward()
        self.optimizer.step()
        self.loss = loss

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}


class Logging(Model):
    """It logs its loss as well."""

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        super().on_training_batch_end(state, should_log)
        if should_log:
            writer = helios_logging.get_tensorboard_writer()
            writer.add_scalar("loss", self.loss.item(), state.current_iteration)


class Sampler:
    """What the trainer wants beside a loader; the batches are in their order already."""

    start_iter = 0

    def set_epoch(self, epoch: int) -> None:
        """Do nothing."""


class Batches(helios_data.DataModule):
    """Batches that are there already."""

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self.turns = turns

    def setup(self) -> None:
        pass

    def train_dataloader(self) -> Any:
        return self.turns, Sampler()


def train(job: Job) -> None:
    """Train."""
    job.turns.parameters = lambda: parameters_of(job.net)
    trainer = helios_trainer.Trainer(
        train_unit="iteration",
        total_steps=len(job.turns),
        use_cpu=True,
        print_banner=False,
        **job.extras(),
    )
    if not trainer.fit((Logging if job.full else Model)(job), Batches(job.turns)):
        raise SystemExit("fit returned False")
