"""The engine of sharded models, driven by hand on real ranks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import helios
from helios.errors import ConsumedStateError, LossError, ModelError, NonFiniteError
from helios.functional.binding import bind
from helios.functional.serial import from_bytes, to_bytes
from helios.functional.tree import digest
from helios.trainer.evaluate import evaluating
from helios.trainer.ranks.ballot import Ballot
from helios.trainer.ranks.fsdp import FSDP, FSDPEngine, shard
from helios.trainer.ranks.group import Ranks
from helios.trainer.ranks.sharding import Rows
from tests.trainer.ranks import sharded_runs, world
from tests.trainer.ranks.sharded_runs import BLOCKS, MODELS, Run, alone, furthest

OPTIONS = {
    "whole": FSDP(),
    "blocks": BLOCKS,
    "kept": FSDP(wrap=(nn.Linear,), reshard_after_forward=False),
    "apart": FSDP(wrap=lambda module: isinstance(module, nn.Linear), reshard_after_forward=True),
}


def train(name, window, updates, folder, options="blocks"):
    world.join()
    run = Run(name, window, OPTIONS[options]).go(updates * window)
    whole = run.whole()
    run.save(folder, "end")
    if run.rank == 0:
        Path(folder, "whole").write_bytes(to_bytes(helios.TrainingState(carry=whole)))
    world.leave()
    metrics = {n: [float(m.total), float(m.weight)] for n, m in run.state.carry.metrics.items()}
    return digest(run.state), metrics


def whole_of(folder):
    return from_bytes(Path(folder, "whole").read_bytes()).carry


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    "name", ["Mean", "Weighted", "Lazy", "Clipped", "ClippedByMaximum", "Game", "Frozen"]
)
def test_ranks_are_one_to_rounding(name, ranks, window, tmp_path):
    world.values(world.run(train, ranks, args=(name, window, 8, str(tmp_path))))
    carry = alone(name, window, 8).carry
    params, *average = whole_of(tmp_path)
    assert list(params) == list(carry.params)
    assert furthest(params, carry.params) < 1e-12
    if carry.average is not None:
        assert furthest(average[0], carry.average) < 1e-12


@pytest.mark.parametrize("options", ["whole", "kept", "apart"])
def test_how_modules_are_wrapped_changes_nothing(options, tmp_path):
    world.values(world.run(train, 3, args=("Mean", 2, 6, str(tmp_path), options)))
    assert furthest(whole_of(tmp_path)[0], alone("Mean", 2, 6).carry.params) < 1e-12


@pytest.mark.parametrize("options", ["whole", "blocks"])
def test_tied_parameters_of_one_module_are_one(options, tmp_path):
    if options == "blocks":
        (message, _) = world.values(world.run(refuse, args=("Tied",)))
        assert "net.2.weight" in message
        assert "shared" in message
        return
    world.values(world.run(train, 2, args=("Tied", 1, 6, str(tmp_path), options)))
    assert furthest(whole_of(tmp_path)[0], alone("Tied", 1, 6).carry.params) < 1e-12


def test_a_parameter_used_on_one_rank_alone_has_its_gradient(tmp_path):
    ends = world.values(world.run(train, 2, args=("LazyByRank", 1, 6, str(tmp_path), "whole")))
    state = from_bytes((tmp_path / "end-0").read_bytes())
    assert len(ends) == 2
    assert state.carry.opt_state["loss"]["started"]["other.weight"]


@pytest.mark.parametrize(("ranks", "window"), [(2, 1), (3, 2), (4, 1)])
def test_the_metrics_of_all_ranks_are_those_of_one(ranks, window, tmp_path):
    ends = world.values(world.run(train, ranks, args=("Mean", window, 8, str(tmp_path))))
    one = alone("Mean", window, 8).carry.metrics
    for metric in ("loss", "size"):
        total = sum(metrics[metric][0] for _, metrics in ends)
        assert sum(metrics[metric][1] for _, metrics in ends) == float(one[metric].weight)
        assert total == pytest.approx(float(one[metric].total), rel=1e-12)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("name", ["Dropped", "Clipped", "Float"])
def test_two_runs_have_the_same_bits(name, ranks, tmp_path):
    first, second = (
        world.values(world.run(train, ranks, args=(name, 2, 6, str(tmp_path)))) for _ in range(2)
    )
    assert [bits for bits, _ in first] == [bits for bits, _ in second]


def interrupt(name, window, updates, folder):
    """Run to every update, save, and go on in a fresh model from each."""
    world.join()
    run = Run(name, window, BLOCKS)
    run.save(folder, "at-0")
    for update in range(1, updates + 1):
        run.go(update * window).save(folder, f"at-{update}")
    end = digest(run.state)
    ends = [
        digest(Run(name, window, BLOCKS).read(folder, f"at-{update}").go(updates * window).state)
        for update in range(updates)
    ]
    world.leave()
    return end, ends


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("name", ["Dropped", "Weighted"])
def test_a_run_resumed_at_any_update_has_the_bits_of_an_uninterrupted_one(name, ranks, tmp_path):
    for end, ends in world.values(world.run(interrupt, ranks, args=(name, 2, 5, str(tmp_path)))):
        assert ends == [end] * 5


def step_purely(name):
    world.join()
    given, pure = (Run(name, 2, BLOCKS) for _ in range(2))
    fresh = [p._local_tensor for p in pure.model.parameters()]
    held = [p._local_tensor.clone() for p in pure.model.parameters()]
    before = digest(pure.state)
    state = pure.step(pure.state, pure.pieces(0))
    untouched = digest(pure.state) == before and all(
        p._local_tensor is a and torch.equal(a, b)
        for p, a, b in zip(pure.model.parameters(), fresh, held, strict=True)
    )
    del state
    same = digest(pure.go(6, donate=False).state) == digest(given.go(6).state)
    used = Run(name)
    old = used.state
    used.go(1)
    try:
        used.step(old, used.pieces(1))
    except ConsumedStateError:
        world.leave()
        return untouched, same
    return None


@pytest.mark.parametrize("name", ["Mean", "Clipped"])
def test_a_pure_step_leaves_all_as_it_was_and_has_the_bits_of_a_donated_one(name):
    assert world.values(world.run(step_purely, 4, args=(name,))) == [[True, True]] * 4


def look_at_the_model():
    world.join()
    run = Run("Mean", 1, BLOCKS).go(3)
    params = run.state.carry.params
    seen = all(p._local_tensor is params[n] for n, p in run.model.named_parameters())
    taken = run.binding.parameters_after(params, every=True) is params
    world.leave()
    return seen and taken


def test_the_model_holds_the_tensors_of_the_state():
    assert world.values(world.run(look_at_the_model, 3)) == [True] * 3


def evaluate():
    world.join()
    run = Run("Mean", 1, BLOCKS).go(4)
    before = digest(run.state)
    batch = sharded_runs.batch_of(1)
    with evaluating(run.model, run.state):
        average = float(run.binding.run(run.model.loss, batch)[0])
    after = digest(run.state) == before
    run.go(8)
    world.leave()
    return average, after, digest(run.state)


def test_the_average_is_evaluated_and_training_goes_on_as_if_it_was_not(tmp_path):
    ends = world.values(world.run(evaluate, 3))
    bits = world.values(world.run(train, 3, args=("Mean", 1, 8, str(tmp_path))))
    assert [bits for _, _, bits in ends] == [bits for bits, _ in bits]
    state = alone("Mean", 1, 4)
    model = MODELS["Mean"]("m")
    model.prepare(3)
    with evaluating(model, state):
        expected = float(model.loss(sharded_runs.batch_of(1))[0])
    for value, same, _ in ends:
        assert same
        assert value == pytest.approx(expected, rel=1e-12)


def vote(at):
    world.join()
    run = Run("Mean", 2, wish=lambda: run.rank == 1 and run.state.global_iteration >= at)
    seen = []
    for number in range(1, 9):
        run.go(number)
        if number % 2 == 0:
            seen.append(run.ballot.carried())
    world.leave()
    return seen


def test_a_wish_of_one_rank_is_known_to_all_at_the_end_of_the_window():
    for seen in world.values(world.run(vote, 3, args=(3,))):
        assert seen == [False, True, True, True]


def count_collectives(name):
    world.join()
    run = Run(name, 4, BLOCKS).go(4)
    calls = []
    for called in ("all_reduce", "broadcast", "all_gather", "barrier"):
        function = getattr(dist, called)

        def counting(*args, function=function, called=called, **kwargs):
            calls.append(called)
            return function(*args, **kwargs)

        setattr(dist, called, counting)
    run.go(8)
    run.go(12)
    seen = list(calls)
    world.leave()
    return seen


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Mean", ["broadcast", "all_reduce"]), ("Clipped", ["broadcast", "all_reduce", "all_reduce"])],
)
def test_a_window_of_four_costs_one_small_collective_beside_those_of_fully_shard(name, expected):
    for calls in world.values(world.run(count_collectives, 2, args=(name,))):
        assert calls == expected * 2


def poison(name, policy):
    world.join()
    run = Run(name, 1, BLOCKS, non_finite=policy)
    try:
        run.go(5)
    except NonFiniteError as error:
        world.leave()
        return error.update
    world.leave()
    return run.state.carry.skipped


@pytest.mark.parametrize("name", ["PoisonedLoss", "PoisonedGradient"])
def test_what_is_not_finite_on_one_rank_stops_all_at_the_same_update(name):
    assert world.values(world.run(poison, 4, args=(name, "raise"))) == [3] * 4


@pytest.mark.parametrize("name", ["PoisonedLoss", "PoisonedGradient"])
def test_an_update_that_is_not_finite_on_one_rank_is_skipped_on_all(name):
    assert world.values(world.run(poison, 4, args=(name, "skip"))) == [1] * 4


def overflow():
    world.join()
    run = Run("Scaled", 1, BLOCKS).go(6)
    world.leave()
    scale = run.state.carry.scale
    return scale.scale, scale.good, run.state.carry.skipped


def test_a_loss_scale_falls_on_all_ranks_alike():
    ends = world.values(world.run(overflow, 3))
    assert ends == [ends[0]] * 3
    assert ends[0][2] > 0


def test_a_loss_scale_needs_rows_on_every_rank():
    for message in world.values(world.run(refuse, 4, args=("Scaled",))):
        assert "keeps no row" in message


def mix():
    world.join()
    try:
        Run("Mean" if os.environ["RANK"] == "0" else "Weighted").go(1)
    except LossError as error:
        world.leave()
        return str(error)
    return ""


def with_optimizer(make):
    class Model(MODELS["Mean"]):
        def setup(self, fast_init=False):
            super().setup()
            self.optimizer = make()

    return Model


class Own:
    """A rule of one's own."""

    def init(self, params):
        return {}

    def update(self, grads, opt_state, params, *, donate=False):
        return {n: p - 0.1 * grads[n] if n in grads else p for n, p in params.items()}, opt_state


class OwnElementwise(Own):
    elementwise = True


class Scalar(MODELS["Mean"]):
    def setup(self, fast_init=False):
        super().setup()
        self.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))


class Strided(MODELS["Mean"]):
    def setup(self, fast_init=False):
        super().setup()
        self.odd = nn.Parameter(torch.ones(3, 2, dtype=torch.float64).t())


class TwoDtypes(MODELS["Mean"]):
    def setup(self, fast_init=False):
        super().setup()
        self.other = nn.Parameter(torch.ones(3))


UNFIT = {
    "Adafactor": with_optimizer(lambda: helios.optim.Adafactor(lr=1e-2)),
    "Muon": with_optimizer(lambda: helios.optim.Muon(lr=1e-2)),
    "Own": with_optimizer(Own),
    "OwnElementwise": with_optimizer(OwnElementwise),
    "Scalar": Scalar,
    "Strided": Strided,
    "TwoDtypes": TwoDtypes,
    "Tied": MODELS["Tied"],
    "Scaled": MODELS["Scaled"],
}


def refuse(name):
    world.join()
    try:
        model = UNFIT[name]("unfit")
        model.prepare(3)
        binding = shard(model, BLOCKS)
        ranks = Ranks(dist.get_rank(), dist.get_rank(), dist.get_world_size())
        FSDPEngine(binding, model.precision, ranks, Ballot(lambda: False))
    except ModelError as error:
        world.leave()
        return str(error)
    world.leave()
    return ""


@pytest.mark.parametrize("name", ["Adafactor", "Muon", "Own"])
def test_an_optimizer_that_looks_at_several_elements_is_refused_by_name(name):
    for message in world.values(world.run(refuse, args=(name,))):
        assert f"received {name}" in message
        assert "AdamW" in message


def test_a_rule_of_ones_own_may_say_that_it_is_elementwise():
    assert world.values(world.run(refuse, args=("OwnElementwise",))) == ["", ""]


def test_ranks_with_losses_of_two_kinds_are_told_apart():
    for message in world.values(world.run(mix)):
        assert "helios.Loss" in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Scalar", "'temperature': received a scalar"),
        ("Strided", "'odd': received strides"),
        ("TwoDtypes", "'other' is torch.float32"),
    ],
)
def test_a_parameter_that_cannot_be_sharded_is_refused_by_name(name, said):
    for message in world.values(world.run(refuse, args=(name,))):
        assert said in message


def foreign_states():
    world.join()
    run = Run("Mean", 1, BLOCKS)
    said = []
    try:
        run.binding.lend(run.binding.whole(run.state.carry.params), run.state.carry.buffers)
    except ModelError as error:
        said.append(str(error))
    model = MODELS["Mean"]("plain")
    model.prepare(3)
    try:
        FSDPEngine(bind(model), model.precision, run.ranks, run.ballot)
    except ModelError as error:
        said.append(str(error))
    world.leave()
    return said


def test_whole_tensors_and_whole_models_are_refused():
    for shards, model in world.values(world.run(foreign_states)):
        assert "'gain': received [2] of the state; expected [1], the rows" in shards
        assert "is not sharded" in model


@pytest.mark.parametrize(
    "options",
    [
        {"wrap": nn.Linear},
        {"wrap": ()},
        {"wrap": ("Linear",)},
        {"wrap": 3},
        {"reshard_after_forward": 1},
        {"param_dtype": "bf16"},
        {"reduce_dtype": torch.int64},
    ],
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: received"):
        FSDP(**options)


@pytest.mark.parametrize("rows", range(1, 12))
@pytest.mark.parametrize("ranks", range(1, 6))
def test_rows_are_those_of_torch_chunk(rows, ranks):
    whole = torch.arange(rows * 2).view(rows, 2)
    chunks = list(whole.chunk(ranks)) + [whole[:0]] * ranks
    for rank in range(ranks):
        mine = Rows.of_rank((rows, 2), rank, ranks)
        assert torch.equal(mine.of(whole), chunks[rank])
        assert mine.local == tuple(chunks[rank].shape)


def compute_short():
    world.join()
    options = FSDP(wrap=(nn.Linear,), param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    run = Run("Float", 1, options).go(4)
    plain = Run("Float", 1, BLOCKS).go(4)
    world.leave()
    return furthest(run.state.carry.params, plain.state.carry.params)


def test_parameters_can_come_together_in_another_dtype():
    for difference in world.values(world.run(compute_short)):
        assert 1e-8 < difference < 0.1
