import numpy as np
import pytest

from benchmarks.agreement import disagreement
from benchmarks.contestants import CONTESTANTS
from benchmarks.rounds import Run

FIRST = np.zeros(4, np.float32)
EARLY = np.ones(4, np.float32)
LAST = np.full(4, 2, np.float32)


def ran(folder, *, first=FIRST, early=EARLY, last=LAST, before=2.0, loss=1.0, saves=5, logs=1):
    folder.mkdir()
    np.savez(folder / "parameters.npz", first=first, early=early, last=last)
    done = {"before": before, "loss": loss, "saves": saves, "logs": logs}
    return Run(folder=folder, done=done)


@pytest.fixture
def differs(tmp_path):
    def compare(name, *, full=False, **differences):
        baseline, own = ran(tmp_path / "baseline"), ran(tmp_path / "own", **differences)
        return disagreement(CONTESTANTS[name], own, baseline, full, total=2500)[0]

    return compare


def test_equal_work_is_accepted(differs):
    assert differs("helios", full=True) is None


@pytest.mark.parametrize("at", ["early", "last"])
def test_one_other_bit_is_refused_where_bits_must_be_equal(differs, at):
    values = {"early": EARLY, "last": LAST}[at].copy()
    values[3] = np.nextafter(values[3], np.float32(9))
    assert differs("helios", **{at: values}) == "its parameters are not those of the baseline"


def test_rounding_errors_are_accepted_of_other_kernels(differs):
    early = EARLY * np.float32(1 + 5e-5)
    assert differs("helios-fused", early=early, last=LAST * 3, loss=1.005) is None


def test_more_than_rounding_errors_is_refused(differs):
    assert "its first updates are" in differs("helios-fused", early=EARLY * np.float32(1.001))


def test_another_loss_at_the_end_is_refused(differs):
    assert "its last loss is" in differs("helios-fused", loss=1.02)


def test_a_loss_that_is_not_a_number_is_refused(differs):
    assert "its last loss is" in differs("helios-fused", loss=float("nan"))


def test_other_first_weights_are_refused(differs):
    assert differs("helios-fused", first=FIRST - 1) == "it started from other weights"


def test_missing_checkpoints_and_logs_are_refused_with_everything_on(differs, tmp_path):
    assert differs("helios", full=True, saves=4) == "it wrote 4 checkpoints, not 5"


def test_missing_logs_are_refused_with_everything_on(differs):
    assert differs("helios", full=True, logs=0) == "it wrote nothing for TensorBoard"


def test_a_baseline_that_learns_nothing_proves_nothing(tmp_path):
    baseline, own = ran(tmp_path / "baseline", before=1.0), ran(tmp_path / "own")
    why, _ = disagreement(CONTESTANTS["helios-fused"], own, baseline, False, total=2500)
    assert "has not fallen" in why
