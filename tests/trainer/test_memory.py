"""A fit holds what the loop that one would write by hand holds, and a step that copies one copy.

Every allocation and release of tensor memory is counted, by torch's own profiler.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import helios
from helios.functional.tree import leaves
from tests.trainer import runs

WIDTH, UPDATES = 512, 5
DECAY = 0.9


def network():
    return nn.Sequential(
        nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH), nn.Tanh()
    )


class Net(helios.Model):
    """Two layers of 2 MiB each under AdamW."""

    def __init__(self, average=False):
        super().__init__("net")
        self.keeps_average = average

    def setup(self, fast_init=False):
        self.net = network()
        self.optimizer = helios.optim.AdamW(lr=1e-3)
        if self.keeps_average:
            self.average = helios.optim.average(decay=DECAY)

    def loss(self, batch):
        return (self.net(batch[0]) - batch[1]).square().mean()

    def on_training_batch_start(self, state):
        with torch.profiler.record_function("batch begins"):
            pass


def batches(count):
    return [(torch.randn(4, WIDTH), torch.randn(4, WIDTH)) for _ in range(count)]


def by_hand(data, accumulation, average):
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    kept = [p.detach().clone() for p in net.parameters()] if average else []
    for number, (x, y) in enumerate(data, 1):
        loss = (net(x) - y).square().mean()
        (loss / accumulation).backward()
        if number % accumulation:
            continue
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for old, new in zip(kept, net.parameters(), strict=average):
                old.lerp_(new, 1 - DECAY)


def peaks(function: Callable[[], Any]) -> tuple[int, int]:
    """Return the most bytes that a function held at any time, and after its first batch began."""
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        kept = function()  # what it returns is held until all is counted
    events: list[Any] = []

    def collect(nodes):
        for node in nodes:
            events.append(node)
            collect(node.children)

    collect(profile.profiler.kineto_results.experimental_event_tree())
    events.sort(key=lambda event: event.start_time_ns)
    live = most = of_batches = 0
    for event in events:
        if event.name == "batch begins" and of_batches == 0:
            of_batches = live
        if event.tag == torch._C._profiler._EventType.Allocation:
            live += event.extra_fields.alloc_size
            most = max(most, live)
            of_batches = max(of_batches, live) if of_batches else 0
    del kept
    return most, of_batches


CASES = [(1, False), (4, False), (1, True), (4, True)]


@pytest.mark.parametrize(("accumulation", "average"), CASES)
def test_a_fit_holds_what_a_loop_by_hand_holds(accumulation, average):
    data = batches(UPDATES * accumulation)
    largest = max(p.nbytes for p in network().parameters())
    expected, _ = peaks(lambda: by_hand(data, accumulation, average))

    def fit():
        made = runs.trainer(steps=UPDATES, accumulation_steps=accumulation)
        assert made.fit(Net(average), runs.Batches(data))
        return made

    found, of_batches = peaks(fit)
    assert of_batches == pytest.approx(expected, rel=0.02)
    # Before the first batch, the optimizer is tried on one parameter after the other.
    assert found <= expected * 1.02 + 2 * largest


@pytest.mark.parametrize("average", [False, True])
def test_a_step_that_is_not_donated_costs_one_copy_of_the_carry(average):
    [batch] = batches(1)

    def run(donate):
        model = Net(average)
        step, state = helios.make_step(model), helios.init_state(model)
        state = step(state, batch, donate=True)
        carry = sum(leaf.nbytes for leaf in leaves(state.carry) if isinstance(leaf, torch.Tensor))
        model.on_training_batch_start(state)
        after = step(state, batch, donate=donate)
        return state, after, carry

    kept: list[Any] = []
    _, copying = peaks(lambda: kept.append(run(False)))
    carry = kept.pop()[2]
    _, donating = peaks(lambda: kept.append(run(True)))
    # And the state of the generator that is put back, of 5 KB.
    assert copying - donating == carry + torch.get_rng_state().nbytes
