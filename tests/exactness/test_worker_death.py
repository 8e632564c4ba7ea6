"""S3: a worker that is killed, or raises, ends the run by an error that names the batch, no hang.

What was trained before it is saved, and the run goes on from there with every bit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

import helios
from helios.errors import DataError
from property_tests.fits import last_content
from tests.zoo import Augmented, Noisy

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has other signals")

SAMPLES, BATCH = 11, 3
_PATIENCE = 60  # seconds after which a fit has hung


class SampleError(Exception):
    """What a dataset raises."""


class Mortal(Augmented):
    """Dies, or raises, where one sample is read for the n-th time over all processes."""

    def __init__(self, marks: Path, how: str, index: int, time: int) -> None:
        super().__init__(SAMPLES)
        self.marks, self.how, self.index, self.time = marks, how, index, time

    def __getitem__(self, index):
        if index == self.index and self.how:
            read = len(list(self.marks.iterdir()))
            (self.marks / str(read)).touch()
            if read + 1 == self.time:
                if self.how == "raise":
                    raise SampleError("a bad sample")
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Data(helios.DataModule):
    def __init__(self, dataset, workers):
        self._train, self._workers = dataset, workers

    def setup(self):
        params = {"batch_size": BATCH, "shuffle": True, "num_workers": self._workers}
        self._train_dataset = self._create_dataset(self._train, params)
        self._valid_dataset = self._create_dataset(Augmented(5), {"batch_size": 3})


@pytest.fixture(autouse=True)
def alarm():
    """Fail instead of hanging."""

    def late(number, frame):
        raise TimeoutError("the fit hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(_PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def fit(root, dataset, workers):
    torch.set_num_threads(1)  # the bits depend on it
    trainer = helios.Trainer(
        train_unit="iteration",
        total_steps=11,
        valid_frequency=2,
        accumulation_steps=1,
        random_seed=5,
        use_cpu=True,
        print_banner=False,
        chkpt_root=root,
    )
    trainer.train_exceptions.append(Exception)
    trainer.fit(Noisy(), Data(dataset, workers))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    fit(root, Augmented(SAMPLES), 0)
    return last_content(root)


@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize("index", [0, 4, 8])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_whose_worker_is_killed_says_which_batch_and_goes_on(
    tmp_path, whole, workers, index, time
):
    (marks := tmp_path / "marks").mkdir()
    mortal = Mortal(marks, "die", index, time)
    with pytest.raises(
        DataError, match=r"worker \d was ended by SIGKILL while batch \d of epoch \d .*of the indic"
    ):
        fit(tmp_path / "runs", mortal, workers)
    fit(tmp_path / "runs", mortal, workers)
    assert helios.first_difference(last_content(tmp_path / "runs"), whole) is None


@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize("index", [0, 4])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_run_whose_sample_raises_says_which_batch_and_goes_on(
    tmp_path, whole, workers, index, time
):
    (marks := tmp_path / "marks").mkdir()
    mortal = Mortal(marks, "raise", index, time)
    with pytest.raises(SampleError, match="a bad sample") as failure:
        fit(tmp_path / "runs", mortal, workers)
    (note,) = [note for note in failure.value.__notes__ if note.startswith("while batch")]
    assert f" {index}" in note.replace("[", "[ ").split("indices")[1].replace("]", "").replace(
        ",", ""
    )
    fit(tmp_path / "runs", mortal, workers)
    assert helios.first_difference(last_content(tmp_path / "runs"), whole) is None


def test_a_worker_that_is_killed_again_and_again_only_delays_the_run(tmp_path, whole):
    (marks := tmp_path / "marks").mkdir()
    for time in (1, 2, 3, 4):
        with contextlib.suppress(DataError):
            fit(tmp_path / "runs", Mortal(marks, "die", 4, time), 2)
    fit(tmp_path / "runs", Augmented(SAMPLES), 2)
    assert helios.first_difference(last_content(tmp_path / "runs"), whole) is None
