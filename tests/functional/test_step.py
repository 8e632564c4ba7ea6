import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace
from torch import nn

import helios
from helios.errors import LossError, ModelError, NonFiniteError
from tests.zoo import Adversarial, Line, Noisy, batches_for, regression


def test_a_step_equals_a_hand_written_one():
    model = Line("line", lambda: helios.optim.AdamW(lr=0.1))
    state = helios.init_state(model, 7)
    net = nn.Linear(3, 1)
    net.load_state_dict({n.removeprefix("net."): p.clone() for n, p in state.carry.params.items()})
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    step = helios.make_step(model)
    for x, y in regression(5):
        state = step(state, (x, y))
        optimizer.zero_grad()
        F.mse_loss(net(x), y).backward()
        optimizer.step()
    assert torch.equal(state.carry.params["net.weight"], net.weight)
    assert torch.equal(state.carry.params["net.bias"], net.bias)


def test_the_seed_governs_the_initial_parameters():
    a, b, c = (helios.init_state(Line("x"), s) for s in (1, 1, 2))
    assert a == b
    assert helios.first_difference(a.carry, c.carry) is not None


def test_a_reassigned_buffer_reaches_the_state():
    model = Noisy("noisy")
    step, state = helios.make_step(model), helios.init_state(model, 0)
    for batch in batches_for(model, 3):
        state = step(state, batch)
    assert state.carry.buffers["seen"] == 12
    assert state.carry.buffers["net.1.num_batches_tracked"] == 3
    assert model.seen == 0


def test_tied_parameters_appear_once():
    class Tied(helios.Model):
        def setup(self, fast_init=False):
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight
            self.optimizer = helios.optim.SGD(lr=0.1)

        def loss(self, batch):
            return self.b(self.a(batch)).square().mean()

    model = Tied("tied")
    step, state = helios.make_step(model), helios.init_state(model, 0)
    after = step(step(state, torch.ones(2, 3)), torch.ones(2, 3), donate=True)
    assert sorted(after.carry.params) == ["a.bias", "a.weight", "b.bias"]
    assert model.a.weight is model.b.weight


def test_a_buffer_shared_by_two_modules_stays_shared():
    class Shared(Line):
        def setup(self, fast_init=False):
            super().setup()
            self.register_buffer("count", torch.zeros(()))
            self.inner = nn.Module()
            self.inner.register_buffer("same", self.count)

        def loss(self, batch):
            self.count += 1
            assert self.inner.same is self.count
            return super().loss(batch)

    model = Shared("shared")
    state = helios.make_step(model)(helios.init_state(model), regression(1)[0])
    assert state.carry.buffers["count"] == 1


def test_a_parameter_without_gradient_is_left_alone():
    class Unused(Line):
        def setup(self, fast_init=False):
            super().setup()
            self.spare = nn.Linear(2, 2)
            self.optimizer = helios.optim.AdamW(lr=0.1, weight_decay=0.5)

    model = Unused("unused")
    state = helios.init_state(model, 0)
    after = helios.make_step(model)(state, regression(1)[0])
    assert torch.equal(after.carry.params["spare.weight"], state.carry.params["spare.weight"])


def test_frozen_parameters_that_the_loss_moves_reach_the_state():
    class Momentum(Line):
        def setup(self, fast_init=False):
            super().setup()
            self.slow = nn.Linear(3, 1).requires_grad_(False)

        def loss(self, batch):
            self.slow.weight.data = self.slow.weight.data * 0.5
            self.slow.bias.data.mul_(0.25)
            return super().loss(batch)

    model = Momentum("momentum")
    first = helios.init_state(model, 0)
    before = {n: p.clone() for n, p in first.carry.params.items()}
    step = helios.make_step(model)
    pure = step(step(first, regression(1)[0]), regression(1)[0])
    donated = step(step(first, regression(1)[0], donate=True), regression(1)[0], donate=True)
    assert torch.equal(pure.carry.params["slow.weight"], before["slow.weight"] * 0.25)
    assert torch.equal(pure.carry.params["slow.bias"], before["slow.bias"] * 0.0625)
    assert pure == donated


def test_objectives_are_folded_in_order():
    model = Adversarial("gan")
    step, state = helios.make_step(model), helios.init_state(model, 0)
    after = step(state, torch.randn(4, 3))
    assert set(after.carry.opt_state) == {"critic", "forger"}
    assert set(after.carry.metrics) == {"critic_loss", "forger_loss"}
    changed = {
        name.split(".")[0]
        for name in state.carry.params
        if not torch.equal(state.carry.params[name], after.carry.params[name])
    }
    assert changed == {"generator", "discriminator"}


def test_an_average_follows_the_parameters():
    class Averaged(Line):
        def setup(self, fast_init=False):
            super().setup()
            self.average = helios.optim.average(decay=0.5)

    model = Averaged("averaged")
    state = helios.init_state(model, 0)
    expected = {n: p.clone() for n, p in state.carry.params.items()}
    step = helios.make_step(model)
    for batch in regression(3):
        state = step(state, batch)
        for name, value in expected.items():  # as in torch, the first update is copied
            value.lerp_(state.carry.params[name], 1.0 if state.current_iteration == 1 else 0.5)
    assert helios.first_difference(state.carry.average, expected) is None


@pytest.mark.parametrize("engine", ["autograd", "func"])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(engine):
    seen = []

    class Half(Line):
        def setup(self, fast_init=False):
            super().setup()
            self.precision = "bf16"

        def loss(self, batch):
            out = self.net(batch[0])
            seen.append(out.dtype)
            return F.mse_loss(out.float(), batch[1])

    model = Half("half")
    state = helios.make_step(model, engine=engine)(helios.init_state(model), regression(1)[0])
    assert seen == [torch.bfloat16]
    assert state.carry.params["net.weight"].dtype is torch.float32


class Scaled(Line):
    """Float16 with a loss scale; ``boom`` makes gradients overflow."""

    boom = 1.0

    def setup(self, fast_init=False):
        super().setup()
        self.precision = helios.Policy("fp16", helios.LossScale(8.0, interval=2))

    def loss(self, batch):
        with torch.autocast("cpu", enabled=False):
            return F.mse_loss(self.net(batch[0]), batch[1]) * self.boom


def test_a_power_of_two_loss_scale_changes_no_bit_and_grows():
    plain, scaled = Line("line"), Scaled("scaled")
    a, b = helios.init_state(plain, 0), helios.init_state(scaled, 0)
    for batch in regression(2):
        a = helios.make_step(plain)(a, batch)
        b = helios.make_step(scaled)(b, batch)
    assert helios.first_difference(a.carry.params, b.carry.params) is None
    assert b.carry.scale.scale == 16.0


def test_an_overflow_under_a_loss_scale_skips_the_update_and_its_rate():
    model = Scaled("scaled")
    model.boom = 3e38
    state = helios.init_state(model, 0)
    state = replace(state, carry=replace(state.carry, scale=helios.LossScale(2.0**100)))
    after = helios.make_step(model)(state, (torch.ones(4, 3), torch.ones(4, 1) * 1e-3))
    assert helios.first_difference(after.carry.params, state.carry.params) is None
    assert after.carry.opt_state["loss"]["count"] == 0
    assert after.carry.scale.scale == 2.0**99
    assert after.current_iteration == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("donate", [False, True])
def test_a_non_finite_loss_names_the_update_and_changes_no_parameter(value, donate):
    model = Line("line")
    step, state = helios.make_step(model), helios.init_state(model, 0)
    before = {n: p.clone() for n, p in state.carry.params.items()}
    x, y = regression(1)[0]
    with pytest.raises(NonFiniteError, match=r"update 1 .*No parameter was updated"):
        step(state, (x * value, y), donate=donate)
    if donate:
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name])
    else:
        assert helios.first_difference(state.carry.params, before) is None


def test_a_non_finite_gradient_of_a_finite_loss_is_found():
    class Root(Line):
        def loss(self, batch):
            return (self.net.weight * 0).abs().sqrt().sum() + self.net(batch[0]).mean()

    model = Root("root")
    with pytest.raises(NonFiniteError, match=r"net.weight"):
        helios.make_step(model)(helios.init_state(model), regression(1)[0])


def test_a_window_of_weight_zero_is_an_error_not_a_silent_nan():
    class Masked(Line):
        def loss(self, batch):
            return helios.Loss(self.net(batch[0]).sum() * 0, weight=torch.zeros(()))

    model = Masked("masked")
    with pytest.raises(NonFiniteError, match="window weight 0"):
        helios.make_step(model)(helios.init_state(model), regression(1)[0])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda m, x: m.net(x), r"shape \[4, 1\].*mean\(\)"),
        (lambda m, x: m.net(x).mean().item(), "received float"),
        (lambda m, x: None, "received NoneType"),
        (lambda m, x: m.net(x).mean().detach(), "does not require grad"),
        (lambda m, x: (m.net(x).mean(), 3), r"received \(Tensor, int\)"),
        (lambda m, x: (m.net(x).mean(), {"accuracy": "high"}), "accuracy.*received str"),
        (lambda m, x: {"loss": m.net(x).mean()}, "received dict"),
    ],
)
def test_what_is_no_loss_is_refused(loss, message):
    class Wrong(Line):
        def loss(self, batch):
            return loss(self, batch[0])

    model = Wrong("wrong")
    state = helios.init_state(model)
    digest = helios.digest(state)
    with pytest.raises((LossError, TypeError), match=message):
        helios.make_step(model)(state, regression(1)[0])
    assert helios.digest(state) == digest


def test_a_model_without_parameters_is_refused():
    class Empty(helios.Model):
        def setup(self, fast_init=False):
            self.layers = [nn.Linear(2, 2)]
            self.optimizer = helios.optim.SGD(lr=0.1)

    with pytest.raises(ModelError, match=r"no parameters.*ModuleList"):
        helios.init_state(Empty("empty"))


def test_a_model_without_optimizer_is_refused():
    class Bare(Line):
        def setup(self, fast_init=False):
            self.net = nn.Linear(3, 1)

    with pytest.raises(ModelError, match=r"no optimizer.*helios.optim.AdamW"):
        helios.init_state(Bare("bare"))


def test_a_torch_optimizer_is_refused_with_the_way_to_write_it():
    class Native(Line):
        def setup(self, fast_init=False):
            super().setup()
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    with pytest.raises(ModelError, match=r"received a SGD.*TorchOptimizer"):
        helios.init_state(Native("native"))


def test_a_frozen_model_is_refused():
    class Frozen(Line):
        def setup(self, fast_init=False):
            super().setup()
            self.net.requires_grad_(False)

    with pytest.raises(ModelError, match="trains no parameter"):
        helios.init_state(Frozen("frozen"))


def test_a_lazy_parameter_is_refused():
    class Lazy(Line):
        def setup(self, fast_init=False):
            super().setup()
            self.net = nn.LazyLinear(1)

    with pytest.raises(ModelError, match="lazy"):
        helios.init_state(Lazy("lazy"))


def test_a_state_of_another_model_is_refused():
    model, other = Line("line"), Noisy("noisy")
    with pytest.raises(ModelError, match="another model"):
        helios.make_step(model)(helios.init_state(other), regression(1)[0])


def test_an_unknown_engine_lists_the_engines():
    with pytest.raises(ValueError, match=r"'jit'.*autograd.*func"):
        helios.make_step(Line("line"), engine="jit")


class Counting(Line):
    """Overrides the step, with a carry of its own."""

    def init_carry(self):
        return {"sum": torch.zeros(3)}

    def step(self, state, batch):
        return replace(state, carry={"sum": state.carry["sum"] + batch})


def test_a_step_may_be_overridden_with_any_carry():
    model = Counting("counting")
    step, state = helios.make_step(model), helios.init_state(model)
    after = step(step(state, torch.ones(3)), torch.ones(3), donate=True)
    assert torch.equal(after.carry["sum"], torch.full((3,), 2.0))
    assert after.current_iteration == 2


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda s: None, "returned a NoneType"),
        (lambda s: replace(s, global_epoch=9), "global_epoch"),
    ],
)
def test_an_overridden_step_must_return_a_state_and_leave_the_counters(result, message):
    class Wrong(Counting):
        def step(self, state, batch):
            return result(state)

    model = Wrong("wrong")
    with pytest.raises(ModelError, match=message):
        helios.make_step(model)(helios.init_state(model), torch.ones(3))


def test_metrics_are_weighted_by_samples_and_kept_as_sums():
    model = Noisy("noisy")
    step, state = helios.make_step(model), helios.init_state(model)
    for size in (4, 2):
        state = step(state, batches_for(model, 1, size=size)[0])
    assert state.carry.metrics["accuracy"].weight == 6
    assert type(state.carry.metrics["accuracy"].total) is float
