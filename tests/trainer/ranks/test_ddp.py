"""The engine of several ranks, driven by hand on real ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import helios
from helios.data.pieces import cut
from helios.errors import LossError, ModelError, NonFiniteError
from helios.functional.schedule import Plan
from helios.functional.serial import from_bytes, to_bytes
from helios.functional.share import Shares
from helios.functional.tree import first_difference, flatten
from helios.trainer.ranks.ballot import Ballot
from helios.trainer.ranks.ddp import DDPEngine
from helios.trainer.ranks.group import Ranks
from helios.trainer.ranks.options import DDP
from tests import zoo
from tests.trainer.ranks import world

SIZES = [7, 12, 1, 5, 9, 3, 16, 2, 8, 11, 6, 4]
"""Samples of the micro-batches; some leave ranks with nothing but padding."""


class Mean(helios.Model):
    """A mean loss in float64, with a buffer that is reassigned and one that is not."""

    def setup(self, fast_init=False):
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        self.register_buffer("scale", torch.full((), 0.5, dtype=torch.float64))
        self.optimizer = helios.optim.AdamW(lr=1e-2)
        self.calls = 0

    def loss(self, batch):
        self.calls += 1
        x, y, _ = batch
        return self.scale * F.mse_loss(self.net(x), y), {"size": (x * 0).mean() + 1}


class Weighted(zoo.Weighted):
    pass


class Noisy(zoo.Noisy):
    def loss(self, batch):
        x, y, _ = batch
        return super().loss((x.float(), (y[:, 0] > 0).long()))


class Summed(Noisy):
    """Dropout and batch normalisation with a loss that is a sum, some samples masked."""

    def loss(self, batch):
        mean, metrics = super().loss(batch)
        return helios.Loss(mean * len(batch[0]), weight=batch[2].sum() + 1, metrics=metrics)


class Poisoned(Mean):
    """The loss of the third micro-batch is infinite on one rank; its gradient is not."""

    def loss(self, batch):
        loss, metrics = super().loss(batch)
        if self.calls == 3 and dist.get_rank() == 1:
            loss = loss + torch.full_like(loss, float("inf"))
        return loss, metrics


class Lazy(Mean):
    """One layer takes part from a micro-batch on, or never."""

    first = 1 << 30

    def setup(self, fast_init=False):
        super().setup()
        self.other = nn.Linear(3, 1).double()

    def loss(self, batch):
        loss, metrics = super().loss(batch)
        if self.takes_part():
            loss = loss + self.other(batch[0]).square().mean()
        return loss, metrics

    def takes_part(self):
        return self.calls > self.first


class LazyLater(Lazy):
    def takes_part(self):
        return self.calls <= 2


class LazyByRank(Lazy):
    def takes_part(self):
        return dist.is_initialized() and dist.get_rank() == 1


MODELS = {
    c.__name__: c
    for c in (Mean, Weighted, Noisy, Summed, Lazy, LazyLater, LazyByRank, Poisoned, zoo.Game)
}


def batch_of(number, times=1):
    generator = torch.Generator().manual_seed(number)
    size = SIZES[number % len(SIZES)] * times
    x = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(size, 1, generator=generator, dtype=torch.float64)
    return x, y, (torch.rand(size, generator=generator) < 0.7).double()


class Run:
    """A model on this rank, one micro-batch after the other."""

    def __init__(self, name, window=1, options=None, wish=lambda: False, **how):
        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.model = MODELS[name](name.lower())
        self.ranks = Ranks(self.rank, self.rank, self.world_size)
        self.ballot = Ballot(wish)
        options = options or DDP()

        def engine(binding, policy):
            self.engine = DDPEngine(binding, policy, options, self.ranks, self.ballot)
            return self.engine

        plan = Plan(accumulation_steps=window)
        self.step = helios.make_step(self.model, plan, engine=engine, **how)
        self.state = helios.init_state(self.model, 3)
        self.shares = Shares.of_rank(self.world_size, self.rank, self.world_size)

    def go(self, upto):
        times = 8 if isinstance(self.model, zoo.Noisy) else 1  # it does not take single samples
        for number in range(self.state.global_iteration, upto):
            batch = batch_of(number, times)
            pieces = cut(batch, len(batch[0]), self.shares)
            self.state = self.step(self.state, pieces, donate=True)
        return self

    def leave(self):
        self.engine.close()
        world.leave()

    def save(self, folder, name):
        Path(folder, f"{name}-{self.rank}").write_bytes(to_bytes(self.state))


def train(name, window, updates, folder):
    world.join()
    run = Run(name, window).go(updates * window)
    run.save(folder, "end")
    run.leave()
    return run.model.calls if isinstance(run.model, Mean) else None


def resume(name, window, updates, folder):
    world.join()
    run = Run(name, window)
    run.state = from_bytes(Path(folder, "saved").read_bytes())
    run.go(updates * window).save(folder, "resumed")
    run.leave()


def states(folder, what, ranks):
    return [from_bytes(Path(folder, f"{what}-{rank}").read_bytes()) for rank in range(ranks)]


def alone(name, window, updates):
    model = MODELS[name](name.lower())
    step = helios.make_step(model, Plan(accumulation_steps=window))
    state = helios.init_state(model, 3)
    for number in range(updates * window):
        state = step(state, batch_of(number), donate=True)
    return state


def replicated(state):
    """What has to be equal on all ranks."""
    carry = state.carry
    return carry.params, carry.buffers, carry.opt_state


def furthest(a, b):
    pairs = zip(flatten(a)[0], flatten(b)[0], strict=True)
    return max((x.double() - y.double()).abs().max().item() for x, y in pairs)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("name", ["Mean", "Weighted", "Lazy"])
def test_ranks_are_one_to_rounding(name, ranks, window, tmp_path):
    world.values(world.run(train, ranks, args=(name, window, 8, str(tmp_path))))
    one = alone(name, window, 8)
    ends = states(tmp_path, "end", ranks)
    for state in ends:
        assert first_difference(replicated(state), replicated(ends[0])) is None
        assert furthest(state.carry.params, one.carry.params) < 1e-12


@pytest.mark.parametrize(("ranks", "window"), [(2, 1), (3, 2), (4, 1)])
def test_the_metrics_of_all_ranks_are_those_of_one(ranks, window, tmp_path):
    world.values(world.run(train, ranks, args=("Mean", window, 8, str(tmp_path))))
    one = alone("Mean", window, 8).carry.metrics
    ends = [state.carry.metrics for state in states(tmp_path, "end", ranks)]
    for metric in ("loss", "size"):
        total = sum(float(m[metric].total) for m in ends)
        assert sum(float(m[metric].weight) for m in ends) == float(one[metric].weight)
        assert total == pytest.approx(float(one[metric].total), rel=1e-12)


@pytest.mark.parametrize("name", ["Noisy", "Summed"])
@pytest.mark.parametrize(("ranks", "window"), [(2, 2), (3, 1), (4, 2)])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(name, ranks, window, tmp_path):
    world.values(world.run(train, ranks, args=(name, window, 3, str(tmp_path))))
    os.replace(tmp_path / "end-0", tmp_path / "saved")
    world.values(world.run(train, ranks, args=(name, window, 8, str(tmp_path))))
    world.values(world.run(resume, ranks, args=(name, window, 8, str(tmp_path))))
    whole, resumed = (states(tmp_path, what, ranks) for what in ("end", "resumed"))
    for a, b in zip(whole, resumed, strict=True):
        assert first_difference(replicated(a), replicated(b)) is None


def test_the_loss_is_computed_once_for_every_micro_batch(tmp_path):
    assert world.values(world.run(train, 2, args=("Mean", 2, 3, str(tmp_path)))) == [6, 6]


def vote(at):
    world.join()
    run = Run("Mean", 2, wish=lambda: run.rank == 1 and run.state.global_iteration >= at)
    seen = []
    for number in range(1, 9):
        run.go(number)
        if number % 2 == 0:
            seen.append(run.ballot.carried())
    run.leave()
    return seen


def test_a_wish_of_one_rank_is_known_to_all_at_the_end_of_the_window():
    for seen in world.values(world.run(vote, 3, args=(3,))):
        assert seen == [False, True, True, True]


class Counted:
    """Counts what is called of torch.distributed, while it is entered."""

    NAMES = ("all_reduce", "broadcast", "all_gather", "reduce_scatter_single", "barrier")

    def __enter__(self):
        self.calls = []
        self.before = {name: getattr(dist, name) for name in self.NAMES if hasattr(dist, name)}
        for name, function in self.before.items():
            setattr(dist, name, self.counting(name, function))
        return self

    def counting(self, name, function):
        def called(*args, **kwargs):
            self.calls.append(name)
            return function(*args, **kwargs)

        return called

    def __exit__(self, *exc):
        for name, function in self.before.items():
            setattr(dist, name, function)


def average(calls, bucket):
    calls.append(bucket.buffer().numel())
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0] / dist.get_world_size())


def count_collectives(name):
    world.join()
    buckets = []
    run = Run(name, 4, DDP(comm_hook=average, comm_state=buckets))
    run.go(4)
    buckets.clear()
    with Counted() as counted:
        run.go(8)
    run.leave()
    return counted.calls, buckets


@pytest.mark.parametrize(
    ("name", "beside"),
    [("Mean", ["broadcast"]), ("Weighted", ["all_reduce"])],
    ids=["buffers", "weighted"],
)
def test_a_window_of_four_sends_gradients_once_and_nothing_is_sent_for_agreement(name, beside):
    size = sum(p.numel() for p in ready(name).parameters())
    for calls, buckets in world.values(world.run(count_collectives, 2, args=(name,))):
        # All parameters and the two numbers of the ballot, in the one all-reduce of the hook.
        assert buckets == [size + 2]
        assert calls == [*beside, "all_reduce"]


def ready(name):
    model = MODELS[name](name.lower())
    model.prepare(0)
    return model


def compress():
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    world.join()
    plain, short = Run("Mean").go(4), Run("Mean", options=DDP(comm_hook=fp16_compress_hook)).go(4)
    plain.engine.close()
    short.leave()
    return furthest(plain.state.carry.params, short.state.carry.params)


def test_a_hook_of_torch_takes_the_place_of_the_all_reduce():
    for difference in world.values(world.run(compress)):
        assert 1e-8 < difference < 1e-2


def leave_out(name, unused):
    world.join()
    run = Run(name, options=DDP(find_unused_parameters=unused))
    try:
        run.go(4)
    except ModelError as error:
        return str(error)
    finally:
        run.leave()
    return ""


def test_a_parameter_that_stops_to_take_part_is_an_error_that_says_what_to_do():
    for message in world.values(world.run(leave_out, args=("LazyLater", None))):
        assert "took no part" in message
        assert "find_unused_parameters=True" in message


@pytest.mark.parametrize(("name", "unused"), [("LazyLater", True), ("LazyByRank", None)])
def test_parameters_may_be_left_out_where_that_is_expected_or_seen_at_once(name, unused):
    assert world.values(world.run(leave_out, args=(name, unused))) == ["", ""]


def poison(policy, folder):
    world.join()
    run = Run("Poisoned", non_finite=policy)
    try:
        run.go(5)
        run.save(folder, "end")
    except NonFiniteError as error:
        return error.update
    finally:
        run.leave()
    return run.state.carry.skipped


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_at_the_same_update(tmp_path):
    assert world.values(world.run(poison, 3, args=("raise", str(tmp_path)))) == [3, 3, 3]


def test_an_update_that_is_not_finite_on_one_rank_is_skipped_on_all(tmp_path):
    assert world.values(world.run(poison, 3, args=("skip", str(tmp_path)))) == [1, 1, 1]
    ends = states(tmp_path, "end", 3)
    for state in ends:
        assert first_difference(replicated(state), replicated(ends[0])) is None


def mix():
    world.join()
    name = "Mean" if os.environ["RANK"] == "0" else "Weighted"
    run = Run(name)
    try:
        run.go(1)
    except LossError as error:
        return str(error)
    finally:
        run.leave()
    return ""


def test_ranks_with_losses_of_two_kinds_are_told_apart():
    for message in world.values(world.run(mix)):
        assert "helios.Loss" in message


def test_several_objectives_are_reduced_each_by_itself(tmp_path):
    world.values(world.run(train, 2, args=("Game", 2, 4, str(tmp_path))))
    one = alone("Game", 2, 4)
    for state in states(tmp_path, "end", 2):
        assert furthest(state.carry.params, one.carry.params) < 1e-12


@pytest.mark.parametrize(
    "options",
    [
        {"bucket_cap_mb": 0},
        {"bucket_cap_mb": "big"},
        {"find_unused_parameters": 1},
        {"comm_hook": 3},
    ],
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: received"):
        DDP(**options)
