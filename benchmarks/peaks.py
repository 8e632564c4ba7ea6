"""The process of one measurement of memory: trains a few updates, and prints their peak.

    python -m benchmarks.peaks WAY rss|tensors WIDTH UPDATES

``rss`` is the peak of the process's resident memory, without what was resident once everything was
imported and the data made. ``tensors`` is the peak of what torch's allocator has given out since,
counted allocation by allocation.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

import helios

Run = Callable[[int, list[torch.Tensor]], None]


@dataclass(frozen=True)
class Way:
    """A way to train.

    Args:
        label: for tables.
        run: trains a network of a width on batches.
        beside: the way by hand that it is compared with.
    """

    label: str
    run: Run
    beside: str = "handwritten"


def network(width: int) -> nn.Module:
    """Return sixteen square layers."""
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(16)))


class Wide(helios.Model):
    """The same, as a model."""

    def __init__(self, width: int, **options: Any) -> None:
        super().__init__("wide")
        self.width, self.options = width, options

    def setup(self, fast_init: bool = False) -> None:
        self.net = network(self.width)
        self.optimizer = helios.optim.AdamW(lr=1e-3, **self.options)

    def loss(self, batch: Any) -> torch.Tensor:
        return F.mse_loss(self.net(batch), batch)


class Batches(helios.DataModule):
    """Batches that are there already."""

    def __init__(self, batches: list[torch.Tensor]) -> None:
        self.batches = batches

    def setup(self) -> None:
        pass

    def train_dataloader(self) -> Any:
        return self.batches


def by_hand(**options: Any) -> Run:
    """Return the hand-written loop, with options of the optimizer."""

    def run(width: int, batches: list[torch.Tensor]) -> None:
        net = network(width)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, **options)
        for batch in batches:
            optimizer.zero_grad()
            F.mse_loss(net(batch), batch).backward()
            optimizer.step()

    return run


def fitted(trainer: dict[str, Any], **options: Any) -> Run:
    """Return a fit, with options of the trainer and of the optimizer."""

    def run(width: int, batches: list[torch.Tensor]) -> None:
        fit = helios.Trainer(total_steps=1, use_cpu=True, print_banner=False, **trainer).fit
        if not fit(Wide(width, **options), Batches(batches)):
            raise SystemExit("fit returned False")

    return run


def undonated(width: int, batches: list[torch.Tensor]) -> None:
    """Run pure steps; each leaves the state before it as it was."""
    model = Wide(width)
    step, state = helios.make_step(model), helios.init_state(model)
    for batch in batches:
        state = step(state, batch)


WAYS: dict[str, Way] = {
    "handwritten": Way("hand-written loop", by_hand()),
    "handwritten-fused": Way("hand-written, fused AdamW", by_hand(fused=True), "handwritten-fused"),
    "helios": Way("helios", fitted({})),
    "helios-fused": Way("helios, fused AdamW", fitted({}, fused=True), "handwritten-fused"),
    "helios-compiled": Way("helios, compile=True", fitted({"compile": True})),
    "undonated": Way("helios, pure steps: `step(state, batch)`", undonated),
}
"""Every way by its name."""


def resident() -> int:
    """Return the bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def peak_of_tensors(run: Callable[[], None]) -> int:
    """Return the most bytes of tensors that lived at a time, of those that ``run`` makes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def main(way: str, kind: str, width: int, updates: int) -> None:
    """Measure, and print the bytes."""
    torch.set_num_threads(1)
    run = WAYS[way].run
    generator = torch.Generator().manual_seed(0)
    # What is imported and set up at first use is no tensor, and not of the size that is asked for.
    run(8, [torch.randn(8, 8, generator=generator) for _ in range(2)])
    batches = [torch.randn(8, width, generator=generator) for _ in range(updates)]
    if kind == "tensors":
        peak = peak_of_tensors(lambda: run(width, batches))
    else:
        before = resident()
        run(width, batches)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(json.dumps({"bytes": peak}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
