"""Lightning; with everything off in its ``barebones`` mode, which is made for such measurements."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.contestants import LOG_EVERY, SAVE_EVERY, Job
from benchmarks.workloads import LEARNING_RATE, criterion, parameters_of


class Module(LightningModule):
    """The network of a job."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        return criterion(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.net.parameters(), lr=LEARNING_RATE)


class Logging(Module):
    """It logs its loss as well."""

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = super().training_step(batch, index)
        self.log("loss", loss)
        return loss


def train(job: Job) -> None:
    """Train."""
    job.turns.parameters = lambda: parameters_of(job.net)
    if job.full:
        saver = ModelCheckpoint(
            dirpath=job.folder / "checkpoints",
            filename="{step}",
            every_n_train_steps=SAVE_EVERY,
            save_top_k=-1,
        )
        options: dict[str, Any] = {
            "logger": TensorBoardLogger(job.folder),
            "log_every_n_steps": LOG_EVERY,
            "callbacks": [saver],
            "enable_model_summary": False,
        }
    else:
        options = {"barebones": True}
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=1, **options)
    trainer.fit((Logging if job.full else Module)(job.net), job.turns)
