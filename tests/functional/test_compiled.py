"""The compiled step against the eager one. What torch's compiler does to the numbers is rounding;
most of these tests therefore compile with a backend that runs the traced operators as they are."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

import helios
from helios.errors import NonFiniteError
from helios.functional.tree import leaves_with_paths
from tests import zoo

TRACED = "aot_eager"
INDUCTOR = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
"""torch imports what it warns of, and warnings are errors here."""


def steps(model, batches, *, compile=TRACED, window=1, donate=False, seed=0, **options):
    """The states of a run, one after each micro-batch, and the sentences that the step told."""
    told: list[str] = []
    step = helios.make_step(
        model, helios.Plan(accumulation_steps=window), compile=compile, tell=told.append, **options
    )
    state, states = helios.init_state(model, seed), []
    for batch in batches:
        state = step(state, batch, donate=donate)
        states.append(helios.functional.tree.clone(state) if donate else state)
    return states, told


def distance(a, b):
    """The largest difference between two states, over everything in them; relative above 1."""
    left, right = leaves_with_paths(a.carry), leaves_with_paths(b.carry)
    assert [path for path, _ in left] == [path for path, _ in right]
    far = 0.0
    for (path, one), (_, other) in zip(left, right, strict=True):
        if isinstance(one, (torch.Tensor, int, float)):
            one, other = (torch.as_tensor(x, dtype=torch.float64) for x in (one, other))
            assert one.shape == other.shape, path
            if one.numel():
                far = max(far, float(((one - other).abs() / other.abs().clamp(min=1)).max()))
        else:
            assert one == other, path
    return far


class Rich(helios.Model):
    """Clipping, an average, a rate that changes, a frozen layer, batch norm; in float64."""

    def __init__(self, optimizer=None, norm=lambda: nn.BatchNorm1d(5)):
        super().__init__("rich")
        self._make, self.norm = optimizer, norm

    def setup(self, fast_init=False):
        self.net = nn.Sequential(
            nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), self.norm(), nn.Linear(5, 1)
        ).double()
        self.net[0].requires_grad_(False)
        self.spare = nn.Linear(2, 2).double()  # takes no part
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        rate = helios.optim.rates.cosine(0.1, 20)
        self.optimizer = helios.optim.chain(
            clip=helios.optim.clip_by_global_norm(0.5),
            opt=self._make(rate) if self._make else helios.optim.SGD(lr=rate, momentum=0.9),
        )
        self.average = helios.optim.average(0.9, start=1)

    def loss(self, batch):
        self.seen = self.seen + len(batch[0])
        errors = (self.net(batch[0]) - batch[1]).square()
        return helios.Loss(errors.sum(), len(errors), {"each": errors[:, 0], "half": 0.5})


MODELS = {
    "line": lambda: zoo.Line("line"),
    "noisy": lambda: zoo.Noisy("noisy", lambda: helios.optim.SGD(lr=0.1, momentum=0.9)),
    "weighted": lambda: zoo.Weighted("weighted"),
    "adversarial": lambda: zoo.Adversarial("adversarial"),
    "game": lambda: zoo.Game("game"),
    "rich": Rich,
}


def batches_of(model, count, size=4):
    if isinstance(model, (Rich, zoo.Game)):
        return zoo.regression(count, size, 0, torch.float64)
    return zoo.batches_for(model, count, size)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_a_compiled_run_is_the_eager_one_up_to_rounding(kind, window):
    model = MODELS[kind]()
    model.prepare(0)
    batches = batches_of(model, 8)
    if window == 1:
        batches += batches_of(model, 2, size=3)
    eager, _ = steps(model, batches, compile=False, window=window)
    compiled, told = steps(model, batches, window=window)
    assert told == []
    near = 2e-6 if kind in ("adversarial", "line", "noisy") else 1e-13
    assert max(map(distance, eager, compiled)) < near


OPTIMIZERS = [
    *("SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adamax", "Adadelta"),
    *("Rprop", "ASGD"),
]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_elementwise_optimizer_compiles(name):
    make = getattr(helios.optim, name)
    batches = zoo.regression(5, 4, 0, torch.float64)
    last = []
    for compile in (TRACED, False):
        # Not batch norm: the gradient of a bias before it is noise, which Adam makes large.
        model = Rich(lambda rate: make(lr=rate), nn.Tanh)
        states, told = steps(model, batches, compile=compile)
        assert told == []
        last.append(states[-1])
    # These two keep factors of their own in float32, which a trace computes with.
    assert distance(*last) < (1e-7 if name in ("NAdam", "ASGD") else 1e-12)


@pytest.mark.parametrize(("kind", "window"), [("noisy", 1), ("adversarial", 1), ("rich", 2)])
def test_donated_equals_undonated(kind, window):
    model = MODELS[kind]()
    model.prepare(0)
    batches = batches_of(model, 5)
    kept, _ = steps(model, batches, window=window)
    given, _ = steps(model, batches, window=window, donate=True)
    assert [helios.first_difference(a, b) for a, b in zip(kept, given, strict=True)] == [None] * 5


def test_an_undonated_step_changes_nothing_that_it_is_given():
    model = zoo.Noisy("noisy")
    step, state = helios.make_step(model, compile=TRACED), helios.init_state(model, 0)
    first, second, third = zoo.classes(3)
    state = step(step(state, first), second)
    digest, weights = helios.digest(state), [p.detach().clone() for p in model.parameters()]
    after = step(state, third)
    assert helios.digest(state) == digest
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert helios.first_difference(step(state, third), after) is None
    assert helios.first_difference(state, after) is not None


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(("window", "places"), [(1, 1), (2, 2), (4, 3)])
def test_one_graph_for_each_place_in_a_window_and_shape_of_a_batch(window, places):
    model = zoo.Line("line", lambda: helios.optim.AdamW(lr=helios.optim.rates.cosine(0.1, 99)))
    before = graphs()
    epoch = [*zoo.regression(2 * window - 1), *zoo.regression(1, size=2)]
    steps(model, epoch * 3, window=window, donate=True)
    warm = graphs()
    # The small batch closes its window, or is one: it comes in one place alone.
    assert warm - before == places + 1
    steps(model, epoch * 5, window=window, donate=True)  # the same model again, in another run
    assert graphs() == warm


def test_more_shapes_than_graphs_share_one():
    model = zoo.Line()
    before = graphs()
    sizes = range(2, 16)
    states, told = steps(model, [zoo.regression(1, size=n)[0] for n in (2, *sizes, *sizes)])
    assert told == []
    assert graphs() - before == helios.functional.compiler.SHAPES + 1
    eager, _ = steps(
        model, [zoo.regression(1, size=n)[0] for n in (2, *sizes, *sizes)], compile=False
    )
    assert distance(states[-1], eager[-1]) < 1e-5


class Knob(zoo.Line):
    """Reads an attribute that somebody may turn."""

    factor = 1.0

    def loss(self, batch):
        return super().loss(batch) * self.factor


def test_what_the_loss_reads_is_seen_when_it_changes():
    model = Knob()
    step, state = helios.make_step(model, compile=TRACED), helios.init_state(model, 0)
    batch = zoo.regression(1)[0]
    state = step(step(state, batch), batch)
    model.factor = 0.0
    assert torch.equal(
        step(state, batch).carry.params["net.weight"], state.carry.params["net.weight"]
    )


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_an_update_that_is_not_finite_is_not_applied(where):
    model = zoo.Line("line", lambda: helios.optim.AdamW(lr=0.1))
    step, state = helios.make_step(model, compile=TRACED), helios.init_state(model, 0)
    good, (x, y) = zoo.regression(2)
    state = step(step(state, good), good)
    held = helios.functional.tree.clone(state)
    bad = (x * float("nan"), y) if where == "loss" else (x * 1e30, y * 0 + 1e19)
    with pytest.raises(NonFiniteError, match=r"update 3 .*No parameter was updated"):
        step(held, bad, donate=True)
    skip = helios.make_step(model, compile=TRACED, non_finite="skip")
    after = skip(state, bad)
    assert after.carry.skipped == 1
    for name in ("params", "opt_state"):
        assert (
            helios.first_difference(getattr(after.carry, name), getattr(state.carry, name)) is None
        )


def test_a_deferred_check_is_looked_at_before_the_next_update():
    model, deferred = zoo.Line(), helios.functional.nonfinite.Deferred()
    step = helios.make_step(model, compile=TRACED, deferred=deferred)
    good, (x, y) = zoo.regression(2)
    state = step(step(helios.init_state(model, 0), good), good)
    held = helios.functional.tree.clone(state.carry.params)
    state = step(state, (x * float("nan"), y))
    assert helios.first_difference(state.carry.params, held) is None
    with pytest.raises(NonFiniteError, match="update 3 "):
        step(state, good)


def test_the_gradients_that_are_not_finite_are_named():
    model = zoo.Line()
    step, state = helios.make_step(model, compile=TRACED), helios.init_state(model, 0)
    good, (x, y) = zoo.regression(2)
    state = step(step(state, good), good)
    with pytest.raises(NonFiniteError, match=r"gradient\(s\) are not finite: net.weight"):
        step(state, (x * 1e30, y))


def test_what_float64_holds_is_finite():
    model = zoo.Line("line", lambda: helios.optim.SGD(lr=1e-200), torch.float64)
    [(x, y)] = zoo.regression(1, 4, 0, torch.float64)
    states, _ = steps(model, [(x, y), (x, y), (x * 1e60, y)])
    assert states[-1].current_iteration == 3


class Both(zoo.Game):
    """Two objectives that count into one metric."""

    def first(self, batch):
        return super().first(batch), {"mean": batch[0].mean()}

    def second(self, batch):
        return super().second(batch), {"mean": batch[1].mean()}


def test_objectives_may_count_into_one_metric():
    batches = zoo.regression(4, 4, 0, torch.float64)
    compiled, told = steps(Both("both"), batches)
    eager, _ = steps(Both("both"), batches, compile=False)
    assert told == []
    assert compiled[-1].carry.metrics["mean"].weight == 32
    assert distance(compiled[-1], eager[-1]) < 1e-13


def test_skipped_buffers_are_put_back():
    model = zoo.Noisy("noisy")
    step = helios.make_step(model, compile=TRACED, non_finite="skip")
    state = helios.init_state(model, 0)
    good, (x, y) = zoo.classes(2)
    state = step(step(state, good), good)
    after = step(state, (x * float("inf"), y))
    assert after.carry.skipped == 1
    assert helios.first_difference(after.carry.buffers, state.carry.buffers) is None


class Scaled(zoo.Line):
    """Computes in float16, with a loss scale."""

    def setup(self, fast_init=False):
        super().setup()
        self.precision = helios.Policy("float16", helios.LossScale(2.0**10, interval=2))


def test_the_loss_scale_follows_what_was_found():
    batches = zoo.regression(3)
    batches.append((batches[0][0] * 300, batches[0][1]))
    scales = {}
    for compile in (TRACED, False):
        states, told = steps(Scaled(), batches, compile=compile)
        assert told == []
        scales[compile] = [(s.carry.scale.scale, s.carry.skipped) for s in states]
    assert scales[TRACED] == scales[False]
    assert scales[TRACED][-1][1] == 1


def test_randomness_is_a_function_of_the_seed_and_the_position():
    model = zoo.Noisy("noisy")
    batches = zoo.classes(4)
    first, _ = steps(model, batches, seed=1)
    torch.rand(3)
    again, _ = steps(model, batches, seed=1)
    other, _ = steps(model, batches, seed=2)
    assert helios.first_difference(first[-1], again[-1]) is None
    assert first[-1].carry.metrics["loss"].total != other[-1].carry.metrics["loss"].total


class Refusing(zoo.Line):
    """Does what a compiler cannot see through."""

    def __init__(self, how, optimizer=None):
        super().__init__("line", optimizer)
        self.how, self.count = how, 0

    def loss(self, batch):
        if self.how == "prints":
            print("loss")  # noqa: T201
        if self.how == "branches" and batch[0].sum() > 0:
            return super().loss(batch) * 1.0
        if self.how == "counts":
            self.count += 1
            return super().loss(batch) * (1 + 0 * self.count)
        return super().loss(batch)


REFUSED = {
    "prints": "Failed to trace builtin operator .*test_compiled.py, line",
    "branches": "Data-dependent branching .*test_compiled.py, line",
    "counts": "changes from step to step",
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_cannot_be_compiled_runs_as_it_is_and_one_sentence_says_why(how, capsys):
    batches = zoo.regression(14)
    states, told = steps(Refusing(how), batches, donate=True)
    [sentence] = told
    assert sentence.startswith("The step runs uncompiled: ")
    import re

    assert re.search(REFUSED[how], sentence)
    eager, _ = steps(Refusing(how), batches, compile=False, donate=True)
    assert distance(states[-1], eager[-1]) < 1e-6


class Late(zoo.Line):
    """Has a layer that takes part from the fourth batch on."""

    late = False

    def setup(self, fast_init=False):
        super().setup()
        self.more = nn.Linear(3, 1)

    def loss(self, batch):
        loss = super().loss(batch)
        return loss + self.more(batch[0]).square().mean() if self.late else loss


def test_a_parameter_whose_first_gradient_is_late_is_trained():
    batches, ends = zoo.regression(6), []
    for compile in (TRACED, False):
        model, told = Late(), []
        step = helios.make_step(model, compile=compile, tell=told.append)
        state = helios.init_state(model, 0)
        for number, batch in enumerate(batches):
            model.late = number >= 3
            state = step(state, batch)
        assert bool(told) == bool(compile)
        ends.append(state)
    assert distance(*ends) < 1e-6
    assert ends[0].carry.opt_state["loss"]["started"]["more.weight"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: zoo.Line("line", lambda: helios.optim.Adafactor(lr=0.1)), "Adafactor has no"),
        (lambda: Own("own"), "a step of its own"),
        (lambda: zoo.Line("line", lambda: Plain()), "Plain has no update that can be traced"),
    ],
)
def test_what_is_known_not_to_compile_is_said_at_once(make, words):
    with pytest.warns(UserWarning, match=f"The step runs uncompiled: .*{words}"):
        step = helios.make_step(make(), compile=True)
    assert step._compiled is None


class Own(zoo.Line):
    def step(self, state, batch):
        return state


class Plain:
    """A user's own transformation."""

    def init(self, params):
        return {}

    def update(self, grads, opt_state, params, *, donate=False):
        return {n: p - 0.1 * grads[n] for n, p in params.items()}, opt_state


@INDUCTOR
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with g++")
def test_kernels_give_what_operators_give():
    class Small(zoo.Noisy):
        def setup(self, fast_init=False):
            self.net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
            self.register_buffer("seen", torch.zeros(()))
            self.optimizer = helios.optim.chain(
                clip=helios.optim.clip_by_global_norm(1.0), adamw=helios.optim.AdamW(lr=1e-3)
            )
            self.average = helios.optim.average(0.9)

    model = Small("small")
    batches = zoo.classes(6, size=8)
    eager, _ = steps(model, batches, compile=False)
    compiled, told = steps(model, batches, compile=True, donate=True)
    assert told == []
    assert distance(compiled[-1], eager[-1]) < 1e-6


@INDUCTOR
def test_without_a_compiler_a_step_runs_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        states, told = steps(zoo.Line(), zoo.regression(3), compile=True)
    [sentence] = told
    assert sentence.startswith("The step runs uncompiled: InvalidCxxCompiler: No working C++")
    eager, _ = steps(zoo.Line(), zoo.regression(3), compile=False)
    assert helios.first_difference(states[-1], eager[-1]) is None


def test_autocast_is_traced():
    class Lowered(zoo.Line):
        def setup(self, fast_init=False):
            super().setup()
            self.precision = helios.Policy("bf16")

        def loss(self, batch):
            assert self.net(batch[0]).dtype is torch.bfloat16
            return F.mse_loss(self.net(batch[0]).float(), batch[1])

    states, told = steps(Lowered(), zoo.regression(3))
    eager, _ = steps(Lowered(), zoo.regression(3), compile=False)
    assert told == []
    assert distance(states[-1], eager[-1]) < 1e-3
