"""PyTorch-Ignite: an ``Engine`` with an update function, as its documentation begins.

The update returns the loss as a tensor: its ``.item()`` is taken where it is logged only.
"""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, ProgressBar, TensorboardLogger

from benchmarks.contestants import LOG_EVERY, SAVE_EVERY, Job
from benchmarks.workloads import LEARNING_RATE, criterion, parameters_of


def train(job: Job) -> None:
    """Train."""
    net = job.net.train()
    job.turns.parameters = lambda: parameters_of(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)

    def update(engine: Engine, batch: Any) -> torch.Tensor:
        x, y = batch
        optimizer.zero_grad()
        loss = criterion(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    trainer = Engine(update)
    if not job.full:
        trainer.run(job.turns, max_epochs=1)
        return
    ProgressBar().attach(trainer)
    kept = {"net": net, "optimizer": optimizer, "trainer": trainer}
    saver = DiskSaver(str(job.folder / "checkpoints"), create_dir=True)
    checkpoint = Checkpoint(kept, saver, n_saved=None)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=SAVE_EVERY), checkpoint)
    with TensorboardLogger(log_dir=str(job.folder)) as logger:
        logger.attach_output_handler(
            trainer,
            Events.ITERATION_COMPLETED(every=LOG_EVERY),
            tag="train",
            output_transform=lambda loss: {"loss": loss},
        )
        trainer.run(job.turns, max_epochs=1)
