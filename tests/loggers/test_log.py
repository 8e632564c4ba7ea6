"""What hooks log goes to all logs that understand it, once, and to nobody if none is on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helios.functional.state import TrainingState
from helios.loggers import Log, RunLog


class Kept(RunLog):
    """Keeps everything that it is told."""

    def __init__(self):
        self.calls = []

    def scalars(self, update, epoch, values):
        self.calls.append(("scalars", update, epoch, dict(values)))

    def images(self, update, tag, images):
        self.calls.append(("images", update, tag, images))

    def histogram(self, update, tag, values):
        self.calls.append(("histogram", update, tag, values))

    def text(self, update, tag, text):
        self.calls.append(("text", update, tag, text))


class OnlyScalars(RunLog):
    def __init__(self):
        self.calls = []

    def scalars(self, update, epoch, values):
        self.calls.append(values)


@pytest.fixture
def kept():
    return Kept()


@pytest.fixture
def log(kept):
    made = Log()
    made.begin([kept], lambda: (0, 0))
    made.at(TrainingState(current_iteration=3, global_epoch=2))
    return made


def test_without_a_log_nothing_is_looked_at():
    log = Log()
    log.scalar("a", object())
    log.image("a", object())
    log.histogram("a", object())
    assert not log.is_on


def test_nothing_is_written_before_it_is_sure(log, kept):
    log.scalar("a", 1.0)
    log.write()
    assert kept.calls == []
    log.release(write=False)
    assert kept.calls == [("scalars", 3, 2, {"a": 1.0})]


def test_what_was_not_sure_is_dropped_at_the_end(log, kept):
    log.scalar("a", 1.0)
    log.end()
    assert kept.calls == []
    assert not log.is_on


def test_numbers_of_one_update_come_in_one_call(log, kept):
    log.scalar("a", 1.0)
    log.scalars("b", {"c": torch.tensor([2.0]), "d": 3})
    log.release(write=False)
    assert kept.calls == [("scalars", 3, 2, {"a": 1.0, "b/c": 2.0, "b/d": 3.0})]


def test_a_tensor_is_logged_as_it_was(log, kept):
    value, rows = torch.tensor(1.0), torch.ones(3)
    log.scalar("a", value)
    log.histogram("b", rows)
    value.zero_()
    rows.zero_()
    log.release(write=True)
    assert kept.calls[0][3] == {"a": 1.0}
    assert kept.calls[1][3].tolist() == [1, 1, 1]


def test_what_lies_on_a_device_waits_for_a_report(log, kept):
    log.scalar("a", torch.ones((), device="meta"))  # a value that is not there: reading raises
    log.release(write=False)
    assert kept.calls == []
    with pytest.raises((NotImplementedError, RuntimeError)):
        log.release(write=True)


def test_more_than_one_number_is_refused(log):
    with pytest.raises(ValueError, match="tensor of one element"):
        log.scalar("a", torch.ones(2))


@pytest.mark.parametrize(
    ("image", "layout"),
    [
        (torch.ones(3, 4, 5), "CHW"),
        (torch.ones(4, 5, 3), "HWC"),
        (np.full((4, 5, 3), 255, np.uint8), "HWC"),
    ],
)
def test_an_image_becomes_bytes(log, kept, image, layout):
    log.image("a", image, layout)
    log.release(write=True)
    _, update, tag, images = kept.calls[0]
    assert (update, tag, images.shape, images.dtype) == (3, "a", (1, 4, 5, 3), np.uint8)
    assert (images == 255).all()


def test_what_lies_outside_of_an_image_s_range_is_cut_off(log, kept):
    log.image("a", torch.tensor([[-1.0, 0.5, 2.0]]), "HW")
    log.release(write=True)
    assert kept.calls[0][3].ravel().tolist() == [0, 127, 255]


@pytest.mark.parametrize(
    ("shape", "layout"), [((3, 4), "CHW"), ((2, 4, 5), "CHW"), ((3, 4, 5), "WHC")]
)
def test_an_image_of_another_shape_is_refused(log, shape, layout):
    with pytest.raises(ValueError, match="expected"):
        log.image("a", torch.ones(shape), layout)


def test_a_figure_is_drawn_at_once_and_closed(log, kept):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    figure = pyplot.figure(figsize=(2, 1), dpi=50)
    log.figure("a", figure)
    assert not pyplot.fignum_exists(figure.number)
    log.release(write=True)
    assert kept.calls[0][3].shape == (1, 50, 100, 4)


def test_a_figure_is_closed_if_nobody_listens():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    figure = pyplot.figure()
    Log().figure("a", figure)
    assert not pyplot.fignum_exists(figure.number)


def test_a_log_is_not_bothered_with_what_it_does_not_understand(log):
    other = OnlyScalars()
    log.begin([other], lambda: (1, 1))
    log.text("a", "words")
    log.image("b", torch.ones(1, 2, 2))
    log.scalar("c", 1.0)
    log.release(write=True)
    assert other.calls == [{"c": 1.0}]


def test_a_log_without_scalars_says_so():
    with pytest.raises(NotImplementedError, match="override scalars"):
        RunLog().scalars(1, 1, {})


def test_a_log_that_cannot_be_written_is_left_out(log, kept):
    class Full(RunLog):
        def scalars(self, update, epoch, values):
            raise OSError("no space left")

    log.begin([Full(), kept], lambda: (1, 1))
    log.scalar("a", 1.0)
    with pytest.warns(UserWarning, match="Full cannot be written.*no space left"):
        log.release(write=True)
    log.scalar("b", 2.0)
    log.release(write=True)
    assert [call[3] for call in kept.calls] == [{"a": 1.0}, {"b": 2.0}]
