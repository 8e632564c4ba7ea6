"""The example under ``torchrun``: stopped on two ranks, it goes on on four, and on one."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Notes the pixels of every sample in every training loss, and runs the example.
WATCHED = """
import os, sys
from helios.examples import digits

loss, noted = digits.Digits.loss, open(f"{os.environ['NOTES']}-{os.environ.get('RANK', 0)}", "a")

def watched(model, batch):
    if model.training:
        micro_batch = model.trainer.state.global_iteration
        for image in batch[0]:
            noted.write(f"{micro_batch} {hash(image.numpy().tobytes())}\\n")
        noted.flush()
    return loss(model, batch)

digits.Digits.loss = watched
digits.main(sys.argv[1:])
"""


def run(folder, notes, epochs, ranks, stop_after=None):
    """Run the example; with ``stop_after``, until it has noted so many lines on rank 0."""
    script = folder / "watched.py"
    script.write_text(WATCHED)
    how = [sys.executable]
    if ranks > 1:
        how += ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        how += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NOTES": str(folder / notes)}
    environment |= {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    command = [*how, str(script), "--cpu", "--epochs", str(epochs), "--runs", str(folder / "runs")]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if stop_after is not None:
        noted = folder / f"{notes}-0"
        while not noted.exists() or len(noted.read_text().splitlines()) < stop_after:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert (process.returncode == 0) is (stop_after is None), output
    return output


def samples(folder, *notes):
    """Return which samples every micro-batch had, over all ranks."""
    found = collections.defaultdict(collections.Counter)
    for name in notes:
        for path in folder.glob(f"{name}-*"):
            for line in path.read_text().splitlines():
                micro_batch, sample = line.split()
                found[int(micro_batch)][sample] += 1
    return found


@pytest.mark.nightly
@pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="imports torch a dozen times"
)
def test_the_samples_of_every_update_are_those_of_one_rank(tmp_path):
    one, several = tmp_path / "one", tmp_path / "several"
    one.mkdir()
    several.mkdir()
    whole = run(one, "one", 5, ranks=1)
    stopped = run(several, "two", 5, ranks=2, stop_after=1000)
    assert "The run was stopped by SIGTERM. Its state is saved" in stopped
    run(several, "four", 4, ranks=4)
    last = run(several, "last", 5, ranks=1)
    expected = samples(one, "one")
    assert len(expected) == 5 * 40
    assert samples(several, "two", "four", "last") == expected
    for output in (whole, last):
        assert "Test accuracy: 9" in output
