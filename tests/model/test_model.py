"""The model: its defaults, several objectives, and a step of its own."""

from __future__ import annotations

import copy

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import helios
from helios.errors import ModelError, RegistryError
from helios.functional.precision import Policy
from helios.model import MODEL_REGISTRY, create_model
from tests import zoo
from tests.trainer.runs import Batches, params, run, same, trainer

# Defaults.


def test_a_new_model_has_nothing_yet():
    model = zoo.Line()
    assert (model.optimizer, model.average, model.monitor, model.best_score) == (None,) * 4
    assert (model.valid_metrics, model.test_metrics) == ({}, {})
    assert (model.rank, model.is_distributed) == (0, False)
    assert model.device == torch.device("cpu")
    assert model.precision == Policy()


def test_a_model_outside_of_a_run_has_no_trainer():
    with pytest.raises(ModelError, match="the model has no trainer"):
        _ = zoo.Line().trainer


def test_every_hook_has_a_default():
    model = zoo.Line()
    for name in dir(helios.model.model.ModelHooks):
        if name.startswith("on_"):
            assert callable(getattr(model, name))
    assert model.should_training_stop() is False
    assert model.append_metadata_to_chkpt_name("name") == "name"
    assert model.append_to_banner("banner") == "banner"
    assert model.load_for_testing() is None


def test_setup_runs_once():
    class Counts(zoo.Line):
        def setup(self, fast_init=False):
            super().setup(fast_init)
            count.append(fast_init)

    count, model = [], Counts()
    run(model=model, steps=1)
    run(model=model, steps=1)
    assert count == [False]


def test_setup_draws_from_the_seed():
    first, second, third = zoo.Line(), zoo.Line(), zoo.Line()
    first.prepare(seed=1)
    torch.rand(5)
    second.prepare(seed=1)
    third.prepare(seed=2)
    assert same(params(first), params(second))
    assert not same(params(first), params(third))


@pytest.mark.parametrize("name", ["a", "resnet-18", "v1.2_final", "lr=0.1+x", "9"])
def test_a_save_name_may_have_what_file_names_have(name):
    assert zoo.Line(name).save_name == name


def test_a_plugin_may_change_the_save_name(tmp_path):
    class Renames(helios.Plugin):
        def configure_model(self, model):
            model.save_name = f"{model.save_name}-7"

    run(tmp_path, steps=1, plugins=[Renames("renames")])
    assert (tmp_path / "line-7" / "line-7_epoch_1_iter_1.pth").is_file()


@pytest.mark.parametrize("name", ["bf16", "bfloat16"])
def test_a_precision_may_be_a_name(name):
    model = zoo.Line()
    model.precision = name
    assert model.precision.dtype is torch.bfloat16


def test_a_precision_may_be_a_policy():
    model, policy = zoo.Line(), Policy("float16")
    model.precision = policy
    assert model.precision is policy


def test_the_loss_computes_in_the_precision():
    class Looks(zoo.Line):
        def setup(self, fast_init=False):
            super().setup(fast_init)
            self.precision = "bf16"

        def loss(self, batch):
            dtypes.append(self.net(batch[0]).dtype)
            return super().loss(batch)

    dtypes, model = [], Looks()
    data = Batches(zoo.regression(2), zoo.regression(1))
    run(model=model, data=data, steps=2, valid_frequency=2)
    assert dtypes == [torch.bfloat16] * 3
    assert model.net.weight.dtype is torch.float32


def test_after_a_fit_the_module_holds_the_state():
    model = zoo.Noisy()
    made = run(model=model, data=Batches(zoo.classes(3)), steps=3)
    assert same(dict(model.named_parameters()), dict(made.state.carry.params))
    assert same(dict(model.named_buffers()), dict(made.state.carry.buffers))


# Registry.


def test_a_registered_model_is_made_by_name():
    @MODEL_REGISTRY.register
    class Registered(zoo.Line):
        pass

    model = create_model("Registered", "named")
    assert type(model) is Registered
    assert model.save_name == "named"


def test_an_unknown_model_is_named():
    with pytest.raises(RegistryError, match="Unheard"):
        create_model("Unheard")


# Several objectives.


def by_hand(model, batches, steps):
    """Train the generator and the discriminator as plain PyTorch would."""
    model.prepare(helios.functional.rng.DEFAULT_SEED)
    model = copy.deepcopy(model)
    critic = torch.optim.Adam(model.discriminator.parameters(), lr=1e-2)
    forger = torch.optim.Adam(model.generator.parameters(), lr=2e-2)
    for number in range(steps):
        batch = batches[number % len(batches)]
        torch.manual_seed(helios.train_key(helios.functional.rng.DEFAULT_SEED, number + 1))
        for loss, optimizer in ((model.critic_loss, critic), (model.forger_loss, forger)):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
    return model


def test_two_objectives_train_as_a_hand_written_loop():
    model = zoo.Adversarial("gan")
    batches = zoo.batches_for(model, 3)
    expected = by_hand(zoo.Adversarial("gan"), batches, 7)
    run(model=model, data=Batches(batches), steps=7)
    assert same(params(model), params(expected))


def test_two_objectives_are_resumed_exactly(tmp_path):
    whole, resumed = zoo.Adversarial("gan"), zoo.Adversarial("gan")
    data = Batches(zoo.batches_for(whole, 3))
    arguments = {"accumulation_steps": 2}
    run(tmp_path / "a", whole, data, steps=7, **arguments)
    run(tmp_path / "b", zoo.Adversarial("gan"), data, steps=4, **arguments)
    run(tmp_path / "b", resumed, data, steps=7, **arguments)
    assert same(params(resumed), params(whole))


def test_every_objective_has_its_metric():
    model = zoo.Adversarial("gan")
    batches = zoo.batches_for(model, 2)
    made = run(model=model, data=Batches(batches, batches), steps=2, valid_frequency=2)
    assert set(model.valid_metrics) == {"critic_loss", "forger_loss"}
    assert made.state.carry.metrics == {}


# A step of its own.


class Perceptron(helios.Model):
    """No optimizer, no gradient: the carry is two tensors and a count of mistakes."""

    def setup(self, fast_init=False):
        pass

    def init_carry(self):
        return {"w": torch.zeros(3), "b": torch.zeros(()), "mistakes": 0, "seen": (0, [1.5])}

    def step(self, state, batch):
        x, y = batch
        carry = dict(state.carry)
        wrong = torch.sign(x @ carry["w"] + carry["b"]) != torch.sign(y[:, 0])
        carry["w"] = carry["w"] + (x * y)[wrong].sum(0)
        carry["b"] = carry["b"] + y[wrong].sum()
        carry["mistakes"] += int(wrong.sum())
        carry["seen"] = (carry["seen"][0] + len(x), carry["seen"][1])
        return msgspec.structs.replace(state, carry=carry)

    def valid_step(self, batch, step):
        return {"updates": float(self.trainer.state.current_iteration)}


def test_a_step_of_its_own_is_fitted():
    made = run(model=Perceptron("perceptron"), steps=6)
    assert made.state.current_iteration == 6
    assert made.state.carry["seen"] == (24, [1.5])
    assert bool(made.state.carry["w"].any())


def test_a_step_of_its_own_is_resumed_exactly(tmp_path):
    whole = run(tmp_path / "a", Perceptron("perceptron"), steps=8)
    run(tmp_path / "b", Perceptron("perceptron"), steps=3)
    resumed = run(tmp_path / "b", Perceptron("perceptron"), steps=8)
    assert same(resumed.state.carry, whole.state.carry)
    assert type(resumed.state.carry["seen"]) is tuple


def test_a_step_of_its_own_is_validated():
    model = Perceptron("perceptron")
    data = Batches(zoo.regression(2), zoo.regression(1))
    run(model=model, data=data, steps=4, valid_frequency=2)
    assert model.valid_metrics == {"updates": 4.0}


def test_a_carry_of_another_shape_is_refused(tmp_path):
    class Wider(Perceptron):
        def init_carry(self):
            return {**super().init_carry(), "w": torch.zeros(4)}

    run(tmp_path, Perceptron("perceptron"), steps=3)
    made = trainer(tmp_path)
    made.train_exceptions.append(Exception)
    with pytest.raises(helios.errors.ResumeError, match="w"):
        made.fit(Wider("perceptron"), Batches(zoo.regression(5)))


class ByHand(zoo.Line):
    """The ordinary carry with a step of its own: sign descent."""

    def step(self, state, batch):
        x, y = batch
        names = list(state.carry.params)
        leaves = [p.detach().requires_grad_() for p in state.carry.params.values()]
        named = dict(zip(names, leaves, strict=True))
        output = torch.func.functional_call(self.net, {n[4:]: p for n, p in named.items()}, (x,))
        grads = torch.autograd.grad(F.mse_loss(output, y), leaves)
        new = {n: p.detach() - 0.1 * g.sign() for n, p, g in zip(names, leaves, grads, strict=True)}
        carry = msgspec.structs.replace(state.carry, params=new)
        return msgspec.structs.replace(state, carry=carry)


def test_a_step_of_its_own_with_the_ordinary_carry_is_resumed(tmp_path):
    whole = run(tmp_path / "a", ByHand(), steps=7)
    run(tmp_path / "b", ByHand(), steps=3)
    resumed = run(tmp_path / "b", ByHand(), steps=7)
    assert same(resumed.state.carry.params, whole.state.carry.params)
    assert not same(resumed.state.carry.params, run(model=ByHand(), steps=1).state.carry.params)


def test_a_step_of_its_own_with_the_ordinary_carry_is_what_is_saved_and_validated(tmp_path):
    model = ByHand()
    data = Batches(zoo.regression(5), zoo.regression(1))
    made = run(tmp_path, model, data, steps=4, valid_frequency=4)
    content = torch.load(next(tmp_path.rglob("*.pth")), weights_only=True)
    assert same(content["model"], dict(made.state.carry.params))
    x, y = data.loaders[1][0]
    net = nn.Linear(3, 1)
    net.load_state_dict({n[4:]: p for n, p in made.state.carry.params.items()})
    assert model.valid_metrics["loss"] == pytest.approx(float(F.mse_loss(net(x), y).detach()))


def test_what_a_hook_does_to_the_weights_before_the_first_step_is_trained_on():
    class Loads(zoo.Line):
        def on_training_start(self):
            with torch.no_grad():
                self.net.weight.fill_(7.0)

        def on_training_batch_start(self, state):
            seen.append(state.carry.params["net.weight"].clone())

    seen = []
    run(model=Loads(), steps=1)
    assert bool((seen[0] == 7).all())
