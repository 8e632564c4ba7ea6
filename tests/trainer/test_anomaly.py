"""Steps that say where they fail: in an anomaly, and in an operator that is not deterministic."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import helios
from helios.errors import NonFiniteError
from tests import zoo
from tests.trainer.runs import Batches, run, trainer


class Root(nn.Module):
    """The gradient of a square root is infinite at 0, and NaN if 0 comes back to it."""

    def forward(self, x):
        return (x * 0).sqrt() * 0


class Logarithm(nn.Module):
    def forward(self, x):
        return torch.log(-x.abs() - 1)


class Scatters(nn.Module):
    """`put_` without accumulation has no deterministic implementation, on the CPU either."""

    def forward(self, x):
        return x + torch.zeros(1).put_(torch.tensor([0]), torch.ones(1))


class _PutsBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.zeros(1).put_(torch.tensor([0]), torch.ones(1))


class ScattersBack(nn.Module):
    def forward(self, x):
        return _PutsBack.apply(x)


class Fails(helios.Model):
    """A module that fails, deep in a network, once three micro-batches are done."""

    def __init__(self, module, only=None):
        super().__init__("fails")
        self.given, self.only = (module,), only  # no module of the model yet

    def setup(self, fast_init=False):
        self.net = nn.Sequential(
            nn.Linear(3, 4), nn.Sequential(nn.Tanh(), *self.given), nn.Linear(4, 1)
        )
        self.optimizer = helios.optim.SGD(lr=0.1)

    def loss(self, batch):
        x, y = batch
        if self.training == (self.only == "valid"):
            return (self.net[0](x).mean() - y).square().mean()
        if self.trainer.state.global_iteration < 3:
            return self.net[0](x).square().mean()
        return (self.net(x) - y).square().mean()


def failure(module, only=None, **arguments):
    made = trainer(unit="epoch", **{"steps": 1, **arguments})
    made.train_exceptions.append(Exception)
    model, data = Fails(module, only), Batches(zoo.regression(5), zoo.regression(1))
    with pytest.raises((RuntimeError, NonFiniteError)) as raised:
        made.fit(model, data)
    return raised.value


def notes(error):
    return "\n".join(getattr(error, "__notes__", []))


@pytest.mark.parametrize("model", [zoo.Noisy, zoo.Adversarial, zoo.Weighted])
def test_bits_are_those_without_it(model):
    options = {"steps": 7, "accumulation_steps": 2}
    made = [
        run(model=m, data=Batches(zoo.batches_for(m, 5)), detect_anomaly=on, **options)
        for on in (False, True)
        for m in [model(model.__name__.lower())]
    ]
    assert helios.digest(made[0].state) == helios.digest(made[1].state)


def test_a_gradient_that_is_nan_names_operator_module_line_and_micro_batch():
    error = failure(Root(), detect_anomaly=True)
    assert isinstance(error, RuntimeError)
    assert "SqrtBackward0" in str(error)
    assert "In micro-batch 3 (epoch 1, batch 2 of it) the gradient became NaN in " in notes(error)
    assert "SqrtBackward0 in net.1.1 (Root), File " in notes(error)
    assert "return (x * 0).sqrt() * 0" in notes(error)


def test_the_traceback_of_the_forward_call_is_told_and_not_warned_of():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error = failure(Root(), detect_anomaly=True)
    assert "Traceback of forward call" in notes(error)
    assert not caught


def test_a_nan_of_the_forward_pass_is_found_where_it_arose():
    error = failure(Logarithm(), detect_anomaly=True)
    assert "NaN arose first in log in net.1.1 (Logarithm), File " in notes(error)
    assert "return torch.log(-x.abs() - 1)" in notes(error)


def test_an_infinity_of_the_forward_pass_is_found_too():
    class Exponential(nn.Module):
        def forward(self, x):
            return torch.exp(x * 0 + 1e4)

    error = failure(Exponential(), detect_anomaly=True)
    assert isinstance(error, (NonFiniteError, RuntimeError))
    assert "infinity arose first in exp in net.1.1 (Exponential)" in notes(error)
    assert "NaN arose first in addmm in net.2 (Linear)" in notes(error)


def test_without_it_a_bad_step_is_not_looked_into():
    assert "arose first" not in notes(failure(Logarithm()))


def test_a_warning_of_the_users_own_is_passed_on():
    class Warns(zoo.Line):
        def loss(self, batch):
            warnings.warn("look here", stacklevel=2)
            return super().loss(batch)

    with pytest.warns(UserWarning, match="look here"):
        run(model=Warns(), steps=1, detect_anomaly=True)


def test_anomaly_mode_is_off_again():
    run(detect_anomaly=True)
    assert not torch.is_anomaly_enabled()


def test_a_compiled_step_runs_uncompiled_and_says_so(capsys):
    made = run(detect_anomaly=True, compile="aot_eager")
    assert "uncompiled: detect_anomaly is on" in capsys.readouterr().out
    assert helios.digest(made.state) == helios.digest(run().state)


def test_deterministic_mode_names_operator_module_and_line():
    error = failure(Scatters(), enable_deterministic=True)
    assert "put_ does not have a deterministic implementation" in str(error)
    assert "Not deterministic: put_ in net.1.1 (Scatters), File " in notes(error)
    assert "enable_deterministic=False" in notes(error)


def test_deterministic_mode_names_an_operator_of_a_backward_pass():
    error = failure(ScattersBack(), enable_deterministic=True)
    named = "Not deterministic: the backward pass of _PutsBackBackward in net.1.1 (ScattersBack)"
    assert named in notes(error)
    assert "return _PutsBack.apply(x)" in notes(error)


def test_deterministic_mode_names_an_operator_of_a_validation():
    error = failure(Scatters(), only="valid", enable_deterministic=True, steps=2, valid_frequency=1)
    assert "Not deterministic: put_ in net.1.1 (Scatters), File " in notes(error)


def test_deterministic_mode_names_torchs_own_modules():
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.back = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

        def forward(self, x):
            return self.back(*self.pool(x.view(1, 1, 4, 4))).view(4, 4)

    error = failure(Pools(), enable_deterministic=True)
    assert "max_unpooling2d_forward_out in net.1.1.back (MaxUnpool2d)" in notes(error)


def test_an_error_of_another_kind_is_left_alone():
    class Raises(nn.Module):
        def forward(self, x):
            raise RuntimeError("something else")

    assert not notes(failure(Raises(), enable_deterministic=True, detect_anomaly=True))


def test_the_printed_error_has_it_too(capsys):
    model = Fails(Scatters())
    assert not trainer(enable_deterministic=True).fit(model, Batches(zoo.regression(5)))
    assert "put_ in net.1.1 (Scatters)" in capsys.readouterr().err
