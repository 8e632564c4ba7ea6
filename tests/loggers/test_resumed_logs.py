"""Law: the logs of a run that was killed and resumed are those of the uninterrupted run."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from helios.loggers import CSVLog, JSONLog, RunLog
from tests import zoo
from tests.trainer.runs import Batches, run, trainer


class Watched(zoo.Noisy):
    """Logs from hooks, and dies at a micro-batch."""

    def __init__(self, dies_at=None):
        super().__init__()
        self.dies_at = dies_at
        self.hparams = {"width": 8}

    def loss(self, batch):
        loss, values = super().loss(batch)
        if self.training and self.trainer.state.global_iteration == self.dies_at:
            raise RuntimeError("dies")
        return loss, values

    def on_training_batch_end(self, state, should_log=False):
        if state.current_iteration % 3 == 0:
            self.trainer.log.scalar("mine/third", state.current_iteration / 3)
        if state.current_iteration == 5:
            self.trainer.log.scalar("mine/late", torch.tensor(5.0))

    def on_validation_end(self, validation_cycle):
        self.trainer.log.text("mine/note", f"validation {validation_cycle}")

    def on_training_epoch_end(self, current_epoch):
        self.trainer.log.scalar("mine/epoch", current_epoch)

    def on_training_end(self):
        self.trainer.log.scalar("mine/end", 1.0)


def data():
    return Batches(zoo.classes(5), zoo.classes(2, seed=3), zoo.classes(1))


def logs(folder):
    return [CSVLog(folder / "log.csv"), JSONLog(folder / "log.jsonl")]


def wall_clock(name):
    return name == "time" or name.startswith("speed/")


def read(folder):
    """Return both logs without what a clock tells, their order of columns included."""
    with (folder / "log.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    keep = [k for k, name in enumerate(header) if not wall_clock(name)]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return (
        [[row[k] for k in keep] for row in [header, *rows]],
        [{n: v for n, v in line.items() if not wall_clock(n)} for line in lines],
    )


ARGUMENTS = {"print_frequency": 2, "valid_frequency": 3, "chkpt_frequency": 4, "steps": 14}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder / "c", Watched(), data(), logs=logs(folder), **ARGUMENTS)
    return read(folder)


@pytest.mark.parametrize("deaths", [(2,), (6,), (9,), (6, 10), (13, 14)])
def test_a_failure_and_a_resume_change_nothing(tmp_path, deaths, uninterrupted, capsys):
    for at in deaths:
        made = trainer(tmp_path / "c", logs=logs(tmp_path), **ARGUMENTS)
        assert not made.fit(Watched(at), data())
    run(tmp_path / "c", Watched(), data(), logs=logs(tmp_path), **ARGUMENTS)
    assert read(tmp_path) == uninterrupted
    assert "dies" in capsys.readouterr().err


@pytest.mark.parametrize("left", [4, 8, 12])
def test_a_kill_after_a_checkpoint_changes_nothing(tmp_path, left, uninterrupted):
    """As if killed later on, with everything written that was not of a checkpoint yet."""
    run(tmp_path / "c", Watched(), data(), logs=logs(tmp_path), **ARGUMENTS)
    for path in (tmp_path / "c").rglob("*_iter_*"):
        if int(path.stem.split("_iter_")[1].split("_")[0]) > left:
            path.unlink()
    run(tmp_path / "c", Watched(), data(), logs=logs(tmp_path), **ARGUMENTS)
    assert read(tmp_path) == uninterrupted


def test_rows_have_what_was_reported(uninterrupted):
    (header, *rows), lines = uninterrupted
    assert [row[0] for row in rows] == ["2", "3", "4", "5", "6", "8", "9", "10", "12", "14"]
    for name in (
        "train/loss",
        "valid/accuracy",
        "best/loss",
        "optimizer/gradient_norm",
        "mine/late",
    ):
        assert name in header
    assert lines[0]["hyperparameters"]["model/width"] == 8
    assert sum("hyperparameters" in line for line in lines) == 1
    assert [line["mine/note"] for line in lines if "mine/note" in line] == [
        f"validation {k}" for k in range(4)
    ]


def test_hooks_log_in_a_test_too(tmp_path):
    class Tests(Watched):
        def on_testing_end(self):
            self.trainer.log.scalar("mine/test", 2.0)

    made = run(tmp_path / "c", Tests(), data(), logs=logs(tmp_path), **ARGUMENTS)
    assert made.test(made.model, data())
    last = read(tmp_path)[1][-1]
    assert (last["update"], last["mine/test"]) == (14, 2.0)
    assert last["test/loss"] == pytest.approx(made.model.test_metrics["loss"])


def test_rows_of_a_checkpoint_are_written_before_it(tmp_path, monkeypatch):
    from helios.trainer.store import store

    def committed(*args):
        shown.append(read(tmp_path)[1][-1]["update"])
        return commit(*args)

    shown, commit = [], store.commit
    monkeypatch.setattr(store, "commit", committed)
    run(tmp_path / "c", Watched(), data(), logs=logs(tmp_path), **ARGUMENTS)
    assert shown == [4, 8, 12, 14]


def test_a_log_that_cannot_be_opened_ends_the_fit(tmp_path, capsys):
    (tmp_path / "file").touch()
    made = trainer(logs=[CSVLog(tmp_path / "file" / "log.csv")])
    assert not made.fit(zoo.Line(), Batches(zoo.regression(5)))
    assert "Error" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["log.csv", ["log.csv"], CSVLog])
def test_what_is_no_log_is_refused(given):
    with pytest.raises(TypeError, match="logs: received"):
        trainer(logs=given)


def test_one_log_twice_is_refused(tmp_path):
    log = CSVLog(tmp_path / "log.csv")
    with pytest.raises(ValueError, match="twice"):
        trainer(logs=[log, log])


def test_a_log_of_one_s_own_is_told_where_to_go_on(tmp_path):
    class Mine(RunLog):
        def __init__(self):
            self.opened = None

        @property
        def identity(self):
            return "mine-1"

        def open(self, run):
            self.opened = run

        def scalars(self, update, epoch, values):
            pass

    first, second = Mine(), Mine()
    run(tmp_path / "c", steps=3, logs=[first])
    run(tmp_path / "c", steps=5, logs=[second])
    assert (first.opened.resumed_from, first.opened.identity) == (None, None)
    assert (second.opened.resumed_from, second.opened.identity) == (3, "mine-1")
