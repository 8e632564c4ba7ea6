"""What cannot be trained at once is said clearly, and before or at the first micro-batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import helios
from helios.errors import ModelError, StateMismatchError
from tests import zoo
from tests.trainer.many.runs import data, fit, members
from tests.trainer.runs import Batches, trainer


class Base(zoo.Line):
    """A line whose loss is given."""

    def __init__(self, name, loss=None, member=0):
        super().__init__(name)
        self.given, self.member = loss, member

    def loss(self, batch):
        return self.given(self, batch)


def train(make, batches=None):
    fit(None, [make("a", 0), make("b", 1)], batches or Batches(zoo.regression(3)), steps=2)


def refused(loss, match):
    with pytest.raises(ModelError, match=match):
        train(lambda name, _: Base(name, loss))


class Doubled(torch.autograd.Function):
    """Without a rule for vmap."""

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Old(torch.autograd.Function):
    """In the form that transforms do not know."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Ruled(Doubled):
    """With a rule for vmap."""

    generate_vmap_rule = True


def error_of(model, batch):
    x, y = batch
    return (model.net(x) - y).square()


def test_reading_a_number():
    refused(lambda m, b: error_of(m, b).mean() * error_of(m, b).max().item(), r"\.item\(\)")
    refused(lambda m, b: error_of(m, b).mean() * float(error_of(m, b).max()), "reads a number")


def test_a_branch_on_a_value():
    def loss(model, batch):
        errors = error_of(model, batch).mean()
        return errors if errors > 0.5 else 2 * errors

    refused(loss, "decides by the value of a tensor.*Use torch.where")


def test_a_branch_on_the_batch_alone_is_fine():
    def loss(model, batch):
        return error_of(model, batch).mean() * (2 if batch[0].sum().item() > 0 else 1)

    train(lambda name, _: Base(name, loss))


def test_a_shape_that_depends_on_values():
    refused(lambda m, b: error_of(m, b)[error_of(m, b) > 0.1].mean(), "shape depends on values")
    refused(lambda m, b: error_of(m, b).mean() + len(error_of(m, b).nonzero()), "shape depends")


def test_writing_into_what_all_have_in_common():
    def loss(model, batch):
        total = torch.zeros(())
        total += error_of(model, batch).mean()
        return total

    refused(loss, "writes values of the members into a tensor that all have in common")


def test_a_function_without_a_rule():
    refused(lambda m, b: Doubled.apply(error_of(m, b)).mean(), "autograd.Function without a rule")
    refused(lambda m, b: Old.apply(error_of(m, b)).mean(), "autograd.Function without a rule")


def test_a_function_with_a_rule_is_fine():
    train(lambda name, _: Base(name, lambda m, b: Ruled.apply(error_of(m, b)).mean()))


def test_computing_activations_again():
    def loss(model, batch):
        out = torch.utils.checkpoint.checkpoint(model.net, batch[0], use_reentrant=False)
        return (out - batch[1]).square().mean()

    refused(loss, "Leave torch.utils.checkpoint out")


def test_a_gradient_within_the_loss():
    def penalty(model, batch):
        x = batch[0].clone().requires_grad_()
        [slope] = torch.autograd.grad(model.net(x).sum(), x, create_graph=True)
        return error_of(model, batch).mean() + slope.square().mean()

    def hooked(model, batch):
        out = model.net(batch[0])
        out.register_hook(lambda grad: 2 * grad)
        return (out - batch[1]).square().mean()

    refused(penalty, "Use torch.func.grad")
    refused(hooked, "Use torch.func.grad")


def test_a_gradient_by_torch_func_is_fine():
    def loss(model, batch):
        slope = torch.func.grad(lambda x: model.net(x).square().sum())(batch[0])
        return error_of(model, batch).mean() + slope.square().mean()

    train(lambda name, _: Base(name, loss))


def test_a_compiled_module():
    class Compiled(zoo.Line):
        def setup(self, fast_init=False):
            super().setup()
            self.net = torch.compile(self.net, backend="eager")

    with pytest.raises(ModelError, match="'net' of 'a' is compiled"):
        fit(None, members(Compiled, "ab"), Batches(zoo.regression(3)))


def test_sparse_gradients():
    class Sparse(zoo.Line):
        def setup(self, fast_init=False):
            super().setup()
            self.table = nn.Embedding(3, 3, sparse=True)

    with pytest.raises(ModelError, match="Embedding 'table' of 'a' has sparse gradients"):
        fit(None, members(Sparse, "ab"), Batches(zoo.regression(3)))


def test_parametrised_modules_are_fine():
    class Normed(zoo.Line):
        def setup(self, fast_init=False):
            super().setup()
            torch.nn.utils.parametrize.register_parametrization(self.net, "weight", nn.Tanh())

    fit(None, members(Normed, "ab"), Batches(zoo.regression(3)), steps=2)


def test_what_torch_says_is_in_the_message():
    refused(lambda m, b: error_of(m, b).mean().item(), "torch says: vmap: It looks like")


def test_errors_of_the_loss_itself_come_through():
    def loss(model, batch):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match=r"^out of luck$"):
        train(lambda name, _: Base(name, loss))


def test_an_attribute_that_differs_and_is_read():
    def loss(model, batch):
        return error_of(model, batch).mean() * (1 + model.member)

    with pytest.raises(ModelError, match=r"self.member is 0 in one and 1 in another member"):
        train(lambda name, member: Base(name, loss, member))


def test_an_attribute_that_differs_and_is_not_read_is_fine():
    train(lambda name, member: Base(name, lambda m, b: error_of(m, b).mean(), member))


def test_attributes_are_back_after_it():
    models = [Base(n, lambda m, b: error_of(m, b).mean(), k) for k, n in enumerate("ab")]
    fit(None, models, Batches(zoo.regression(3)), steps=2)
    assert [model.member for model in models] == [0, 1]


def test_an_option_of_a_layer_that_differs():
    class Dropped(zoo.Noisy):
        def setup(self, fast_init=False):
            super().setup()
            self.net[3].p = 0.1 if self.save_name == "a" else 0.2

    with pytest.raises(ModelError, match=r"self.net.3.p is 0.1 in one and 0.2 in another member"):
        fit(None, members(Dropped, "ab"), data())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: setattr(m, "net", nn.Linear(3, 2)), "the parameters of 'b' and 'a' differ"),
        (lambda m: setattr(m, "net", nn.Sequential(nn.Linear(3, 1))), "the modules of 'b' and 'a'"),
        (lambda m: m.net.requires_grad_(False) and m.net.bias.requires_grad_(True), "trained"),
        (lambda m: setattr(m, "precision", "bf16"), "the precision of 'b' and 'a' differ"),
        (lambda m: setattr(m, "average", helios.optim.average()), "the average of 'b' and 'a'"),
        (lambda m: setattr(m, "optimizer", helios.optim.Adam()), "the class of member 1"),
    ],
)
def test_what_members_must_have_in_common(change, match):
    class Changed(zoo.Line):
        def setup(self, fast_init=False):
            super().setup()
            if self.save_name == "b":
                change(self)

    with pytest.raises(ModelError, match=match):
        fit(None, members(Changed, "ab"), Batches(zoo.regression(3)))


def test_optimizers_with_other_states():
    class Changed(zoo.Line):
        def setup(self, fast_init=False):
            super().setup()
            self.optimizer = helios.optim.SGD(lr=0.1, momentum=0.9 * (self.save_name == "b"))

    with pytest.raises(StateMismatchError, match="momentum_buffer"):
        fit(None, members(Changed, "ab"), Batches(zoo.regression(3)))


def test_models_of_other_classes():
    with pytest.raises(ModelError, match="the class of 'b' and 'a' differ"):
        fit(None, [zoo.Line("a"), Base("b")], Batches(zoo.regression(3)))


def test_a_step_of_its_own():
    class Own(zoo.Line):
        def step(self, state, batch):
            return state

    with pytest.raises(ModelError, match=r"'a' has a step\(\) of its own"):
        fit(None, members(Own, "ab"), Batches(zoo.regression(3)))


@pytest.mark.parametrize(
    "hook",
    [
        "on_training_batch_start",
        "on_training_batch_end",
        "on_validation_batch_start",
        "on_validation_batch_end",
        "should_training_stop",
    ],
)
def test_hooks_around_single_batches(hook):
    make = type("Hooked", (zoo.Line,), {hook: lambda self, *args: False})
    with pytest.raises(ModelError, match=f"'a' overrides {hook}: .*are not called"):
        fit(None, members(make, "ab"), Batches(zoo.regression(3)))


def test_a_loss_scale():
    class Half(zoo.Line):
        def setup(self, fast_init=False):
            super().setup()
            self.precision = "fp16"

    with pytest.raises(ModelError, match=r"'a' has a loss scale \(fp16\)"):
        fit(None, members(Half, "ab"), Batches(zoo.regression(3)))


def test_a_module_that_keeps_its_weights_in_a_list():
    class Recurrent(zoo.Line):
        def setup(self, fast_init=False):
            super().setup()
            self.rnn = nn.LSTM(3, 3)

    with pytest.raises(
        ModelError, match=r"LSTM 'rnn' of 'a' keeps the parameter 'rnn.weight_ih_l0'"
    ):
        fit(None, members(Recurrent, "ab"), Batches(zoo.regression(3)))


def test_a_plugin_that_changes_the_model():
    class Changing(helios.Plugin):
        def configure_model(self, model):
            pass

    with pytest.raises(ValueError, match=r"plugin 'changing' overrides configure_model\(\)"):
        fit(None, members(names="ab"), data(), plugins=[Changing("changing")])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"cpu_ranks": 2, "use_cpu": None}, "several ranks"),
        ({"reduction": "canonical"}, "reduction='canonical'"),
        ({"parallel": helios.DDP()}, "for runs of several ranks"),
        ({"compile": True}, "a step of several members is not compiled"),
        ({"steps": 0}, "total_steps: received 0"),
    ],
)
def test_trainers_for_something_else(arguments, match):
    with pytest.raises(ValueError, match=match):
        helios.fit_many(trainer(**arguments), members(), data())


def test_arguments_that_make_no_sense():
    with pytest.raises(ValueError, match="models: received"):
        helios.fit_many(trainer(), [], data())
    with pytest.raises(TypeError, match=r"models\[1\]: received a int"):
        helios.fit_many(trainer(), [zoo.Line(), 3], data())
    with pytest.raises(ValueError, match="two have the save_name 'line'"):
        helios.fit_many(trainer(), [zoo.Line(), zoo.Line()], data())
    with pytest.raises(ValueError, match="seeds: received 1; expected one for each of 3"):
        helios.fit_many(trainer(), members(), data(), seeds=[1])


def test_a_failure_is_printed_and_makes_it_return_false(capsys):
    class Own(zoo.Line):
        def step(self, state, batch):
            return state

    assert helios.fit_many(trainer(), members(Own), Batches(zoo.regression(3))) is False
    assert "has a step() of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argument",
    [{"fast_dev_run": True}, {"overfit_batches": 2}, {"detect_anomaly": True}],
    ids=lambda argument: next(iter(argument)),
)
def test_what_is_for_finding_out_about_one_model_is_refused(argument):
    with pytest.raises(ValueError, match=f"a trainer with {next(iter(argument))}"):
        helios.fit_many(trainer(**argument), [zoo.Line("a")], Batches(zoo.regression(3)))
