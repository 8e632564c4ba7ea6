"""What a run returns, raises, writes and puts back when something fails."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import helios
from helios.core.logging import get_root_logger, get_tensorboard_writer
from tests import zoo
from tests.trainer.runs import Batches, FailsAt, PlannedError, names, params, run, same, trainer

PLACES = ["loss", "batch_start", "epoch_start", "epoch_end", "end", "valid_step", "improved"]


def data():
    return Batches(zoo.regression(5), zoo.regression(2))


def test_success_is_true():
    made = trainer(steps=2)
    batches = Batches(zoo.regression(2), None, zoo.regression(1))
    model = zoo.Line()
    assert made.fit(model, batches) is True
    assert made.test(model, batches) is True


@pytest.mark.parametrize("place", PLACES)
def test_an_exception_makes_fit_false_and_shows_its_traceback_once(place, capfd):
    assert trainer(steps=6, valid_frequency=2).fit(FailsAt(place), data()) is False
    error = capfd.readouterr().err
    assert error.count("tests.trainer.runs.PlannedError: boom") == 1
    assert "Traceback (most recent call last)" in error


@pytest.mark.parametrize("place", PLACES)
def test_an_expected_exception_is_re_raised_after_the_clean_up(place):
    made, batches = trainer(steps=6, valid_frequency=2), data()
    made.train_exceptions.append(PlannedError)
    with pytest.raises(PlannedError, match="boom"):
        made.fit(FailsAt(place), batches)
    assert batches.torn_down == 1


def test_an_expected_exception_s_subclass_is_re_raised():
    made = trainer()
    made.train_exceptions.append(Exception)
    with pytest.raises(PlannedError):
        made.fit(FailsAt("loss"), data())


def test_an_expected_exception_of_fit_is_not_one_of_test():
    made = trainer()
    made.train_exceptions.append(PlannedError)
    batches = Batches(test=zoo.regression(1))
    assert made.test(FailsAt("valid_step", at=0), batches) is False


class FailsInTest(zoo.Line):
    def test_step(self, batch, step):
        raise PlannedError("untested")


def test_test_is_false_after_an_exception(capfd):
    assert trainer().test(FailsInTest(), Batches(test=zoo.regression(1))) is False
    assert "PlannedError: untested" in capfd.readouterr().err


def test_an_expected_exception_of_test_is_re_raised():
    made = trainer()
    made.test_exceptions.append(PlannedError)
    with pytest.raises(PlannedError):
        made.test(FailsInTest(), Batches(test=zoo.regression(1)))


def test_a_plugin_adds_exceptions():
    class Adds(helios.Plugin):
        def configure_trainer(self, trainer):
            self._append_train_exceptions(PlannedError, trainer)

    with pytest.raises(PlannedError):
        trainer(plugins=[Adds("adds")]).fit(FailsAt("loss"), data())


@pytest.mark.parametrize("kind", ["fit", "test"])
def test_a_failure_is_in_the_log_file(tmp_path, kind):
    made = trainer(enable_file_logging=True, log_path=tmp_path)
    if kind == "fit":
        assert not made.fit(FailsAt("loss"), data())
    else:
        assert not made.test(FailsInTest(), Batches(test=zoo.regression(1)))
    (log,) = tmp_path.glob("*.log")
    text = log.read_text()
    assert text.count("Traceback (most recent call last)") == 1
    assert "[ERROR] the run failed" in text


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("place", ["loss", "batch_start", "valid_step"])
def test_interrupts_pass_through_after_the_clean_up(tmp_path, kind, place):
    batches = data()
    made = trainer(valid_frequency=2, enable_file_logging=True, log_path=tmp_path)
    handlers = list(get_root_logger().handlers)
    with pytest.raises(kind):
        made.fit(FailsAt(place, error=kind()), batches)
    assert batches.torn_down == 1
    assert get_root_logger().handlers == handlers


@pytest.mark.parametrize("place", [None, *PLACES])
def test_global_generators_are_put_back(place):
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)
    expected = float(torch.rand(())), random.random(), float(np.random.rand())
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)
    trainer(steps=4, valid_frequency=2, random_seed=9).fit(FailsAt(place), data())
    assert (float(torch.rand(())), random.random(), float(np.random.rand())) == expected


@pytest.mark.parametrize("place", [None, "loss"])
def test_determinism_switches_are_put_back(place):
    seen = []

    class Looks(FailsAt):
        def on_training_start(self):
            seen.append(torch.are_deterministic_algorithms_enabled())

    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    trainer(enable_deterministic=True).fit(Looks(place), data())
    after = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    assert seen == [True]
    assert after == before


@pytest.mark.parametrize("place", [None, "loss", "valid_step"])
def test_gradient_mode_is_put_back(place):
    trainer(valid_frequency=1).fit(FailsAt(place), data())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("place", [None, "loss", "epoch_end"])
def test_logs_are_closed(tmp_path, place):
    trainer(
        enable_tensorboard=True,
        run_path=tmp_path / "runs",
        enable_file_logging=True,
        log_path=tmp_path / "logs",
    ).fit(FailsAt(place), data())
    assert get_tensorboard_writer() is None
    assert get_root_logger().handlers == []


def test_testing_leaves_the_model_in_its_mode():
    for mode in (True, False):
        model = FailsInTest().train(mode)
        trainer().test(model, Batches(test=zoo.regression(1)))
        assert model.training is mode


def test_an_exception_in_validation_keeps_each_module_s_own_mode():
    class Partly(FailsAt):
        def setup(self, fast_init=False):
            super().setup(fast_init)
            self.frozen = torch.nn.BatchNorm1d(3)

        def on_training_start(self):
            self.frozen.eval()

    model = Partly("valid_step", 1)
    trainer(valid_frequency=1).fit(model, data())
    assert (model.training, model.net.training, model.frozen.training) == (True, True, False)


@pytest.mark.parametrize("place", [place for place in PLACES if place != "loss"])
def test_nothing_is_lost_by_an_exception_between_steps(tmp_path, place):
    whole, failing, resumed = zoo.Line(), FailsAt(place), FailsAt(None)
    arguments = {"steps": 9, "valid_frequency": 2}
    run(tmp_path / "a", whole, data(), **arguments)
    before = trainer(tmp_path / "b", **arguments)
    assert not before.fit(failing, data())
    (name,) = names(tmp_path / "b")
    assert int(name.rpartition("iter_")[2].removesuffix(".pth").removesuffix("_due")) >= 2
    after = run(tmp_path / "b", resumed, data(), **arguments)
    assert same(params(resumed), params(whole))
    assert after.state.validation_cycles == 4


def test_an_exception_inside_of_a_step_saves_no_half_state(tmp_path):
    arguments = {"steps": 9, "chkpt_frequency": 2}
    whole, resumed = zoo.Line(), zoo.Line()
    run(tmp_path / "a", whole, data(), **arguments)
    assert not trainer(tmp_path / "b", **arguments).fit(FailsAt("loss", at=4), data())
    assert names(tmp_path / "b") == ["line_epoch_1_iter_2.pth"]
    run(tmp_path / "b", resumed, data(), **arguments)
    assert same(params(resumed), params(whole))


def test_an_interrupt_between_steps_saves_the_state(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path).fit(FailsAt("batch_start", at=4, error=KeyboardInterrupt()), data())
    assert names(tmp_path) == ["line_epoch_1_iter_3.pth"]


def test_an_exception_inside_of_a_window_keeps_the_window(tmp_path):
    arguments = {"steps": 5, "accumulation_steps": 3}
    whole, resumed = zoo.Line(), zoo.Line()
    run(tmp_path / "a", whole, data(), **arguments)
    assert not trainer(tmp_path / "b", **arguments).fit(FailsAt("batch_start", at=5), data())
    made = run(tmp_path / "b", resumed, data(), **arguments)
    assert same(params(resumed), params(whole))
    assert made.state.global_iteration == 15


def test_an_exception_while_a_batch_is_fetched_loses_nothing(tmp_path):
    class Breaks:
        broken = True

        def __len__(self):
            return 5

        def __iter__(self):
            for index, batch in enumerate(zoo.regression(5)):
                if index == 3 and self.broken:
                    raise PlannedError("no disk")
                yield batch

    batches, whole, resumed = Breaks(), zoo.Line(), zoo.Line()
    run(tmp_path / "a", whole, Batches(zoo.regression(5)), steps=7)
    assert not trainer(tmp_path / "b", steps=7).fit(zoo.Line(), Batches(batches))
    assert names(tmp_path / "b") == ["line_epoch_1_iter_3.pth"]
    batches.broken = False
    run(tmp_path / "b", resumed, Batches(batches), steps=7)
    assert same(params(resumed), params(whole))


def test_the_first_error_is_shown_when_saving_fails_as_well(tmp_path, capfd):
    class Bad(helios.Plugin):
        def state_dict(self):
            return {"x": object()}

    made = trainer(tmp_path, plugins=[Bad("bad")])
    assert not made.fit(FailsAt("batch_start"), data())
    assert "PlannedError: boom" in capfd.readouterr().err


@pytest.mark.parametrize("place", ["prepare_data", "setup"])
def test_an_exception_of_the_data_module_is_followed_by_its_teardown(place, capfd):
    class Data(Batches):
        pass

    def fail(self):
        raise PlannedError(place)

    setattr(Data, place, fail)
    batches = Data(zoo.regression(1))
    assert not trainer().fit(zoo.Line(), batches)
    assert batches.torn_down == 1
    assert f"PlannedError: {place}" in capfd.readouterr().err


def test_prepare_data_knows_the_trainer():
    class Data(Batches):
        def prepare_data(self):
            known.append((self.trainer, self.seed))

    known = []
    made = trainer(steps=1, random_seed=4)
    assert made.fit(zoo.Line(), Data(zoo.regression(1)))
    assert known == [(made, 4)]


def test_a_fit_after_a_failed_one_succeeds():
    made, model = trainer(steps=5), FailsAt("loss")
    assert not made.fit(model, data())
    model.armed = False
    assert made.fit(model, data())
    assert made.state.current_iteration == 5


def test_a_state_that_cannot_be_saved_after_a_failure_is_told_beside_it(tmp_path, capfd):
    model = FailsAt("batch_start", at=3)
    model.append_metadata_to_chkpt_name = lambda name: 1 / 0
    assert not trainer(tmp_path).fit(model, Batches(zoo.regression(5)))
    shown = capfd.readouterr().err
    assert "PlannedError: boom" in shown
    assert "the state before it could not be saved: division by zero" in shown
