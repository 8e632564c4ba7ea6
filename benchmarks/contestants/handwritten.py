"""The loop that one writes by hand; the measure of all others."""

from __future__ import annotations

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from benchmarks.contestants import LOG_EVERY, SAVE_EVERY, Job
from benchmarks.workloads import LEARNING_RATE, criterion, parameters_of


def train(job: Job) -> None:
    """Train; variants are ``"compiled"`` and ``"fused"``."""
    net = job.net.train()
    job.turns.parameters = lambda: parameters_of(net)
    fused = True if job.variant == "fused" else None
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, fused=fused)
    forward = torch.compile(net, dynamic=False) if job.variant == "compiled" else net
    if job.full:
        _full(job, net, forward, optimizer)
        return
    for x, y in job.turns:
        optimizer.zero_grad()
        loss = criterion(forward(x), y)
        loss.backward()
        optimizer.step()


def _full(job: Job, net: torch.nn.Module, forward, optimizer) -> None:  # type: ignore[no-untyped-def]
    writer = SummaryWriter(job.folder)
    checkpoints = job.folder / "checkpoints"
    checkpoints.mkdir()
    for done, (x, y) in enumerate(tqdm(job.turns), start=1):
        optimizer.zero_grad()
        loss = criterion(forward(x), y)
        loss.backward()
        optimizer.step()
        if done % LOG_EVERY == 0:
            writer.add_scalar("loss", loss.item(), done)
        if done % SAVE_EVERY == 0:
            content = {
                "net": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "done": done,
                "rng": torch.get_rng_state(),
            }
            torch.save(content, checkpoints / f"{done}.pth")
    writer.close()
