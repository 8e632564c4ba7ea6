"""What a run shows: TensorBoard, the log file, the terminal, the banner."""

from __future__ import annotations

import io
from collections import Counter

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import helios
from helios.functional.state import TrainingState
from helios.trainer.progress import Progress
from helios.trainer.store import store
from tests import zoo
from tests.trainer.runs import Batches, FailsAt, Stopper, run, trainer


def data():
    return Batches(zoo.classes(5), zoo.classes(2, seed=3), zoo.classes(1))


def scalars(folder):
    """Return the steps of every tag in the one run below a folder."""
    (run_folder,) = {path.parent for path in folder.rglob("*tfevents*")}
    accumulator = EventAccumulator(str(run_folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def steps_of(folder):
    return {tag: [step for step, _ in events] for tag, events in scalars(folder).items()}


def board(tmp_path, **arguments):
    return {"enable_tensorboard": True, "run_path": tmp_path / "runs", **arguments}


def test_tensorboard_has_the_metrics_without_a_line_of_code(tmp_path):
    model = zoo.Noisy()
    arguments = board(tmp_path, print_frequency=2, valid_frequency=3)
    run(None, model, data(), steps=6, **arguments)
    shown = scalars(tmp_path)
    trained = ("train/loss", "train/accuracy", "optimizer/learning_rate", "optimizer/gradient_norm")
    speeds = (f"speed/{name}" for name in ("updates_per_second", "samples_per_second"))
    assert {tag: [step for step, _ in events] for tag, events in shown.items()} == {
        **{tag: [2, 4, 6] for tag in (*trained, *speeds, "speed/waiting_for_data")},
        **{tag: [3, 6] for tag in ("valid/loss", "valid/accuracy", "best/loss")},
    }
    assert shown["valid/loss"][-1][1] == pytest.approx(model.valid_metrics["loss"], rel=1e-6)


def test_without_a_print_frequency_the_ends_of_epochs_are_reported(tmp_path):
    run(None, zoo.Noisy(), data(), unit="epoch", steps=3, **board(tmp_path))
    assert steps_of(tmp_path)["train/loss"] == [5, 10, 15]


def test_every_step_is_there_once_after_two_resumes(tmp_path):
    arguments = board(tmp_path, print_frequency=1, valid_frequency=2, chkpt_frequency=2)
    for steps in (5, 8, 11):
        run(tmp_path / "c", zoo.Noisy(), data(), steps=steps, **arguments)
    shown = steps_of(tmp_path / "runs")
    assert shown["train/loss"] == list(range(1, 12))
    assert shown["valid/loss"] == [2, 4, 6, 8, 10]


def test_every_step_is_there_once_after_crashes(tmp_path):
    class Dies(zoo.Noisy):
        def __init__(self, at):
            super().__init__()
            self.at = at

        def loss(self, batch):
            if self.training and self.trainer.state.global_iteration == self.at:
                raise RuntimeError("dies")
            return super().loss(batch)

    arguments = board(tmp_path, print_frequency=1, valid_frequency=2, chkpt_frequency=3)
    for at in (6, 8):
        assert not trainer(tmp_path / "c", steps=9, **arguments).fit(Dies(at), data())
    run(tmp_path / "c", zoo.Noisy(), data(), steps=9, **arguments)
    shown = steps_of(tmp_path / "runs")
    assert shown["train/loss"] == list(range(1, 10))
    assert shown["valid/loss"] == [2, 4, 6, 8]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("cut", [1, 7, 30, 60])
def test_every_step_is_there_once_after_kills_that_cut_the_file_off(tmp_path, cut):
    arguments = board(tmp_path, print_frequency=1, chkpt_frequency=2)
    for steps in (4, 6, 8):
        run(tmp_path / "c", zoo.Noisy(), data(), steps=steps + 1, **arguments)
        # As if it had been killed after its last checkpoint, with the end of its file unwritten.
        for suffix in ("json", "pth"):
            for path in (tmp_path / "c").rglob(f"*iter_{steps + 1}.{suffix}"):
                path.unlink()
        last = max((tmp_path / "runs").rglob("*tfevents*"), key=lambda path: path.name)
        last.write_bytes(last.read_bytes()[:-cut])
    run(tmp_path / "c", zoo.Noisy(), data(), steps=9, **arguments)
    assert steps_of(tmp_path / "runs")["train/loss"] == list(range(1, 10))


def test_what_is_shown_of_a_checkpoint_is_written_before_it(tmp_path, monkeypatch):
    def committed(*args):
        shown.append(steps_of(tmp_path / "runs"))
        return commit(*args)

    shown, commit = [], store.commit
    monkeypatch.setattr(store, "commit", committed)
    arguments = board(tmp_path, print_frequency=1, valid_frequency=2, chkpt_frequency=4)
    run(tmp_path / "c", zoo.Noisy(), data(), steps=8, **arguments)
    assert [steps["train/loss"][-1] for steps in shown] == [4, 8]
    assert [steps["valid/loss"][-1] for steps in shown] == [4, 8]


def test_a_stop_before_an_owed_validation_reports_it_once(tmp_path):
    arguments = board(tmp_path, print_frequency=1, valid_frequency=3)
    run(tmp_path / "c", zoo.Noisy(), data(), steps=6, plugins=[Stopper(3)], **arguments)
    run(tmp_path / "c", zoo.Noisy(), data(), steps=6, **arguments)
    shown = steps_of(tmp_path / "runs")
    assert shown["train/loss"] == [1, 2, 3, 4, 5, 6]
    assert shown["valid/loss"] == [3, 6]


def test_testing_is_in_tensorboard(tmp_path):
    assert trainer(**board(tmp_path)).test(zoo.Noisy(), data())
    assert set(steps_of(tmp_path)) == {"test/loss", "test/accuracy"}


def test_train_metrics_are_means_since_the_last_report(tmp_path):
    class Numbers(zoo.Line):
        def loss(self, batch):
            return super().loss(batch), {"number": float(self.trainer.state.current_iteration)}

    run(None, Numbers(), steps=6, **board(tmp_path, print_frequency=3))
    assert scalars(tmp_path)["train/number"] == [(3, 2.0), (6, 5.0)]


def test_a_mean_goes_on_over_a_resume(tmp_path):
    class Numbers(zoo.Line):
        def loss(self, batch):
            return super().loss(batch), {"number": float(self.trainer.state.current_iteration)}

    arguments = board(tmp_path, print_frequency=4)
    for steps in (2, 4):
        run(tmp_path / "c", Numbers(), steps=steps, **arguments)
    assert scalars(tmp_path / "runs")["train/number"] == [(4, 2.5)]


# The log file.


def log_text(folder):
    (path,) = folder.glob("*.log")
    return path.read_text()


def test_the_log_has_metrics_checkpoints_and_the_reason_to_stop(tmp_path):
    run(
        tmp_path / "c",
        zoo.Noisy(),
        data(),
        steps=4,
        valid_frequency=2,
        chkpt_frequency=2,
        print_frequency=2,
        enable_file_logging=True,
        log_path=tmp_path,
    )
    text = log_text(tmp_path)
    for expected in (
        "epoch 1, update 2: train: loss ",
        "epoch 1, update 2: valid: loss ",
        "saved noisy_epoch_1_iter_4.pth",
        "stopped: total_steps",
        "Plan: 4 updates, epochs of 5 micro-batches",
    ):
        assert text.count(expected) == 1, expected


def test_a_resumed_run_goes_on_in_its_log(tmp_path):
    arguments = {"enable_file_logging": True, "log_path": tmp_path, "print_frequency": 1}
    for steps in (2, 4):
        run(tmp_path / "c", steps=steps, **arguments)
    text = log_text(tmp_path)
    counts = Counter(
        line.split("update ")[1].split(":")[0] for line in text.splitlines() if "train:" in line
    )
    assert counts == {"1": 1, "2": 1, "3": 1, "4": 1}
    assert text.count("Resuming training from checkpoint") == 1


def test_a_log_is_named_after_the_run(tmp_path):
    run(steps=1, run_name="second try", enable_file_logging=True, log_path=tmp_path)
    (path,) = tmp_path.glob("*.log")
    assert path.name.startswith("second try_")


def test_the_reason_of_an_early_stop_is_logged(tmp_path):
    class Never(zoo.Line):
        def have_metrics_improved(self):
            return False

    run(
        model=Never(),
        data=Batches(zoo.regression(5), zoo.regression(1)),
        valid_frequency=1,
        early_stop_cycles=1,
        enable_file_logging=True,
        log_path=tmp_path,
    )
    assert "stopped: early_stop" in log_text(tmp_path)


# The terminal.


def test_without_a_terminal_there_is_a_line_per_report(capsys):
    run(
        None,
        zoo.Noisy(),
        data(),
        steps=6,
        print_frequency=3,
        valid_frequency=6,
        enable_progress_bar=True,
    )
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "epoch 1  update 3/6  train",
        "epoch 2  update 6/6  train",
        "epoch 2  update 6/6  valid",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_the_bar_goes_on_at_its_place(tmp_path, monkeypatch):
    run(tmp_path, zoo.Noisy(), data(), unit="epoch", steps=2, accumulation_steps=2)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    run(
        tmp_path,
        zoo.Noisy(),
        data(),
        unit="epoch",
        steps=4,
        accumulation_steps=2,
        enable_progress_bar=True,
    )
    frames = [frame for frame in terminal.getvalue().split("\r") if "/12" in frame]
    assert "| 6/12" in frames[0]
    assert "100%" in frames[-1]
    assert "| 12/12" in frames[-1]


def test_the_bar_is_not_redrawn_for_every_update():
    terminal = Terminal()
    progress = Progress(total=2000, done=0, stream=terminal)
    for update in range(1, 2001):
        progress.advance(TrainingState(current_iteration=update))
    progress.close()
    assert terminal.getvalue().count("\r") < 200
    assert "2000/2000" in terminal.getvalue()


def test_an_infinite_run_has_a_bar_without_a_total(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    run(steps=float("inf"), plugins=[Stopper(3)], enable_progress_bar=True)
    assert "3update" in terminal.getvalue()


def test_the_bar_is_closed_after_a_failure(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert not trainer(enable_progress_bar=True).fit(FailsAt("loss"), Batches(zoo.regression(5)))
    bar, _, trace = terminal.getvalue().partition("Traceback")
    assert bar.endswith("\n")
    assert trace.rstrip().endswith("boom")


def test_without_a_progress_bar_standard_error_is_empty(capfd):
    run(None, zoo.Noisy(), data(), print_frequency=1, valid_frequency=2)
    assert capfd.readouterr().err == ""


# The banner.


def test_the_banner_is_printed_if_it_is_asked_for(capsys):
    run(steps=1, print_banner=True)
    out = capsys.readouterr().out
    assert "helios: " in out
    assert "Model: Line (line), 4 parameters, 4 of them trained" in out
    assert "Plan: 1 update" in out


def test_nothing_is_printed_without_the_banner(capfd):
    run(steps=1)
    assert capfd.readouterr() == ("", "")


def test_the_banner_has_the_model_s_own_lines(capsys):
    class Adds(zoo.Line):
        def append_to_banner(self, banner):
            return banner + "\nTrained on tiny data"

    run(model=Adds(), steps=1, print_banner=True)
    assert "Trained on tiny data" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["improved", "epoch_end", "epoch_start", "end", "loss"])
@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_every_step_is_there_once_after_a_failure_and_a_resume(tmp_path, place, unit, capsys):
    steps = 3 if unit == "epoch" else 15
    arguments = board(tmp_path, valid_frequency=1, chkpt_frequency=1, unit=unit, steps=steps)
    batches = Batches(zoo.regression(5), zoo.regression(2))
    assert not trainer(tmp_path / "chkpt", **arguments).fit(FailsAt(place, at=7), batches)
    run(tmp_path / "chkpt", zoo.Line(), batches, **arguments)
    found = steps_of(tmp_path)
    assert found["valid/loss"] == ([5, 10, 15] if unit == "epoch" else list(range(1, 16)))
    assert all(len(set(steps)) == len(steps) for steps in found.values())
    assert "PlannedError" in capsys.readouterr().err


# Beside the metrics.


def test_rates_of_several_objectives_have_their_names(tmp_path):
    batches = Batches(zoo.regression(4, dtype=torch.float64))
    run(None, zoo.Game("game"), batches, steps=2, **board(tmp_path, print_frequency=1))
    shown = scalars(tmp_path)
    assert [value for _, value in shown["optimizer/learning_rate/first"]] == pytest.approx(
        [1e-2, 1e-2]
    )
    assert {"optimizer/learning_rate/second", "optimizer/gradient_norm/second"} <= shown.keys()


def test_the_rate_is_the_one_that_the_update_was_made_with(tmp_path):
    model = zoo.Line(optimizer=lambda: helios.optim.SGD(lr=lambda count: 0.5**count))
    run(None, model, steps=3, **board(tmp_path, print_frequency=1))
    assert scalars(tmp_path)["optimizer/learning_rate"] == [(1, 1.0), (2, 0.5), (3, 0.25)]


def test_the_loss_scale_and_what_it_left_out_are_shown(tmp_path):
    class Half(zoo.Line):
        def setup(self, fast_init=False):
            super().setup(fast_init)
            self.precision = helios.Policy("float32", helios.LossScale(2.0**120, interval=2))

        def loss(self, batch):
            return super().loss(batch) * 1e10

    run(None, Half(), steps=2, **board(tmp_path, print_frequency=1))
    shown = scalars(tmp_path)
    assert shown["optimizer/loss_scale"] == [(1, 2.0**119), (2, 2.0**118)]
    assert shown["optimizer/skipped_updates"] == [(1, 1), (2, 2)]


def test_the_best_so_far_never_gets_worse(tmp_path):
    run(None, zoo.Noisy(), data(), steps=9, **board(tmp_path, valid_frequency=1))
    shown = scalars(tmp_path)
    losses = [value for _, value in shown["valid/loss"]]
    best = [value for _, value in shown["best/loss"]]
    assert best == pytest.approx([min(losses[: k + 1]) for k in range(9)])


def test_the_time_that_data_took_is_a_share(tmp_path):
    run(None, zoo.Noisy(), data(), steps=4, **board(tmp_path, print_frequency=2))
    shown = scalars(tmp_path)
    assert all(0 < value < 1 for _, value in shown["speed/waiting_for_data"])
    updates, samples = (shown[f"speed/{of}_per_second"] for of in ("updates", "samples"))
    assert [4 * value for _, value in updates] == pytest.approx([value for _, value in samples])


def test_hyperparameters_are_written_once_and_compared_by_all_scalars(tmp_path):
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams.backend_context import Context

    class Wide(zoo.Noisy):
        def setup(self, fast_init=False):
            super().setup(fast_init)
            self.hparams = {"net": {"width": 8}}

    arguments = board(tmp_path, valid_frequency=2)
    for steps in (2, 4):
        run(tmp_path / "c", Wide(), data(), steps=steps, **arguments)
    starts = [
        path
        for path in (tmp_path / "runs").rglob("*tfevents*")
        if b"_hparams_/session_start_info" in path.read_bytes()
    ]
    assert len(starts) == 1
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "runs"))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path / "runs"))
    context, request = Context(TBContext(data_provider=provider)), RequestContext()
    metadata = context.hparams_metadata(request, "")
    found = context.experiment_from_metadata(request, "", True, metadata, [])
    assert {"model/net/width", "trainer/seed"} <= {info.name for info in found.hparam_infos}
    assert {"valid/loss", "best/loss"} <= {info.name.tag for info in found.metric_infos}


def test_hooks_show_images_and_more(tmp_path):
    class Shows(zoo.Line):
        def on_training_epoch_end(self, current_epoch):
            log = self.trainer.log
            log.image("mine/image", torch.ones(3, 4, 4))
            log.images("mine/images", torch.ones(2, 1, 4, 4))
            log.histogram("mine/weights", self.net.weight)
            log.text("mine/text", "**words**")

    run(None, Shows(), unit="epoch", steps=2, **board(tmp_path))
    (folder,) = {path.parent for path in tmp_path.rglob("*tfevents*")}
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    assert [event.step for event in events.Images("mine/image")] == [5, 10]
    assert "mine/images" in tags["images"]
    assert "mine/weights" in tags["histograms"]
    assert "mine/text/text_summary" in tags["tensors"]


def test_hparams_that_are_no_mapping_are_refused(tmp_path, capsys):
    model = zoo.Line()
    model.hparams = 3
    assert not trainer(**board(tmp_path)).fit(model, Batches(zoo.regression(2)))
    assert "hparams: received a int" in capsys.readouterr().err
