import pytest

import helios
from helios.plugins import EarlyStopping
from tests import zoo
from tests.trainer.runs import Batches, run, trainer


class Scored(zoo.Line):
    """Has given validation scores."""

    def __init__(self, scores, fails_at=None):
        super().__init__()
        self.scores, self.fails_at = scores, fails_at

    def valid_step(self, batch, step):
        return {"score": self.scores[self.trainer.state.validation_cycles]}

    def have_metrics_improved(self):
        if self.trainer.state.validation_cycles == self.fails_at:
            raise RuntimeError("planned")
        return True


def data():
    return Batches(zoo.regression(3), zoo.regression(1))


SCORES = [3.0, 2.0, 2.5, 2.1, 1.9, 1.95, 1.95, 1.0]


def fit(root, scores=SCORES, steps=8, fails_at=None, **arguments):
    stopping = EarlyStopping("score", **arguments)
    made = trainer(root, steps=steps, valid_frequency=1, chkpt_frequency=1, plugins=[stopping])
    return made.fit(Scored(scores, fails_at), data()), made, stopping


def test_a_run_stops_for_want_of_patience(tmp_path):
    _, made, stopping = fit(tmp_path, patience=2)
    assert (made.state.current_iteration, stopping.reason) == (4, "no improvement")


@pytest.mark.parametrize(
    ("arguments", "stops_at"),
    [
        ({"patience": 3}, 8),
        ({"patience": 3, "min_delta": 0.5}, 5),
        ({"threshold": 2.0}, 2),
        ({"divergence": 3.0}, 1),
        ({"mode": "max", "patience": 2}, 3),
        ({"mode": "max", "threshold": 2.9}, 1),
        ({"mode": "max", "divergence": 2.0}, 2),
    ],
)
def test_every_reason_stops_where_it_is_reached(tmp_path, arguments, stops_at):
    assert fit(tmp_path, **arguments)[1].state.current_iteration == stops_at


def test_a_score_that_is_not_finite_stops_a_run(tmp_path):
    assert fit(tmp_path, [1.0, float("nan"), 0.5])[1].state.current_iteration == 2


def test_a_stopped_run_trains_nothing_more(tmp_path):
    first = fit(tmp_path, patience=2)[1].state
    assert fit(tmp_path, patience=2)[1].state == first


def test_with_more_patience_a_stopped_run_goes_on(tmp_path):
    fit(tmp_path, patience=2)
    assert fit(tmp_path, patience=3)[1].state.current_iteration == 8


@pytest.mark.parametrize("left_at", [1, 2, 3])
def test_a_resumed_run_stops_where_it_would_have(tmp_path, left_at):
    expected = helios.digest(fit(tmp_path / "whole", patience=2)[1].state)
    fit(tmp_path / "cut", patience=2, steps=left_at)
    assert helios.digest(fit(tmp_path / "cut", patience=2)[1].state) == expected


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_a_validation_that_is_done_again_is_judged_once(tmp_path, fails_at):
    expected = helios.digest(fit(tmp_path / "whole", patience=2)[1].state)
    assert not fit(tmp_path / "cut", patience=2, fails_at=fails_at)[0]
    assert helios.digest(fit(tmp_path / "cut", patience=2)[1].state) == expected


def test_it_is_not_asked_after_micro_batches():
    assert not helios.plugins.PluginSet({"early_stopping": EarlyStopping()}).should_training_stop


def test_a_metric_that_was_not_computed_is_an_error(capsys):
    made = trainer(valid_frequency=1, plugins=[EarlyStopping("accuracy")])
    assert not made.fit(zoo.Line(), data())
    assert "expected one of ['loss']" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"mode": "best"}, {"patience": 0}, {"min_delta": -1.0}])
def test_arguments_out_of_range_are_errors(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: received"):
        EarlyStopping(**wrong)


def test_it_stops_by_epochs_too():
    made = run(None, Scored(SCORES), data(), unit="epoch", steps=8, valid_frequency=1,
               plugins=[EarlyStopping("score", patience=2)])  # fmt: skip
    assert made.state.global_epoch == 4
