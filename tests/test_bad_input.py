"""What a user would mistype: each error says what was received, what is expected, what to do."""

from __future__ import annotations

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import helios
from helios.data import from_datasets
from helios.errors import DataError, HeliosError, LossError, ModelError, NonFiniteError
from helios.trainer.store import read_checkpoint
from tests import zoo
from tests.trainer.runs import Batches, names, run, same, trainer


def error_of(model, data=None, root=None, kind=HeliosError, **arguments) -> str:
    """Fit, expect an error of a kind, and return its message."""
    made = trainer(root, **arguments)
    made.train_exceptions.append(Exception)
    with pytest.raises(kind) as caught:
        made.fit(model, data or Batches(zoo.regression(3)))
    return str(caught.value)


class Changed(zoo.Line):
    """A line whose loss goes through a function."""

    def __init__(self, change):
        super().__init__("line")
        self.change = change

    def loss(self, batch):
        return self.change(super().loss(batch))


# Models.


def test_a_model_without_parameters():
    class Empty(helios.Model):
        def setup(self, fast_init=False):
            self.optimizer = helios.optim.SGD(lr=0.1)

        def loss(self, batch):
            return batch[0].sum()

    message = error_of(Empty("empty"), kind=ModelError)
    assert "Empty has no parameters" in message
    assert "self.net = nn.Linear" in message


def test_networks_in_a_plain_list():
    class Listed(helios.Model):
        def setup(self, fast_init=False):
            self.nets = [nn.Linear(3, 1)]
            self.optimizer = helios.optim.SGD(lr=0.1)

        def loss(self, batch):
            return self.nets[0](batch[0]).sum()

    assert "nn.ModuleList" in error_of(Listed("listed"), kind=ModelError)


def test_a_lazy_network():
    class Lazy(zoo.Line):
        def setup(self, fast_init=False):
            super().setup(fast_init)
            self.net = nn.LazyLinear(1)

    assert "is lazy" in error_of(Lazy(), kind=ModelError)


class Ruled(zoo.Line):
    """A line with some optimizer."""

    def __init__(self, rule):
        super().__init__("line")
        self.rule = rule

    def setup(self, fast_init=False):
        super().setup(fast_init)
        self.optimizer = self.rule(self)


def test_a_model_without_an_optimizer():
    message = error_of(Ruled(lambda model: None), kind=ModelError)
    assert "Ruled has no optimizer" in message
    assert "helios.optim.AdamW(lr=1e-3)" in message


def test_an_optimizer_of_torch():
    message = error_of(Ruled(lambda m: torch.optim.SGD(m.parameters(), lr=0.1)), kind=ModelError)
    assert "optimizer: received a SGD" in message
    assert "helios.optim.TorchOptimizer(torch.optim.SGD, lr=0.1)" in message


def test_a_class_of_optimizers():
    assert "optimizer: received" in error_of(Ruled(lambda m: helios.optim.SGD), kind=ModelError)


def test_a_model_without_a_loss():
    class Lossless(zoo.Line):
        loss = helios.Model.loss

    message = error_of(Lossless(), kind=ModelError)
    assert "Lossless has no loss" in message
    assert "override loss(batch)" in message


def test_a_model_whose_parameters_are_all_frozen():
    class Frozen(zoo.Line):
        def setup(self, fast_init=False):
            super().setup(fast_init)
            self.requires_grad_(False)

    assert "trains no parameter" in error_of(Frozen(), kind=ModelError)


def test_two_objectives_of_one_name():
    class Twice(zoo.Line):
        def objectives(self):
            return [helios.Objective("a", self.loss, helios.optim.SGD(lr=0.1))] * 2

    assert "two objectives have one name" in error_of(Twice(), kind=ModelError)


def test_a_model_without_setup_cannot_be_made():
    class Half(helios.Model):
        pass

    with pytest.raises(TypeError, match="setup"):
        Half("half")


def test_an_attribute_before_the_constructor():
    class Hasty(zoo.Line):
        def __init__(self):
            self.net = nn.Linear(3, 1)

    with pytest.raises(AttributeError, match=r"before Module\.__init__\(\) call"):
        Hasty()


def test_a_monitor_that_is_a_string():
    class Watched(zoo.Line):
        def setup(self, fast_init=False):
            super().setup(fast_init)
            self.monitor = "accuracy"

    data = Batches(zoo.regression(2), zoo.regression(1))
    message = error_of(Watched(), data, valid_frequency=1, kind=ModelError)
    assert "monitor: received 'accuracy'" in message
    assert "helios.Monitor(" in message


def test_a_monitor_of_another_mode():
    with pytest.raises(ValueError, match="mode: received 'maximum'; expected 'min' or 'max'"):
        helios.Monitor("accuracy", mode="maximum")


@pytest.mark.parametrize("precision", ["fp8", "half", ""])
def test_a_precision_that_is_unknown(precision):
    with pytest.raises(ValueError, match="expected one of 'float32', 'bfloat16', 'float16'"):
        zoo.Line().precision = precision


@pytest.mark.parametrize("precision", [torch.bfloat16, 16, None])
def test_a_precision_of_another_type(precision):
    with pytest.raises(TypeError, match="precision: received"):
        zoo.Line().precision = precision


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", 3, None])
def test_a_save_name_that_is_no_file_name(name):
    with pytest.raises(ValueError, match="save_name: received"):
        zoo.Line(name)
    model = zoo.Line()
    with pytest.raises(ValueError, match="save_name: received"):
        model.save_name = name
    assert model.save_name == "line"


# Losses.


@pytest.mark.parametrize(
    ("change", "received"),
    [
        (lambda loss: None, "received NoneType"),
        (lambda loss: 0.5, "received float"),
        (lambda loss: loss.item(), "received float"),
        (lambda loss: [loss], "received list"),
        (lambda loss: {"loss": loss}, "received dict"),
        (lambda loss: (loss, 0.5), "received (Tensor, float)"),
        (lambda loss: (loss, {}, 1), "received (Tensor, dict, int)"),
        (lambda loss: helios.Loss(1.0), "received Loss"),
    ],
)
def test_a_loss_of_another_type(change, received):
    message = error_of(Changed(change), kind=LossError)
    assert message.startswith(f"loss: {received}; expected a scalar tensor")


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 2)])
def test_a_loss_that_is_no_scalar(shape):
    message = error_of(Changed(lambda loss: loss * torch.ones(shape)), kind=LossError)
    assert f"received a tensor of shape {list(shape)}; expected a scalar" in message
    assert "mean()" in message


@pytest.mark.parametrize("change", [lambda loss: loss.detach(), lambda loss: torch.tensor(1.0)])
def test_a_loss_that_does_not_require_grad(change):
    message = error_of(Changed(change), kind=LossError)
    assert "does not require grad" in message
    assert ".detach()" in message


def test_a_metric_of_another_type():
    message = error_of(Changed(lambda loss: (loss, {"acc": "high"})), kind=TypeError)
    assert message.startswith("metric 'acc': received str; expected")


def test_a_validation_step_of_another_type():
    class Wrong(zoo.Line):
        def valid_step(self, batch, step):
            return 0.5

    data = Batches(zoo.regression(2), zoo.regression(1))
    message = error_of(Wrong(), data, valid_frequency=1, kind=LossError)
    assert message.startswith("valid_step: received float")


# Numbers that are not finite.


class Poisoned(zoo.Line):
    """Poisons its loss or its gradient in one micro-batch."""

    def __init__(self, poison=None, at=4):
        super().__init__("line")
        self.poison, self.at = poison, at

    def loss(self, batch):
        loss = super().loss(batch)
        if self.training and self.trainer.state.global_iteration == self.at:
            if self.poison == "gradient":
                return loss + (self.net.weight * 0).sqrt().sum()
            if self.poison:
                return loss * float(self.poison)
        return loss


@pytest.mark.parametrize("poison", ["nan", "inf", "-inf", "gradient"])
def test_what_is_not_finite_updates_nothing_and_names_the_update(tmp_path, poison):
    arguments = {"steps": 6, "chkpt_frequency": 3}
    model = Poisoned(poison)
    message = error_of(model, root=tmp_path, kind=NonFiniteError, **arguments)
    assert message.startswith("update 4 (global iteration 4, epoch 2), loss = ")
    assert "is NaN or infinite. No parameter was updated with it" in message
    assert "helios.replay()" in message
    content = read_checkpoint(next(tmp_path.rglob("*.pth")))
    assert names(tmp_path) == ["line_epoch_1_iter_3.pth"]
    assert same(dict(model.state_dict()), content["model"])


def test_a_run_goes_on_from_before_what_was_not_finite(tmp_path):
    arguments = {"steps": 6, "chkpt_frequency": 3}
    error_of(Poisoned("nan"), root=tmp_path / "b", kind=NonFiniteError, **arguments)
    data = Batches(zoo.regression(3))
    whole = run(tmp_path / "a", Poisoned(), data, **arguments)
    resumed = run(tmp_path / "b", Poisoned(), data, **arguments)
    assert same(whole.state.carry.params, resumed.state.carry.params)


def test_what_is_not_finite_in_a_window_is_found_at_its_update():
    message = error_of(Poisoned("nan", at=4), kind=NonFiniteError, accumulation_steps=3)
    assert message.startswith("update 2 (global iteration 6,")


# Data.


@pytest.mark.parametrize("unit", ["iteration", "epoch"])
@pytest.mark.parametrize("size", [0, 3])
def test_a_dataset_without_a_whole_batch(unit, size):
    x = torch.zeros(size, 3)
    data = from_datasets(train=(x, x[:, :1]), batch_size=4, drop_last=True, shuffle=False)
    message = error_of(zoo.Line(), data, unit=unit, kind=DataError)
    assert f"a dataset of {size} samples with batch_size=4, drop_last=True" in message


def test_an_empty_list_of_batches():
    assert "0 batches" in error_of(zoo.Line(), Batches([]), kind=DataError)


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, sizes):
        self.sizes = iter(sizes)

    def __iter__(self):
        for _ in range(next(self.sizes)):
            yield torch.zeros(3), torch.zeros(1)


@pytest.mark.parametrize(("sizes", "epoch"), [([0], 1), ([3, 0], 2)])
def test_a_stream_that_is_empty(sizes, epoch):
    data = from_datasets(train=Stream(sizes), batch_size=2)
    message = error_of(zoo.Line(), data, steps=9, kind=DataError)
    assert "0 batches" in message or f"epoch {epoch} has no micro-batches" in message


@pytest.mark.parametrize("unit", ["iteration", "epoch"])
def test_a_stream_needs_no_size(unit):
    data = from_datasets(train=Stream([4] * 9), batch_size=2)
    made = run(data=data, unit=unit, steps=3)
    assert made.state.current_iteration == (3 if unit == "iteration" else 6)


def test_a_data_module_without_a_training_set():
    message = error_of(zoo.Line(), Batches(), kind=DataError)
    assert "Batches has no training set" in message
    assert "self._train_dataset" in message


def test_a_bare_dataset_where_a_pair_is_expected():
    class Bare(helios.DataModule):
        def setup(self):
            self._train_dataset = [1, 2]

    message = error_of(zoo.Line(), Bare(), kind=TypeError)
    assert "self._create_dataset(dataset, params)" in message


def test_a_loader_that_is_not_iterable():
    assert "loader: received 7 (int)" in error_of(zoo.Line(), Batches(7), kind=TypeError)


def test_a_loader_that_is_shorter_than_it_says():
    class Short:
        def __len__(self):
            return 5

        def __iter__(self):
            return iter(zoo.regression(3))

    message = error_of(zoo.Line(), Batches(Short()), kind=DataError)
    assert "has a length of 5 batches but gave 3" in message


def test_an_empty_loader_of_validation():
    data = Batches(zoo.regression(1), [])
    assert "0 batches" in error_of(zoo.Line(), data, valid_frequency=1, kind=DataError)


# Calls.


def test_arguments_in_the_wrong_order():
    with pytest.raises(TypeError, match=r"model: received a Batches; .*helios\.model\.Model"):
        trainer().fit(Batches(zoo.regression(1)), zoo.Line())


def test_a_class_in_place_of_a_model():
    with pytest.raises(
        TypeError, match=r"model: received the class Line; .* such as Line\(\.\.\.\)"
    ):
        trainer().fit(zoo.Line, Batches(zoo.regression(1)))


def test_a_loader_in_place_of_a_data_module():
    with pytest.raises(TypeError, match=r"datamodule: received a list; .*helios\.data"):
        trainer().test(zoo.Line(), zoo.regression(1))


def test_a_plugin_that_overrides_without_a_claim():
    class Quiet(helios.Plugin):
        def process_training_batch(self, batch, state):
            return batch

    with pytest.raises(ValueError, match=r"UniquePluginOverrides\(training_batch=True\)"):
        trainer(plugins=[Quiet("quiet")])


class Stepped(zoo.Line):
    """A step of its own that returns something."""

    def __init__(self, change):
        super().__init__("line")
        self.change = change

    def init_carry(self):
        return {"w": torch.zeros(3)}

    def step(self, state, batch):
        return self.change(state)


@pytest.mark.parametrize("change", [lambda state: None, lambda state: state.carry])
def test_a_step_that_returns_no_state(change):
    assert "expected the next TrainingState" in error_of(Stepped(change), kind=ModelError)


def test_a_step_that_changes_a_counter():
    def change(state):
        return msgspec.structs.replace(state, current_iteration=7)

    message = error_of(Stepped(change), kind=ModelError)
    assert "step() changed ['current_iteration']" in message


def test_a_batch_that_does_not_fit_shows_where(capfd):
    data = Batches([(torch.zeros(4, 5), torch.zeros(4, 1))])
    assert not trainer().fit(zoo.Line(), data)
    assert "mat1 and mat2 shapes cannot be multiplied" in capfd.readouterr().err


def test_a_loss_in_inference_mode_says_so():
    class Inference(zoo.Line):
        def loss(self, batch):
            with torch.no_grad():
                return F.mse_loss(self.net(batch[0]), batch[1])

    assert "torch.no_grad()" in error_of(Inference(), kind=LossError)
