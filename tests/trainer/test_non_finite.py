"""What a run does about NaN and infinity: it stops, or leaves out and counts; and says so."""

from __future__ import annotations

import math

import pytest
import torch

import helios
from helios.errors import NonFiniteError
from helios.functional.nonfinite import Deferred
from helios.trainer import fit as fit_module
from helios.trainer.store.fs import OsFs
from helios.trainer.store.reading import committed
from tests import zoo
from tests.trainer.runs import Batches, names, run, same, trainer


class Poisoned(zoo.Noisy):
    """Has a loss of its own choice in some micro-batches."""

    def __init__(self, *at, value=math.nan):
        super().__init__()
        self.at, self.value = at, value

    def loss(self, batch):
        loss, metrics = super().loss(batch)
        if self.training and self.trainer.state.global_iteration in self.at:
            loss = loss * self.value
        return loss, metrics


def data():
    return Batches(zoo.classes(5), zoo.classes(2, seed=3))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_run_that_skips_goes_on_and_counts(tmp_path, capfd, value):
    arguments = {"steps": 9, "chkpt_frequency": 3, "non_finite": "skip"}
    made = run(tmp_path, Poisoned(2, 5, value=value), data(), **arguments)
    assert made.state.carry.skipped == 2
    assert made.state.current_iteration == 9
    assert all(p.isfinite().all() for p in made.state.carry.params.values())
    manifests = [e.manifest for e in committed(OsFs(), tmp_path / "noisy", "noisy")]
    assert [m.skipped for m in manifests] == [2, 2, 1]
    assert "update 2 was left out: its loss or a gradient is NaN or infinite (1 so far)" in (
        capfd.readouterr().out
    )


def test_the_rate_does_not_advance_with_an_update_that_is_left_out(tmp_path):
    class Scheduled(Poisoned):
        def setup(self, fast_init=False):
            super().setup()
            self.optimizer = helios.optim.SGD(lr=lambda count: 0.1 / (1 + count))

    made = run(None, Scheduled(1, 3, 4), data(), steps=7, non_finite="skip")
    assert made.state.carry.opt_state["loss"]["count"] == 4


def test_a_run_that_skips_is_resumed_exactly(tmp_path):
    arguments = {"chkpt_frequency": 4, "valid_frequency": 3, "non_finite": "skip"}
    whole = run(tmp_path / "a", Poisoned(2, 6, 7), data(), steps=11, **arguments)
    for steps in (2, 6, 7, 11):
        legs = run(tmp_path / "b", Poisoned(2, 6, 7), data(), steps=steps, **arguments)
    assert legs.state.carry.skipped == 3
    assert same(legs.state.carry, whole.state.carry)


def test_only_the_first_few_are_told_on_the_terminal(tmp_path, capfd):
    arguments = {"enable_file_logging": True, "log_path": tmp_path, "non_finite": "skip"}
    run(None, Poisoned(*range(1, 21)), data(), steps=20, **arguments)
    assert capfd.readouterr().out.count("was left out") == 5  # 1, 2, 4, 8, 16
    (log,) = tmp_path.glob("*.log")
    assert log.read_text().count("was left out") == 20


def test_other_policies_are_refused():
    with pytest.raises(ValueError, match=r"non_finite: received 'ignore'; .*'raise', 'skip'"):
        trainer(non_finite="ignore")
    with pytest.raises(TypeError, match="non_finite: received None"):
        trainer(non_finite=None)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("hook", [False, True])
def test_a_score_that_is_not_finite_is_never_the_best(tmp_path, score, mode, hook):
    scores = iter([1.0, score, 2.0, score])

    class Scored(zoo.Line):
        def setup(self, fast_init=False):
            super().setup()
            self.monitor = helios.Monitor("score", mode=mode)

        def valid_step(self, batch, step):
            return {"score": next(scores)}

        def have_metrics_improved(self):
            return True if hook else super().have_metrics_improved()

    batches = Batches(zoo.regression(4), zoo.regression(1))
    arguments = {"steps": 4, "valid_frequency": 1, "chkpt_frequency": 1}
    made = run(tmp_path, Scored(), batches, retention=helios.Retention(best=1), **arguments)
    assert made.state.carry.best == (2.0 if hook or mode == "max" else 1.0)
    best = 1 if mode == "min" else 3
    assert names(tmp_path) == [f"line_epoch_1_iter_{n}.pth" for n in (best, 4)]


def test_a_checkpoint_that_is_not_finite_rotates_out_no_healthy_one(tmp_path):
    class Explodes(zoo.Line):
        def setup(self, fast_init=False):
            super().setup()
            self.optimizer = helios.optim.SGD(lr=lambda count: 0.1 if count < 4 else 3e38)

        def on_training_batch_end(self, state, should_log=False):
            if state.current_iteration == 5:
                with torch.no_grad():
                    self.net.weight.fill_(math.inf)

    arguments = {"steps": 8, "chkpt_frequency": 1, "retention": helios.Retention(last=2)}
    made = trainer(tmp_path, **arguments)
    made.train_exceptions.append(NonFiniteError)
    with pytest.raises(NonFiniteError):
        made.fit(Explodes(), Batches(zoo.regression(9)))
    found = committed(OsFs(), tmp_path / "line", "line")
    assert [(e.manifest.counters["current_iteration"], e.manifest.finite) for e in found] == [
        (5, False),
        (4, True),
        (3, True),
    ]


def test_a_replay_skips_what_the_run_skipped(tmp_path):
    arguments = {"steps": 8, "chkpt_frequency": 2, "non_finite": "skip"}
    run(tmp_path, Poisoned(3, 6), data(), **arguments)
    first = tmp_path / "noisy" / "noisy_epoch_1_iter_2.pth"
    states = helios.replay(Poisoned(3, 6), data(), first, use_cpu=True)
    assert helios.verify(states, helios.recorded_digests(tmp_path / "noisy")) is None


def test_a_change_of_the_policy_at_a_resume_is_said(tmp_path):
    run(tmp_path, Poisoned(), data(), steps=2)
    with pytest.warns(UserWarning, match="non_finite was raise and is skip"):
        run(tmp_path, Poisoned(), data(), steps=3, non_finite="skip")


class TestDeferred:
    """As on a GPU: what the check found is looked at before anything is shown or saved."""

    @pytest.fixture(autouse=True)
    def _deferred(self, monkeypatch):
        make_step = fit_module.make_step

        def with_deferred(*args, **kwargs):
            self.deferred = Deferred()
            return make_step(*args, **{**kwargs, "deferred": self.deferred})

        class Asking(fit_module.Loop):
            def __init__(loop, *args, **kwargs):  # noqa: N805 - self is the test
                super().__init__(*args[:-1], lambda: self.deferred.check(), **kwargs)

        monkeypatch.setattr(fit_module, "make_step", with_deferred)
        monkeypatch.setattr(fit_module, "Loop", Asking)

    @pytest.mark.parametrize("at", range(1, 11))
    @pytest.mark.parametrize("unit", ["iteration", "epoch"])
    def test_nothing_of_a_bad_update_is_saved_and_the_run_goes_on_exactly(self, tmp_path, at, unit):
        arguments = {"steps": 10 if unit == "iteration" else 2, "unit": unit, "print_frequency": 2}
        arguments |= {"valid_frequency": 2, "chkpt_frequency": 2}
        whole = run(tmp_path / "a", Poisoned(), data(), **arguments)
        made = trainer(tmp_path / "b", **arguments)
        made.train_exceptions.append(NonFiniteError)
        with pytest.raises(NonFiniteError, match=rf"update {at} .*found after the update"):
            made.fit(Poisoned(at), data())
        for entry in committed(OsFs(), tmp_path / "b" / "noisy", "noisy"):
            assert entry.manifest.finite
            assert entry.manifest.counters["current_iteration"] < at
        resumed = run(tmp_path / "b", Poisoned(), data(), **arguments)
        assert same(resumed.state.carry, whole.state.carry)
