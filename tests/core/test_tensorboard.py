import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helios.core import tensorboard
from helios.core.tensorboard import TensorboardWriter, open_writer


def _read(folder):
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def _steps(folder, tag):
    return [event.step for event in _read(folder).Scalars(tag)]


@pytest.fixture
def writer(tmp_path):
    made = TensorboardWriter(tmp_path)
    yield made
    made.close()


def test_a_scalar_is_written(writer, tmp_path):
    writer.add_scalar("loss", torch.tensor(0.5), 3)
    writer.close()
    (event,) = _read(tmp_path).Scalars("loss")
    assert (event.step, event.value) == (3, 0.5)


def test_two_resumes_show_every_step_once(tmp_path):
    for first, last in ((1, 7), (6, 8), (6, 10)):
        writer = TensorboardWriter(tmp_path, purge_step=None if first == 1 else first)
        for step in range(first, last + 1):
            writer.add_scalar("loss", float(step * first), step)
            writer.add_scalar("accuracy", 0.0, step)
        writer.close()
    assert _steps(tmp_path, "loss") == list(range(1, 11))
    assert _steps(tmp_path, "accuracy") == list(range(1, 11))


def test_the_values_after_a_resume_are_those_of_the_last_writer(tmp_path):
    for number, purge_step in enumerate((None, 2, 2)):
        writer = TensorboardWriter(tmp_path, purge_step)
        for step in (1, 2, 3):
            if purge_step is None or step >= purge_step:
                writer.add_scalar("loss", number, step)
        writer.close()
    assert [event.value for event in _read(tmp_path).Scalars("loss")] == [0, 2, 2]


def test_many_resumes_in_one_second_are_read_in_order(tmp_path):
    for number in range(12):
        writer = TensorboardWriter(tmp_path, purge_step=number + 1)
        for step in (number + 1, number + 2):
            writer.add_scalar("loss", number, step)
        writer.close()
    assert _steps(tmp_path, "loss") == list(range(1, 14))


def test_a_writer_waits_until_its_file_is_the_last(tmp_path):
    ahead = tmp_path / f"events.out.tfevents.{int(time.time()) + 1:010d}.zzz.1.0"
    ahead.touch()
    open_writer(tmp_path).close()
    assert max(path.name for path in tmp_path.iterdir()) != ahead.name
    assert len(list(tmp_path.iterdir())) == 2


def test_a_clock_far_behind_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "_PATIENCE", 0.0)
    (tmp_path / "events.out.tfevents.9999999999.zzz.1.0").touch()
    open_writer(tmp_path).close()
    assert len(list(tmp_path.iterdir())) == 2


def test_scalars_that_share_a_plot_are_written(writer, tmp_path):
    writer.add_scalars("loss/all", {"train": 1.0, "valid": 2.0}, 4)
    writer.close()
    (event,) = _read(tmp_path / "loss_all_valid").Scalars("loss/all")
    assert (event.step, event.value) == (4, 2.0)


def test_scalars_that_share_a_plot_are_purged_too(tmp_path):
    for purge_step in (None, 3):
        writer = TensorboardWriter(tmp_path, purge_step)
        for step in range(purge_step or 1, 6):
            writer.add_scalars("loss", {"train": 1.0}, step)
        writer.close()
    assert _steps(tmp_path / "loss_train", "loss") == [1, 2, 3, 4, 5]


def test_an_image_is_written(writer, tmp_path):
    writer.add_image("digit", torch.zeros(1, 8, 9), 2)
    writer.close()
    (event,) = _read(tmp_path).Images("digit")
    assert (event.step, event.height, event.width) == (2, 8, 9)


def test_an_image_may_have_its_channels_last(writer, tmp_path):
    writer.add_image("digit", np.zeros((8, 9, 3), dtype=np.uint8), 2, dataformats="HWC")
    writer.close()
    (event,) = _read(tmp_path).Images("digit")
    assert (event.height, event.width) == (8, 9)


def test_a_batch_of_images_is_written(writer, tmp_path):
    writer.add_images("digits", torch.zeros(2, 1, 8, 9), 2)
    writer.close()
    (event,) = _read(tmp_path).Images("digits")
    assert event.width == 18


def test_a_histogram_is_written(writer, tmp_path):
    writer.add_histogram("weights", torch.arange(10.0), 2)
    writer.close()
    (event,) = _read(tmp_path).Histograms("weights")
    assert (event.step, event.histogram_value.num) == (2, 10)


def test_text_is_written(writer, tmp_path):
    writer.add_text("note", "hello", 2)
    writer.close()
    (event,) = _read(tmp_path).Tensors("note/text_summary")
    assert event.tensor_proto.string_val == [b"hello"]


def test_hyper_parameters_are_written_with_their_metrics(writer, tmp_path):
    writer.add_hparams({"lr": 0.1, "name": "a"}, {"best": 0.5}, 7)
    writer.close()
    read = _read(tmp_path)
    assert [(event.step, event.value) for event in read.Scalars("best")] == [(7, 0.5)]
    assert "_hparams_/session_start_info" in read.summary_metadata


def test_hyper_parameters_stay_in_the_file(writer, tmp_path):
    writer.add_hparams({"lr": 0.1}, {"best": 0.5})
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_added_after_close_is_dropped(writer, tmp_path):
    writer.close()
    writer.add_scalar("loss", 1.0, 1)
    writer.add_scalars("loss", {"train": 1.0}, 1)
    assert len(list(tmp_path.iterdir())) == 1


def test_close_again_does_nothing(writer):
    writer.close()
    writer.close()


def test_a_writer_without_a_folder_writes_nothing():
    writer = TensorboardWriter(None)
    writer.add_scalar("a", 1.0, 1)
    writer.add_scalars("a", {"b": 1.0}, 1)
    writer.add_image("a", None)
    writer.add_images("a", None)
    writer.add_figure("a", None)
    writer.add_histogram("a", None)
    writer.add_text("a", "b")
    writer.add_hparams({}, {})
    writer.flush()
    writer.close()
    assert writer.run_dir is None


def test_tensorboard_is_not_imported_before_it_is_needed():
    code = (
        "import sys, helios.core; "
        "sys.exit('torch.utils.tensorboard' in sys.modules or 'tensorboard' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
