"""This project, in its variants."""

from __future__ import annotations

from typing import Any

import torch

import helios
from benchmarks.contestants import Job
from benchmarks.workloads import LEARNING_RATE, criterion


class Given(helios.Model):
    """The network of a job."""

    def __init__(self, job: Job) -> None:
        super().__init__("checkpoints")  # the name of its folder
        self.job = job

    def setup(self, fast_init: bool = False) -> None:
        self.net = self.job.net
        options = {"fused": True} if self.job.variant == "fused" else {}
        self.optimizer = helios.optim.AdamW(lr=LEARNING_RATE, **options)

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return criterion(self.net(x), y)


class Stopped(Given):
    """Takes its turns in a hook: a list of batches has no place to stop it from."""

    def should_training_stop(self) -> bool:
        self.job.turns.reached(self.trainer.state.current_iteration)
        return False


class Batches(helios.DataModule):
    """Batches that are there already."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def setup(self) -> None:
        pass

    def train_dataloader(self) -> Any:
        return self.batches


def train(job: Job) -> None:
    """Train; variants are ``"compiled"``, ``"fused"`` and ``"iterable"``."""
    turns = job.turns
    iterable = job.variant == "iterable"
    model = (Given if iterable else Stopped)(job)
    options: dict[str, Any] = {"compile": True} if job.variant == "compiled" else {}
    trainer = helios.Trainer(
        train_unit="iteration",
        total_steps=len(turns),
        use_cpu=True,
        print_banner=False,
        **options,
        **job.extras(),
    )
    names = [f"net.{name}" for name, _ in job.net.named_parameters()]

    def parameters() -> list[torch.Tensor]:
        carried = trainer.state.carry.params
        return [carried[name].detach() for name in names]

    turns.parameters = parameters
    if not trainer.fit(model, Batches(turns if iterable else turns.as_list())):
        raise SystemExit("fit returned False")
