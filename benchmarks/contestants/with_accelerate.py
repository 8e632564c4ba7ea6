"""Accelerate: the hand-written loop, with what its documentation puts in the place of five lines.

What is no `DataLoader`, ``prepare`` leaves as it is.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm

from benchmarks.contestants import LOG_EVERY, SAVE_EVERY, Job
from benchmarks.workloads import LEARNING_RATE, criterion, parameters_of


def train(job: Job) -> None:
    """Train."""
    tracking = {"log_with": "tensorboard", "project_dir": job.folder} if job.full else {}
    accelerator = Accelerator(cpu=True, mixed_precision="no", **tracking)
    optimizer = torch.optim.AdamW(job.net.parameters(), lr=LEARNING_RATE)
    net, optimizer, turns = accelerator.prepare(job.net.train(), optimizer, job.turns)
    job.turns.parameters = lambda: parameters_of(net)
    if not job.full:
        for x, y in turns:
            optimizer.zero_grad()
            loss = criterion(net(x), y)
            accelerator.backward(loss)
            optimizer.step()
        return
    accelerator.init_trackers("run")
    for done, (x, y) in enumerate(tqdm(turns), start=1):
        optimizer.zero_grad()
        loss = criterion(net(x), y)
        accelerator.backward(loss)
        optimizer.step()
        if done % LOG_EVERY == 0:
            accelerator.log({"loss": loss.item()}, step=done)
        if done % SAVE_EVERY == 0:
            accelerator.save_state(str(job.folder / "checkpoints" / str(done)))
    accelerator.end_training()
