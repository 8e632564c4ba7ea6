"""skorch; its checkpoints and its TensorBoard go by epochs, so that these are callbacks by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, ProgressBar
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter

from benchmarks.contestants import LOG_EVERY, SAVE_EVERY, Job
from benchmarks.turns import Turns
from benchmarks.workloads import LEARNING_RATE, Criterion, parameters_of


class Batches(Dataset):  # type: ignore[type-arg]
    """The turns, as skorch wants to be given data."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def __len__(self) -> int:
        return len(self.turns)


class Every(Callback):
    """Logs and saves after so many batches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def initialize(self) -> Any:
        self.writer_ = SummaryWriter(self.folder)
        self.done_ = 0
        return self

    def on_batch_end(self, net: Any, loss: Any = None, **rest: Any) -> None:
        self.done_ += 1
        if self.done_ % LOG_EVERY == 0:
            self.writer_.add_scalar("loss", loss.item(), self.done_)
        if self.done_ % SAVE_EVERY == 0:
            into = self.folder / "checkpoints" / str(self.done_)
            into.mkdir(parents=True)
            net.save_params(f_params=into / "params.pt", f_optimizer=into / "optimizer.pt")


def train(job: Job) -> None:
    """Train."""
    job.turns.parameters = lambda: parameters_of(job.net)
    callbacks: Any = "disable"
    if job.full:
        callbacks = [ProgressBar(batches_per_epoch=len(job.turns)), Every(job.folder)]
    net = NeuralNet(
        job.net,
        criterion=Criterion,
        optimizer=torch.optim.AdamW,
        lr=LEARNING_RATE,
        max_epochs=1,
        train_split=None,
        iterator_train=lambda dataset, batch_size: dataset.turns,
        callbacks=callbacks,
        verbose=0,
    )
    net.fit(Batches(job.turns))
