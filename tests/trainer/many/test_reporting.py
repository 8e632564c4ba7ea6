"""Each member has a TensorBoard folder of its own; log and terminal are those of all."""

from __future__ import annotations

import re

import pytest

from helios.trainer import find_last_checkpoint
from helios.trainer.store import read_checkpoint
from tests.trainer.many.runs import NAMES, fit, members


def scalars(folder):
    """Return ``{tag: [(step, value)]}`` as TensorBoard reads a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def arguments(root):
    return {
        "enable_tensorboard": True,
        "run_path": root / "runs",
        "enable_file_logging": True,
        "log_path": root / "logs",
        "print_frequency": 2,
        "valid_frequency": 3,
    }


def test_every_member_has_a_folder_with_its_metrics(tmp_path):
    models = members()
    fit(None, models, steps=6, **arguments(tmp_path))
    folders = sorted((tmp_path / "runs").iterdir())
    assert [folder.name.split("_")[0] for folder in folders] == list(NAMES)
    values = []
    for member, folder in zip(models, folders, strict=True):
        found = scalars(folder)
        assert found.keys() == {
            "train/loss", "train/accuracy", "valid/loss", "valid/accuracy"
        }  # fmt: skip
        assert [step for step, _ in found["train/loss"]] == [2, 4, 6]
        assert [step for step, _ in found["valid/loss"]] == [3, 6]
        assert found["valid/loss"][-1][1] == pytest.approx(member.valid_metrics["loss"])
        values.append(found["train/loss"][0][1])
    assert len(set(values)) == 3


def test_a_resumed_run_goes_on_in_the_same_folders_and_the_same_log(tmp_path):
    for steps in (3, 7):
        fit(tmp_path / "chkpt", steps=steps, **arguments(tmp_path))
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 3
    for name, folder in zip(NAMES, folders, strict=True):
        assert [step for step, _ in scalars(folder)["train/loss"]] == [2, 4, 6]
        content = read_checkpoint(find_last_checkpoint(tmp_path / "chkpt" / name))
        assert content["log"]["run_dir"] == folder.name
    [log] = (tmp_path / "logs").iterdir()
    assert content["log"]["log_file"] == log.name


def test_the_log_has_a_line_for_each_member(tmp_path):
    fit(None, steps=3, run_name="all", **arguments(tmp_path))
    [log] = (tmp_path / "logs").iterdir()
    text = log.read_text()
    assert "3 members are trained at once: a, b, c" in text
    for name in NAMES:
        assert re.search(rf"epoch 1, update 2, {name}: train: loss \d", text)
        assert re.search(rf"epoch 1, update 3, {name}: valid: loss \d", text)
        assert (tmp_path / "runs").glob(f"all_{name}_*")


def test_the_terminal_has_the_least_and_the_greatest(capsys):
    fit(None, steps=3, valid_frequency=3, enable_progress_bar=True)
    line = capsys.readouterr().err.splitlines()[-1]
    numbers = re.search(r"update 3/3  valid: loss min (\S+), loss max (\S+), accuracy min", line)
    assert float(numbers[1]) < float(numbers[2])


def test_a_log_of_all_has_the_numbers_of_each_member_by_name(tmp_path):
    import csv

    from helios.loggers import CSVLog

    models = members()
    for steps in (3, 6):
        logs = [CSVLog(tmp_path / "log.csv")]
        fit(tmp_path / "c", models, steps=steps, print_frequency=2, valid_frequency=3, logs=logs)
        models = members()
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [row["update"] for row in rows] == ["2", "3", "4", "6"]
    for name in NAMES:
        assert [bool(row[f"{name}/train/loss"]) for row in rows] == [True, False, True, True]
        assert [bool(row[f"{name}/valid/loss"]) for row in rows] == [False, True, False, True]
