"""The order of events and the counters that hooks see: 'Order of events' of the semantics."""

from __future__ import annotations

import pytest

import helios
from tests import zoo
from tests.trainer.runs import Batches, PlannedError, Stopper, names, run, trainer

HOOKS = [
    "on_training_start",
    "on_training_epoch_start",
    "on_training_epoch_end",
    "on_training_end",
    "on_validation_start",
    "on_validation_end",
]


def counters(state) -> str:
    """Return global, current and running iteration, epoch and dataset_iter."""
    return (
        f"g{state.global_iteration} u{state.current_iteration} r{state.running_iter} "
        f"e{state.global_epoch} d{state.dataset_iter}"
    )


class Recorder(zoo.Line):
    """Writes down every hook, and the counters where they are given."""

    def __init__(self, log, improved=True):
        super().__init__("line")
        self.log, self.improved = log, improved

    def loss(self, batch):
        if self.training:
            self.log.append(f"loss {counters(self.trainer.state)}")
        return super().loss(batch)

    def on_training_batch_start(self, state):
        self.log.append(f"batch_start {counters(state)}")

    def on_training_batch_end(self, state, should_log=False):
        assert state.average_iter_time > 0
        self.log.append(f"batch_end {counters(state)}{' log' if should_log else ''}")

    def valid_step(self, batch, step):
        assert not self.training
        self.log.append(f"valid_step {step}")
        return super().valid_step(batch, step)

    def have_metrics_improved(self):
        state = self.trainer.state
        self.log.append(f"improved? c{state.validation_cycles} r{state.running_iter}")
        return self.improved

    def append_metadata_to_chkpt_name(self, chkpt_name):
        self.log.append(f"save {chkpt_name.removeprefix('line_')}")
        return ""


class Watcher(helios.Plugin):
    """A plugin that writes down its hooks."""

    def __init__(self, log):
        super().__init__("watcher", helios.plugins.UniquePluginOverrides(training_batch=True))
        self.log = log

    def process_training_batch(self, batch, state):
        self.log.append(f"process {counters(state)}")
        return batch


def _noted(owner, hook):
    def method(self, *args):
        self.log.append(" ".join([owner, hook.removeprefix("on_"), *map(str, args)]))

    return method


for _hook in HOOKS:
    setattr(Recorder, _hook, _noted("model", _hook))
    setattr(Watcher, _hook, _noted("plugin", _hook))


def record(root, batches=3, improved=True, plugins=None, model=None, **arguments):
    log = []
    chosen = model(log) if model else Recorder(log, improved)
    data = Batches(zoo.regression(batches), zoo.regression(1))
    made = run(root, chosen, data, plugins=plugins or (), **arguments)
    return log, made


def brief(log):
    """Leave out what is inside of a micro-batch."""
    inside = ("process", "loss", "batch_start", "valid_step", "model validation")
    return [line for line in log if not line.startswith(inside)]


def test_iteration_unit_follows_the_written_order(tmp_path):
    log = []
    plugins = [Watcher(log)]
    model = Recorder(log)
    data = Batches(zoo.regression(2), zoo.regression(2))
    run(tmp_path, model, data, steps=2, valid_frequency=2, chkpt_frequency=2, plugins=plugins)
    assert log == [
        "plugin training_start",
        "model training_start",
        "plugin training_epoch_start 1",
        "model training_epoch_start 1",
        "process g1 u1 r1 e1 d0",
        "batch_start g1 u1 r1 e1 d0",
        "loss g1 u1 r1 e1 d0",
        "batch_end g1 u1 r1 e1 d0",
        "process g2 u2 r2 e1 d1",
        "batch_start g2 u2 r2 e1 d1",
        "loss g2 u2 r2 e1 d1",
        "batch_end g2 u2 r2 e1 d1",
        "plugin validation_start 0",
        "model validation_start 0",
        "valid_step 0",
        "valid_step 1",
        "plugin validation_end 0",
        "model validation_end 0",
        "improved? c1 r0",
        "plugin training_epoch_end 1",
        "model training_epoch_end 1",
        "save epoch_1_iter_2",
        "plugin training_end",
        "model training_end",
    ]


def test_epoch_unit_follows_the_written_order(tmp_path):
    log, _ = record(
        tmp_path, batches=2, unit="epoch", steps=2, valid_frequency=2, chkpt_frequency=1
    )
    assert brief(log) == [
        "model training_start",
        "model training_epoch_start 1",
        "batch_end g1 u1 r1 e1 d0",
        "batch_end g2 u2 r2 e1 d1",
        "model training_epoch_end 1",
        "save epoch_1_iter_2",
        "model training_epoch_start 2",
        "batch_end g3 u3 r3 e2 d0",
        "batch_end g4 u4 r4 e2 d1",
        "improved? c1 r0",
        "model training_epoch_end 2",
        "save epoch_2_iter_4",
        "model training_end",
    ]


def test_windows_run_across_epochs_in_the_iteration_unit(tmp_path):
    log, _ = record(tmp_path, steps=3, accumulation_steps=2, valid_frequency=2, chkpt_frequency=1)
    assert brief(log) == [
        "model training_start",
        "model training_epoch_start 1",
        "batch_end g1 u0 r0 e1 d0",
        "batch_end g2 u1 r1 e1 d1",
        "save epoch_1_iter_1",
        "batch_end g3 u1 r1 e1 d2",
        "model training_epoch_end 1",
        "model training_epoch_start 2",
        "batch_end g4 u2 r2 e2 d0",
        "improved? c1 r0",
        "save epoch_2_iter_2",
        "batch_end g5 u2 r0 e2 d1",
        "batch_end g6 u3 r1 e2 d2",
        "model training_epoch_end 2",
        "save epoch_2_iter_3",
        "model training_end",
    ]


def test_the_last_window_of_an_epoch_is_flushed_in_the_epoch_unit(tmp_path):
    log, _ = record(tmp_path, unit="epoch", steps=2, accumulation_steps=2, valid_frequency=1)
    assert brief(log) == [
        "model training_start",
        "model training_epoch_start 1",
        "batch_end g1 u0 r0 e1 d0",
        "batch_end g2 u1 r1 e1 d1",
        "batch_end g3 u2 r2 e1 d2",
        "improved? c1 r0",
        "model training_epoch_end 1",
        "model training_epoch_start 2",
        "batch_end g4 u2 r0 e2 d0",
        "batch_end g5 u3 r1 e2 d1",
        "batch_end g6 u4 r2 e2 d2",
        "improved? c2 r0",
        "model training_epoch_end 2",
        "save epoch_2_iter_4",
        "model training_end",
    ]


def test_updates_fall_at_every_fourth_micro_batch_of_ten(tmp_path):
    log, _ = record(None, batches=10, steps=5, accumulation_steps=4)
    updates = [line.split()[1:3] for line in log if line.startswith("batch_end")]
    first = {u: g for g, u in reversed(updates)}
    assert first == {"u0": "g1", "u1": "g4", "u2": "g8", "u3": "g12", "u4": "g16", "u5": "g20"}


def test_should_log_counts_updates_in_both_units():
    for unit, steps in (("iteration", 4), ("epoch", 3)):
        log, _ = record(None, unit=unit, steps=steps, accumulation_steps=2, print_frequency=2)
        logged = [line.split()[2] for line in log if line.endswith(" log")]
        assert logged == [f"u{n}" for n in range(2, (4 if unit == "iteration" else 6) + 1, 2)]


def test_a_resumed_epoch_starts_again_with_its_number(tmp_path):
    record(tmp_path, steps=4)
    log, made = record(tmp_path, steps=7)
    assert brief(log) == [
        "model training_start",
        "model training_epoch_start 2",
        "batch_end g5 u5 r5 e2 d1",
        "batch_end g6 u6 r6 e2 d2",
        "model training_epoch_end 2",
        "model training_epoch_start 3",
        "batch_end g7 u7 r7 e3 d0",
        "save epoch_3_iter_7",
        "model training_end",
    ]
    assert made.state.dataset_iter == 1


@pytest.mark.parametrize("unit", ["iteration", "epoch"])
def test_a_stop_in_mid_epoch_is_left_at_once_and_saved_as_it_is(tmp_path, unit):
    log, made = record(
        tmp_path,
        unit=unit,
        steps=9,
        valid_frequency=5 if unit == "iteration" else 1,
        plugins=[Stopper(5)],
    )
    assert log[-4:] == [
        "loss g5 u5 r5 e2 d1" if unit == "iteration" else "loss g5 u5 r2 e2 d1",
        "batch_end g5 u5 r5 e2 d1" if unit == "iteration" else "batch_end g5 u5 r2 e2 d1",
        # In ITERATION the validation of update 5 is still due: its checkpoint has the plain name.
        "save epoch_2_iter_5_due" if unit == "iteration" else "save epoch_2_iter_5",
        "model training_end",
    ]
    assert (made.state.global_epoch, made.state.dataset_iter) == (2, 2)


def test_a_validation_owed_by_a_stop_is_done_on_resume(tmp_path):
    record(tmp_path, steps=9, valid_frequency=5, plugins=[Stopper(5)])
    log, _ = record(tmp_path, steps=6, valid_frequency=5)
    assert brief(log) == [
        "model training_start",
        "model training_epoch_start 2",
        "improved? c1 r0",
        "batch_end g6 u6 r1 e2 d2",
        "model training_epoch_end 2",
        "save epoch_2_iter_6",
        "model training_end",
    ]


def test_a_model_stops_in_mid_epoch(tmp_path):
    class Stops(Recorder):
        def should_training_stop(self):
            return self.trainer.state.global_iteration == 2

    log, _ = record(tmp_path, steps=9, model=Stops)
    assert brief(log)[-2:] == ["save epoch_1_iter_2", "model training_end"]
    assert not any("training_epoch_end" in line for line in log)


def test_a_stop_asked_for_in_a_validation_ends_after_what_is_due(tmp_path):
    class Stops(Recorder):
        def should_training_stop(self):
            return self.trainer.state.validation_cycles == 1

    log, _ = record(tmp_path, steps=9, valid_frequency=3, chkpt_frequency=3, model=Stops)
    assert brief(log)[-4:] == [
        "improved? c1 r0",
        "model training_epoch_end 1",
        "save epoch_1_iter_3",
        "model training_end",
    ]


@pytest.mark.parametrize("unit", ["iteration", "epoch"])
def test_an_early_stop_comes_after_the_checkpoint_of_its_point(tmp_path, unit):
    frequency = 3 if unit == "iteration" else 1
    log, made = record(
        tmp_path,
        unit=unit,
        steps=30,
        improved=False,
        valid_frequency=frequency,
        chkpt_frequency=frequency,
        early_stop_cycles=2,
    )
    assert brief(log)[-4:] == [
        "improved? c2 r0",
        "model training_epoch_end 2",
        "save epoch_2_iter_6",
        "model training_end",
    ]
    assert made.state.early_stop_count == 2
    assert names(tmp_path) == ["line_epoch_1_iter_3.pth", "line_epoch_2_iter_6.pth"]


def test_the_early_stop_count_falls_to_zero_on_improvement():
    class Every(Recorder):
        def have_metrics_improved(self):
            counts.append(self.trainer.state.early_stop_count)
            return len(counts) == 2

    counts = []
    record(None, steps=4, valid_frequency=1, early_stop_cycles=3, model=Every)
    assert counts == [0, 1, 0, 1]


def test_validation_is_between_eval_and_train_mode():
    class Modes(Recorder):
        def on_validation_start(self, validation_cycle):
            modes.append(self.net.training)

        def on_validation_end(self, validation_cycle):
            modes.append(self.net.training)

        def on_training_epoch_end(self, current_epoch):
            modes.append(self.net.training)

    modes = []
    record(None, unit="epoch", steps=1, valid_frequency=1, model=Modes)
    assert modes == [False, False, True]


def test_plugins_are_called_in_their_order_and_before_the_model():
    class Named(helios.Plugin):
        def on_training_start(self):
            log.append(self.plug_id)

    class Last(zoo.Line):
        def on_training_start(self):
            log.append("model")

    log = []
    run(model=Last(), steps=1, plugins=[Named("b"), Named("a")])
    assert log == ["b", "a", "model"]


def test_the_plugin_s_batch_is_what_the_loss_gets():
    class Shift(helios.Plugin):
        def __init__(self):
            super().__init__("shift", helios.plugins.UniquePluginOverrides(training_batch=True))

        def process_training_batch(self, batch, state):
            return batch[0] + state.global_iteration, batch[1]

    class Sees(zoo.Line):
        def loss(self, batch):
            seen.append(batch[0])
            return super().loss(batch)

    seen, batches = [], zoo.regression(2)
    run(model=Sees(), data=Batches(batches), steps=2, plugins=[Shift()])
    assert [bool((s == b[0] + n).all()) for n, s, b in zip((1, 2), seen, batches, strict=True)] == [
        True,
        True,
    ]


def test_hooks_that_failed_are_not_followed_by_training_end():
    class Fails(Recorder):
        def on_training_epoch_end(self, current_epoch):
            raise PlannedError

    log = []
    made = trainer(steps=9)
    assert not made.fit(Fails(log), Batches(zoo.regression(2)))
    assert "model training_end" not in log


def test_average_iter_time_leaves_validation_out():
    import time

    class Slow(zoo.Line):
        def on_validation_start(self, validation_cycle):
            until = time.perf_counter() + 0.3
            while time.perf_counter() < until:
                pass

    made = run(
        model=Slow(), data=Batches(zoo.regression(5), zoo.regression(1)), steps=4, valid_frequency=1
    )
    assert 0 < made.state.average_iter_time < 0.1
