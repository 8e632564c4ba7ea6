from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import helios
from helios.errors import LossError, ModelError
from helios.functional import accumulate
from helios.functional.binding import Binding
from helios.functional.canonical import CanonicalEngine
from helios.functional.gradients import Turn, differentiate, trained_names
from helios.functional.precision import Policy
from helios.functional.rng import seed_generators, train_key
from helios.functional.share import Piece, Shares, sizes
from helios.functional.tree import clone, first_difference, same_bits
from helios.functional.tree_sum import combine
from helios.trainer.ranks.exchange import TreeExchange
from tests.trainer.ranks import world
from tests.zoo import Adversarial, Noisy


class Net(helios.Model):
    """Dropout and batch normalisation over a signal, so that one sample is enough for it."""

    def __init__(self, rule=None, dtype=torch.float32):
        super().__init__("net")
        self._rule = rule or (lambda: helios.optim.AdamW(lr=1e-2))
        self._dtype = dtype

    def setup(self, fast_init=False):
        self.net = nn.Sequential(
            nn.Conv1d(3, 6, 2), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Conv1d(6, 1, 3)
        ).to(self._dtype)
        self.optimizer = self._rule()

    def loss(self, batch):
        x, y = batch
        errors = (self.net(x).flatten(1) - y).square()
        return errors.mean(), {"error": errors.mean()}


class Summed(Net):
    """The same with a loss that is a sum with a weight."""

    def loss(self, batch):
        x, y = batch
        mask = (y.abs() < 1).float()
        return helios.Loss(((self.net(x).flatten(1) - y).square() * mask).sum(), weight=mask.sum())


class Alone:
    """One rank."""

    def __call__(self, tensors):
        return tensors

    def gather(self, numbers):
        return numbers[None]


class Ranks:
    """Ranks as threads of which one at a time computes: they share torch's generators."""

    def __init__(self, world_size):
        self._baton = threading.Lock()
        self._barrier = threading.Barrier(world_size, timeout=60)
        self._values = [None] * world_size

    def run(self, function):
        """Return what ``function(rank, exchange)`` returns, on every rank."""

        def on(rank):
            with self._baton:
                try:
                    return function(rank, Simulated(self, rank))
                except BaseException:
                    self._barrier.abort()
                    raise

        ranks = range(len(self._values))
        with ThreadPoolExecutor(len(ranks)) as pool:
            futures = [pool.submit(on, rank) for rank in ranks]
        errors = [f.exception() for f in futures if f.exception() is not None]
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [f.result() for f in futures]

    def swap(self, rank, value):
        self._values[rank] = value
        self._meet()
        values = list(self._values)
        self._meet()
        return values

    def _meet(self):
        self._baton.release()
        try:
            self._barrier.wait()
        finally:
            self._baton.acquire()


class Simulated:
    def __init__(self, ranks, rank):
        self._ranks = ranks
        self._rank = rank

    def __call__(self, tensors):
        nodes = self._ranks.swap(self._rank, [tensor.clone() for tensor in tensors])
        return [combine(parts) for parts in zip(*nodes, strict=True)]

    def gather(self, numbers):
        return torch.stack(self._ranks.swap(self._rank, numbers.clone()))


def samples(size, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, 4, generator=generator).to(dtype)
    return x, torch.randn(size, 1, generator=generator).to(dtype)


def cut(batch, pieces, rank=0, world_size=1):
    """Return a rank's pieces of a micro-batch."""
    x, y = batch
    share = Shares.of_rank(pieces, rank, world_size)
    parts = [slice(0, 1) if n == 0 else None for n in sizes(len(x), pieces)]
    start = 0
    for i, n in enumerate(sizes(len(x), pieces)):
        if n:
            parts[i] = slice(start, start + n)
        start += n
    counts = sizes(len(x), pieces)
    return [
        Piece(i, (x[parts[i]], y[parts[i]]), counts[i], len(x))
        for i in range(share.first, share.end)
    ]


class Run:
    """A model under canonical reduction, its state and its losses."""

    def __init__(self, model, exchange, policy=None):
        carry = helios.init_state(model, 7).carry
        self.model = model.train()
        self.binding = Binding(model)
        self.engine = CanonicalEngine(self.binding, policy or Policy(), exchange)
        [(self.objective, self.names)] = trained_names(model)
        self.params, self.buffers = carry.params, carry.buffers
        self.opt = carry.opt_state["loss"]
        self.window = accumulate.EMPTY
        self.iteration = 0
        self.losses = []

    def compute(self, pieces, scale=1.0, update=True):
        self.iteration += 1
        result = self.engine(
            self.objective,
            self.names,
            self.params,
            self.buffers,
            self.window,
            pieces,
            scale,
            Turn(update, 7, self.iteration),
        )
        self.params, self.buffers = result.params, result.buffers
        self.losses.append((result.loss.total, result.loss.weight))
        self.window = accumulate.add(self.window, result.loss, result.grads)
        return result

    def update(self):
        grads, self.window = accumulate.divide(self.window), accumulate.EMPTY
        self.params, self.opt = self.objective.optimizer.update(
            grads, self.opt, self.params, donate=True
        )

    def tree(self):
        return {"params": self.params, "buffers": self.buffers, "losses": self.losses}


SIZES = [5, 24, 17, 29, 3]
"""The first leaves ranks with nothing but padding."""


def train(model, exchange, pieces, rank=0, world_size=1, steps=5, window=1, policy=None):
    """Return parameters, buffers and losses after updates on ranks."""
    torch.set_num_threads(1)
    run = Run(model, exchange, policy)
    for n in range(steps * window):
        batch = samples(SIZES[n % len(SIZES)], n)
        run.compute(cut(batch, pieces, rank, world_size))
        if (n + 1) % window == 0:
            run.update()
    return run.tree()


def on_ranks(make, pieces, world_size, **options):
    return Ranks(world_size).run(
        lambda rank, exchange: train(make(), exchange, pieces, rank, world_size, **options)
    )


@pytest.mark.parametrize("make", [Net, Summed])
@pytest.mark.parametrize(
    ("pieces", "world_size"), [(8, 2), (8, 4), (8, 8), (12, 3), (12, 6), (3, 3), (20, 5)]
)
def test_the_number_of_ranks_changes_no_bit(make, pieces, world_size):
    alone = train(make(), Alone(), pieces, window=2)
    for tree in on_ranks(make, pieces, world_size, window=2):
        assert first_difference(tree, alone) is None


def test_the_number_of_ranks_changes_no_bit_in_low_precision():
    policy = Policy("bfloat16")
    alone = train(Net(), Alone(), 8, policy=policy)
    assert first_difference(alone, train(Net(), Alone(), 8)) is not None
    for tree in on_ranks(Net, 8, 4, policy=policy):
        assert first_difference(tree, alone) is None


def sgd():
    return helios.optim.SGD(lr=0.05, momentum=0.9)


def run_rank(world_size, folder):
    rank = world.join()
    trees = [
        train(make(rule), TreeExchange(), 8, rank, world_size, steps=10)
        for make, rule in ((Net, None), (Summed, sgd))
    ]
    torch.save(trees, f"{folder}/{world_size}-{rank}.pt")
    world.leave()


def test_real_ranks_have_the_bits_of_one(tmp_path):
    alone = [train(Net(), TreeExchange(), 8, steps=10), train(Summed(sgd), Alone(), 8, steps=10)]
    for world_size in (1, 2, 4):
        world.values(world.run(run_rank, world_size, args=(world_size, str(tmp_path))))
        for rank in range(world_size):
            trees = torch.load(tmp_path / f"{world_size}-{rank}.pt", weights_only=True)
            assert first_difference(trees, alone) is None


@pytest.mark.parametrize("make", [Net, Summed])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_one_piece_has_the_bits_of_the_autograd_engine(make, scale):
    run, plain = Run(make(), Alone()), Run(make(), Alone())
    for n in range(6):
        batch = samples(8, n)
        result = run.compute(cut(batch, 1), scale)
        plain.binding.lend(plain.params, plain.buffers)
        seed_generators(train_key(7, n + 1))
        loss, grads = differentiate(
            plain.binding,
            Policy(),
            plain.objective,
            plain.names,
            batch,
            scale=scale,
            window=plain.window.grads,
        )
        plain.window = accumulate.add(plain.window, loss, grads)
        assert first_difference(result.grads, grads) is None
        assert result.loss.total.item() == loss.total.item()
        if n % 2:
            run.update()
            plain.update()
    assert first_difference(run.params, plain.params) is None
    assert first_difference(run.buffers, plain.buffers) is None


def plain_net(p=0.0):
    model = Net(dtype=torch.float64)
    model.prepare(0)
    model.net[1] = nn.Identity()
    model.net[3] = nn.Dropout(p)
    return model


def test_the_gradient_is_that_of_the_mean_over_the_whole_micro_batch():
    run = Run(plain_net(), Alone())
    batch = samples(13, 0, torch.float64)
    result = run.compute(cut(batch, 4))
    expected = torch.autograd.grad(
        run.model.loss(batch)[0], [run.binding.parameters[n] for n in run.names]
    )
    for name, gradient in zip(run.names, expected, strict=True):
        # Another order of the same additions: the measured error is 2e-16.
        torch.testing.assert_close(result.grads[name], gradient, rtol=1e-14, atol=1e-15)


def test_every_piece_draws_under_a_key_of_its_own():
    run = Run(plain_net(0.5), Alone())
    x, y = samples(1, 0, torch.float64)
    batch = x.repeat(4, 1, 1), y.repeat(4, 1)
    run.binding.lend(run.params, run.buffers)
    expected = []
    for index in range(4):
        seed_generators(train_key(7, 1, index))
        expected.append(run.model.loss((x, y))[0].detach() * 0.25)
    assert len(set(map(float, expected))) > 1
    result = run.compute(cut(batch, 4))
    assert result.loss.total == ((expected[0] + expected[1]) + expected[2]) + expected[3]


def test_what_draws_after_the_pieces_draws_the_same_on_every_rank():
    def on(rank, exchange, world_size):
        run = Run(Net(), exchange)
        drawn = []
        for n in range(2):
            run.compute(cut(samples(8, n), 4, rank, world_size))
            drawn.append(torch.rand(2))
        return drawn

    [alone] = Ranks(1).run(lambda rank, exchange: on(rank, exchange, 1))
    assert not torch.equal(*alone)
    for drawn in Ranks(4).run(lambda rank, exchange: on(rank, exchange, 4)):
        assert first_difference(drawn, alone) is None


def test_what_draws_after_an_objective_draws_on_no_stream_of_another():
    model = Adversarial("gan")
    carry = helios.init_state(model, 7).carry
    engine = CanonicalEngine(Binding(model), Policy(), Alone())
    drawn = []
    for objective, names in trained_names(model):
        pieces = [Piece(i, torch.randn(3, 3), 3, 6) for i in range(2)]
        args = carry.params, carry.buffers, accumulate.EMPTY, pieces
        engine(objective, names, *args, 1.0, Turn(True, 7, 1))
        drawn.append(float(torch.rand(())))
    for index in range(2):
        seed_generators(train_key(7, 1, index))
        drawn.append(float(torch.rand(())))
    assert len(set(drawn)) == 4


def test_the_stream_of_a_piece_goes_on_from_one_objective_to_the_next():
    model = Adversarial("gan")
    carry = helios.init_state(model, 7).carry
    engine = CanonicalEngine(Binding(model), Policy(), Alone())
    batch = torch.randn(6, 3)
    pairs = trained_names(model)

    def losses(n):
        turn = Turn(True, 7, n)
        found = []
        for objective, names in pairs:
            part = [Piece(0, batch, 6, 6)]
            args = carry.params, carry.buffers, accumulate.EMPTY, part
            found.append(float(engine(objective, names, *args, 1.0, turn).loss.total))
        return found

    seed_generators(train_key(7, 1))
    expected = [float(objective.loss(batch).detach()) for objective, _ in pairs]
    assert losses(1) == expected
    assert losses(2) != expected
    assert losses(1) == expected
    assert losses(1) == expected  # computed once more, as in a replay


def test_running_statistics_become_the_mean_of_the_pieces_by_their_samples():
    run, other = Run(Net(), Alone()), Run(Net(), Alone())
    batch = samples(6, 0)
    pieces = cut(batch, 4)
    expected = []
    for piece in pieces:
        buffers = clone(other.buffers)
        other.binding.lend(other.params, buffers)
        other.model.loss(piece.batch)
        expected.append(buffers["net.1.running_mean"] * (piece.count / 6))
    run.compute(pieces)
    assert same_bits(
        run.buffers["net.1.running_mean"], (expected[0] + expected[1]) + (expected[2] + expected[3])
    )
    assert run.buffers["net.1.num_batches_tracked"] == 1


def test_the_module_holds_the_buffers_that_are_returned():
    run = Run(Net(), Alone())
    run.compute(cut(samples(6, 0), 4))
    held = dict(run.model.named_buffers())
    assert all(held[name] is buffer for name, buffer in run.buffers.items())


def test_statistics_in_evaluation_mode_keep_their_bits():
    model = Net()
    run = Run(model, Alone())
    run.buffers["net.1.running_mean"].copy_(torch.randn(6))
    before = clone(run.buffers)
    model.net[1].eval()
    run.compute(cut(samples(13, 0), 4))
    assert first_difference(run.buffers, before) is None


def test_batch_normalisation_without_running_statistics_trains():
    model = Net()
    model.prepare(7)
    model.net[1] = nn.BatchNorm1d(6, track_running_stats=False)
    run = Run(model, Alone())
    assert run.compute(cut(samples(13, 0), 4)).buffers == {}


def test_another_buffer_that_changes_is_refused_by_name():
    run = Run(Noisy(), Alone())
    batch = torch.randn(8, 3), torch.randint(0, 2, (8,))
    with pytest.raises(ModelError, match="buffer 'seen' changed in the forward pass of 'loss'"):
        run.compute(cut(batch, 4))


class Hidden(Net):
    """Statistics of its own, written by a kernel that does not count versions."""

    def setup(self, fast_init=False):
        super().setup()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))
        self.register_buffer("steps", torch.zeros(()))

    def loss(self, batch):
        x, y = batch
        self.touch()
        return super().loss((F.batch_norm(x, *self.given(), training=True), y))

    def touch(self):
        pass

    def given(self):
        return self.mean, self.var


class Counting(Hidden):
    def touch(self):
        self.steps += 1

    def given(self):
        return None, None


def test_a_buffer_that_a_kernel_wrote_unseen_is_found_by_its_bits():
    with pytest.raises(ModelError, match="buffer 'mean'"):
        Run(Hidden(), Alone()).compute(cut(samples(8, 0), 4))


def test_a_buffer_that_starts_to_change_later_is_found():
    model = Counting()
    run = Run(model, Alone())
    model.touch = lambda: None
    run.compute(cut(samples(8, 0), 4))
    del model.touch
    with pytest.raises(ModelError, match="buffer 'steps'"):
        run.compute(cut(samples(8, 0), 4))


class Teacher(Net):
    def setup(self, fast_init=False):
        super().setup()
        self.teacher = nn.Linear(2, 2).requires_grad_(False)

    def loss(self, batch):
        self.follow(self.teacher.weight)
        return super().loss(batch)


@pytest.mark.parametrize(
    "follow",
    [
        lambda weight: weight.data.mul_(0.5),
        lambda weight: weight.mul_(0.5),
        lambda weight: setattr(weight, "data", weight.data * 0.5),
    ],
    ids=["data in place", "in place", "replaced"],
)
def test_a_frozen_parameter_that_changes_is_refused_by_name(follow):
    model = Teacher()
    model.follow = follow
    with pytest.raises(ModelError, match=r"frozen parameter 'teacher\.weight'"):
        Run(model, Alone()).compute(cut(samples(8, 0), 4))


def test_sync_batch_norm_is_refused_by_name():
    model = Net()
    model.prepare(0)
    model.net[1] = nn.SyncBatchNorm(6)
    with pytest.raises(ModelError, match=r"'net\.1' is a SyncBatchNorm"):
        CanonicalEngine(Binding(model), Policy(), Alone())


class Spare(Net):
    def setup(self, fast_init=False):
        super().setup()
        self.spare = nn.Linear(2, 2)


def test_a_parameter_that_took_no_part_has_a_gradient_of_zeros():
    result = Run(Spare(), Alone()).compute(cut(samples(8, 0), 4))
    assert same_bits(result.grads["spare.weight"], torch.zeros(2, 2))


class Sparse(Net):
    def setup(self, fast_init=False):
        super().setup()
        self.table = nn.Embedding(4, 1, sparse=True)

    def loss(self, batch):
        loss, _ = super().loss(batch)
        return loss + self.table(torch.tensor([1])).sum()


def test_a_sparse_gradient_is_refused_by_name():
    with pytest.raises(ModelError, match=r"'table\.weight'.*sparse=False"):
        Run(Sparse(), Alone()).compute(cut(samples(8, 0), 4))


class Mixed(Net):
    def loss(self, batch):
        loss, _ = super().loss(batch)
        return helios.Loss(loss, 1) if len(batch[0]) == 2 else loss


def test_a_mean_on_one_piece_and_a_sum_on_another_is_refused():
    with pytest.raises(LossError, match="same for every piece"):
        Run(Mixed(), Alone()).compute(cut(samples(5, 0), 2))
    with pytest.raises(LossError, match="same for every piece"):
        on_ranks(Mixed, 2, 2, steps=1)


def test_a_loss_that_turns_from_a_mean_to_a_sum_is_refused():
    run = Run(Mixed(), Alone())
    run.compute(cut(samples(6, 0), 2))
    with pytest.raises(LossError, match="same for every piece"):
        run.compute(cut(samples(4, 0), 2))


def test_the_loss_is_of_all_ranks_and_the_metrics_are_of_each():
    def on(rank, exchange):
        return Run(Net(), exchange).compute(cut(samples(6, 0), 4, rank, 2))

    results = Ranks(2).run(on)
    assert [r.metrics["loss"].weight for r in results] == [4, 2]
    assert [r.metrics["error"].weight for r in results] == [4, 2]
    assert same_bits(results[0].loss.total, results[1].loss.total)
    assert results[0].loss.weight is None
    total = sum(float(r.metrics["loss"].total) for r in results)
    assert float(results[0].loss.total) == pytest.approx(total / 6, rel=1e-14)


def test_the_weight_is_that_of_the_whole_micro_batch():
    def on(rank, exchange):
        return Run(Summed(), exchange).compute(cut(samples(6, 0), 4, rank, 4))

    expected = int((samples(6, 0)[1].abs() < 1).sum())
    assert [float(r.loss.weight) for r in Ranks(4).run(on)] == [expected] * 4


def test_a_rank_of_padding_has_no_metrics():
    def on(rank, exchange):
        return Run(Net(), exchange).compute(cut(samples(2, 0), 4, rank, 2))

    assert [sorted(r.metrics) for r in Ranks(2).run(on)] == [["error", "loss"], []]
