"""Law: every rank sees the same events, as many micro-batches, and all samples are counted once.

For any sizes, loader, window and number of ranks. The first laws run every rank of up to nine by
itself, since nothing of the data or the calendar needs the others; the last ones are on real ranks.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, TensorDataset

from helios.data import DataLoaderParams, create_dataloader, source_of
from helios.functional.plan import Plan
from helios.functional.schedule import (
    Batch,
    EpochStart,
    Event,
    Outcome,
    Peek,
    schedule,
)
from helios.functional.share import Shares
from helios.functional.state import (
    TrainingState,
    TrainingUnit,
)
from property_tests.fits import a_share
from tests.exactness import ranks


class Numbers(IterableDataset):
    """A stream without a length."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        return iter(range(self.size))


class Case(NamedTuple):
    """A run of some updates over a dataset."""

    kind: str
    samples: int
    batch: int
    drop_last: bool
    plan: Plan

    def loader(self):
        """Return a new loader of the dataset."""
        params = DataLoaderParams(batch_size=self.batch, drop_last=self.drop_last)
        if self.kind == "stream":
            return create_dataloader(Numbers(self.samples), params)
        if self.kind == "own":
            whole = [torch.arange(self.samples)[at : at + self.batch] for at in self._starts()]
            return whole, None
        data = TensorDataset(torch.arange(self.samples))
        params = DataLoaderParams(batch_size=self.batch, drop_last=self.drop_last, shuffle=True)
        return create_dataloader(data, params, seed=7)

    def _starts(self):
        last = self.samples - self.batch if self.drop_last else self.samples - 1
        return range(0, last + 1, self.batch)


class Seen(NamedTuple):
    """What one rank saw: the events, and with every micro-batch what of it counted."""

    events: list[Event]
    epochs: list[list[list[tuple[int, list[int], int]]]]


def rows(batch: Any) -> list[int]:
    """Return the samples of a batch."""
    return (batch[0] if isinstance(batch, (list, tuple)) else batch).tolist()


def drive(case: Case, shares: Shares | None) -> Seen:
    """Run the calendar over this rank's data."""
    source = source_of(case.loader(), shares=shares)
    plan = Plan(
        **{name: getattr(case.plan, name) for name in Plan.__struct_fields__}
        | {"batches_per_epoch": source.batches_per_epoch}
    )
    seen, outcome = Seen([], []), None
    calendar = schedule(plan, TrainingState())
    ahead: list[Any] = []
    batches: Any = iter(())
    while True:
        try:
            event = calendar.send(outcome)
        except StopIteration:
            break
        seen.events.append(event)
        outcome = Outcome()
        if isinstance(event, EpochStart):
            batches = source.open(event.epoch - 1, event.first_batch)
            seen.epochs.append([])
        elif isinstance(event, Peek):
            while len(ahead) < 2 and (batch := next(batches, None)) is not None:
                ahead.append(batch)
            outcome = Outcome(available=len(ahead))
        elif isinstance(event, Batch):
            batch = ahead.pop(0) if ahead else next(batches)
            if shares is None:
                seen.epochs[-1].append([(0, rows(batch), len(rows(batch)))])
            else:
                found = [(p.index, rows(p.batch)[: p.count], p.of) for p in batch]
                assert all(len(rows(p.batch)) == max(p.count, 1) for p in batch)
                seen.epochs[-1].append(found)
    source.close()
    return seen


def joined(all_ranks: list[Seen]) -> list[list[list[int]]]:
    """Return the samples of every micro-batch of every epoch, over all ranks."""
    epochs = []
    for epoch in zip(*(seen.epochs for seen in all_ranks), strict=True):
        epochs.append([])
        for turn in zip(*epoch, strict=True):
            pieces = [piece for rank in turn for piece in rank]
            samples = [sample for _, found, _ in pieces for sample in found]
            assert [index for index, *_ in pieces] == list(range(len(pieces)))
            assert {of for *_, of in pieces} == {len(samples)}
            epochs[-1].append(samples)
    return epochs


@st.composite
def cases(draw: Any) -> Case:
    """Draw a run; with ``drop_last`` there is one whole batch at least."""
    samples, drop_last = draw(st.integers(1, 30)), draw(st.booleans())
    batch = draw(st.integers(1, samples if drop_last else 12))
    unit = draw(st.sampled_from(TrainingUnit))
    frequency = st.none() | st.integers(1, 3)
    plan = Plan(
        unit=unit,
        total_steps=draw(st.integers(1, 3 if unit is TrainingUnit.EPOCH else 8)),
        accumulation_steps=draw(st.integers(1, 5)),
        valid_frequency=draw(frequency),
        chkpt_frequency=draw(frequency),
        print_frequency=draw(frequency),
        save_final=draw(st.booleans()),
    )
    return Case(
        draw(st.sampled_from(["indexed", "stream", "own"])), samples, batch, drop_last, plan
    )


@a_share(of=2)
@given(cases(), st.integers(1, 9), st.integers(1, 4))
def test_every_rank_sees_the_same_and_all_samples_are_counted_once(case, world, each):
    alone = drive(case, None)
    pieces = world * each
    several = [drive(case, Shares.of_rank(pieces, rank, world)) for rank in range(world)]
    assert all(seen.events == alone.events for seen in several)
    assert joined(several) == joined([alone])
    kept = case.samples // case.batch * case.batch if case.drop_last else case.samples
    for epoch in joined(several)[:-1]:  # the last one may be stopped within
        counts = Counter(sample for samples in epoch for sample in samples)
        assert len(counts) == kept
        assert set(counts.values()) == {1}


@a_share(of=2)
@given(cases(), st.integers(2, 9))
def test_no_sample_is_counted_where_there_are_fewer_than_ranks(case, world):
    several = [drive(case, Shares.of_rank(world, rank, world)) for rank in range(world)]
    for seen in several:
        for epoch in seen.epochs:
            for [(index, found, of)] in epoch:
                assert len(found) == of // world + (index < of % world)


REAL = {
    "fewer samples than ranks": {"samples": 2, "batch": 4, "valid": 5},
    "one sample": {"samples": 1, "batch": 1, "valid": 1},
    "batches smaller than the ranks": {"samples": 9, "batch": 2, "valid": 3},
    "a validation set smaller than the ranks": {"samples": 9, "batch": 4, "valid": 1},
    "a stream without a length": {"kind": "stream", "samples": 10, "batch": 3, "valid": 4},
    "a stream of one sample": {"kind": "stream", "samples": 1, "batch": 3, "valid": 2},
    "whole batches alone": {"samples": 11, "batch": 3, "drop_last": True, "valid": 2},
}
OPTIONS = [
    {"accumulation_steps": 2, "valid_frequency": 1, "print_frequency": 1},
    {"train_unit": "iteration", "total_steps": 3, "accumulation_steps": 3, "valid_frequency": 2},
]


def legs(world):
    specs = [{"data": data, "options": options} for data in REAL.values() for options in OPTIONS]
    found = iter(ranks.run(specs, world))
    return {name: [next(found) for _ in OPTIONS] for name in REAL}


@pytest.fixture(scope="module")
def alone():
    return legs(1)


@pytest.fixture(scope="module", params=[4])
def several(request):
    return legs(request.param)


@pytest.mark.parametrize("name", REAL)
def test_on_real_ranks_every_hook_is_called_with_the_same_counters(name, alone, several):
    for one, all_ranks in zip(alone[name], several[name], strict=True):
        hooks = ranks.alike(all_ranks)["hooks"]
        unmeasured = [hook for hook in hooks if hook[0] != "metrics"]
        assert unmeasured == [hook for hook in one[0]["hooks"] if hook[0] != "metrics"]
        assert ranks.called(hooks, "valid_end")


@pytest.mark.parametrize("name", REAL)
def test_on_real_ranks_padding_counts_for_nothing(name, alone, several):
    for one, all_ranks in zip(alone[name], several[name], strict=True):
        first = ranks.alike(all_ranks)
        assert ranks.furthest(first, one[0]) < 5e-15
        assert first["valid"] == pytest.approx(one[0]["valid"], rel=5e-15)
        assert ranks.micro_batches(all_ranks) == ranks.micro_batches(one)
