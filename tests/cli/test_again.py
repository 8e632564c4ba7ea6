"""``helios diff``, ``helios replay`` and ``helios verify --recompute``, on runs of one program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

import helios
from helios.cli.main import main
from helios.trainer.flight import flight_record
from helios.trainer.flight.record import NAME
from helios.trainer.store import read_checkpoint, stored_state

PROGRAM = """\
import argparse
import torch
from torch import nn
import helios

parser = argparse.ArgumentParser()
parser.add_argument("root")
parser.add_argument("--changed-from", type=int, default=99)
parser.add_argument("--seed", type=int, default=5)
given = parser.parse_args()


class Net(helios.Model):
    def setup(self, fast_init=False):
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
        self.optimizer = helios.optim.AdamW(lr=0.05)

    def loss(self, batch):
        x, y = batch
        if self.training and self.trainer.state.current_iteration >= given.changed_from:
            x = x + 0.01
        return (self.net(x) - y).square().mean()


print("the program runs")
x = torch.randn(22, 3, generator=torch.Generator().manual_seed(0))
data = helios.data.from_datasets(train=(x, x[:, :1]), valid=(x, x[:, :1]), batch_size=4)
trainer = helios.Trainer(
    train_unit="iteration", total_steps=12, accumulation_steps=2, valid_frequency=5,
    chkpt_frequency=4, chkpt_root=given.root, random_seed=given.seed, use_cpu=True,
    print_banner=False, flight_recorder=True,
)
trainer.fit(Net("net"), data)
print("the program ends")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of one program: two that are the same, one that parts at update 7, another seed."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "train.py").write_text(PROGRAM)
    runs = {"a": [], "same": [], "other": ["--changed-from", "7"], "seed": ["--seed", "6"]}
    for name, options in runs.items():
        subprocess.run(
            [sys.executable, "train.py", name, *options],
            cwd=folder,
            check=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def called(capsys, *arguments):
    """Return the status and the output of a command, as JSON if that was asked for."""
    status = main(list(arguments))
    out, err = capsys.readouterr()
    return status, json.loads(out) if "--json" in arguments else out + err


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_equal_runs_are_equal(here, capsys):
    status, found = called(capsys, "diff", "a/net", "same/net", "--json")
    assert status == 0
    assert (found["compared"], found["parted"], found["differing"]) == (12, None, None)
    assert found["checkpoints"] == 3


def test_the_first_update_that_differs_is_named(here, capsys):
    status, found = called(capsys, "diff", "a/net", "other/net", "--json")
    assert status == 1
    assert (found["parted"]["update"], found["parted"]["what"]) == (7, ["loss", "norm"])
    assert found["parted"]["a"]["loss"] == flight_record("a/net").at(7).loss
    assert (found["equal_after"], found["differing"]["after"]) == (4, 8)
    assert found["differing"]["first"].startswith("carry/params/net.")


def test_without_records_the_checkpoints_are_compared(here, capsys):
    (here / "a" / "net" / NAME).unlink()
    status, text = called(capsys, "diff", "a/net", "other/net")
    assert status == 1
    assert "no flight record in a/net: checkpoints alone" in text
    assert "states: they part after update 4 and not after update 8" in text


def test_another_seed_is_shown_as_a_cause(here, capsys):
    status, text = called(capsys, "diff", "a/net", "seed/net")
    assert status == 1
    assert "update 1 is the first that differs, in samples, loss" in text
    assert "seed: 5 and 6" in text


def test_what_cannot_be_compared_has_the_status_2(here, capsys):
    for path in (here / "a" / "net").glob("net_*"):
        path.unlink()
    assert called(capsys, "diff", "a/net", "same/net")[0] == 2
    assert called(capsys, "diff", "nowhere", "same/net")[0] == 2
    assert called(capsys, "diff", "train.py", "same/net/net_epoch_2_iter_4.pth")[0] == 2


def newest(run, update):
    [path] = (run / "net").glob(f"net_epoch_*_iter_{update}.pth")
    return path


def test_states_and_checkpoints_are_compared_by_their_bits(here, capsys):
    a, other = newest(here / "a", 8), newest(here / "other", 8)
    assert called(capsys, "diff", str(a), str(newest(here / "same", 8)))[0] == 0
    state = stored_state(read_checkpoint(other))
    (here / "state.bin").write_bytes(state.to_bytes())
    assert called(capsys, "diff", str(other), "state.bin")[0] == 0
    assert called(capsys, "diff", str(a), "state.bin")[0] == 1


@pytest.mark.parametrize("step", [1, 4, 7, 8, 12])
def test_a_state_is_computed_again_with_its_record(here, capsys, step):
    before = files(here)
    options = ["--json", "--output", "state.bin", "--script", "train.py", "a"]
    status, found = called(capsys, "replay", "a/net", "--step", str(step), *options)
    assert status == 0
    assert (found["record"], found["counters"]["current_iteration"]) == ([], step)
    state = helios.TrainingState.from_bytes((here / "state.bin").read_bytes())
    assert helios.digest(state) == found["digest"]
    # Validations come after updates 5 and 10, and the first checkpoint after 4.
    begun = {1: None, 4: None, 7: 4, 8: 4, 12: 8}[step]
    expected = None if begun is None else newest(here / "a", begun).name
    assert found["begun_at"] == expected
    assert found["same_state"] is (True if step % 4 == 0 else None)
    (here / "state.bin").unlink()
    assert files(here) == before


def test_a_program_that_was_changed_is_found_out(here, capsys):
    options = ["--script", "train.py", "a", "--changed-from", "7"]
    status, text = called(capsys, "replay", "a/net", "--step", "8", *options)
    assert status == 1
    assert "flight record: differs in loss, norm" in text
    assert f"{newest(here / 'a', 8).name}: another state" in text


def test_the_other_run_parts_where_its_change_begins(here, capsys):
    for run, options in (("a", []), ("other", ["--changed-from", "7"])):
        for step in (6, 7):
            output = ["--output", f"{run}{step}.bin", "--script", "train.py", run, *options]
            assert called(capsys, "replay", f"{run}/net", "--step", str(step), *output)[0] == 0
    assert called(capsys, "diff", "a6.bin", "other6.bin")[0] == 0
    assert called(capsys, "diff", "a7.bin", "other7.bin")[0] == 1


def test_what_the_program_prints_is_no_part_of_the_output(here, capsys):
    assert main(["replay", "a/net", "--step", "2", "--script", "train.py", "a"]) == 0
    out, err = capsys.readouterr()
    assert "the program" not in out
    assert "the program runs" in err
    assert "the program ends" not in err


REFUSED = [
    (["--step", "2"], "received no --script"),
    (["--step", "0", "--script", "train.py", "a"], "expected an update, from 1 on"),
    (["--step", "13", "--script", "train.py", "a"], "does not come to update 13"),
    (["--step", "2", "--script", "train.py", "b"], "before it came to a fit into"),
    (["--step", "2", "--script", "none.py", "a"], "there is no script"),
    (["--step", "2", "--script", "-m", "no_such_module"], "there is no module"),
    (["--step", "2", "--script", "train.py", "a", "--seed", "6"], "the run has 5"),
    (["--step", "2", "--output", "train.py", "--script", "train.py", "a"], "is there already"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_replayed_has_the_status_2(here, capsys, arguments, message):
    status, text = called(capsys, "replay", "a/net", *arguments)
    assert status == 2
    assert message in text


def test_a_run_is_verified_by_computing_it_again(here, capsys):
    options = ["--recompute", "--script", "train.py", "a"]
    status, text = called(capsys, "verify", "a/net", *options)
    assert status == 0
    assert "2 checkpoints: the same bits" in text
    assert "8 flight records: the same" in text


@pytest.mark.parametrize("recorded", [True, False])
def test_a_run_that_does_not_come_to_its_states_again_is_wrong(here, capsys, recorded):
    if not recorded:
        (here / "a" / "net" / NAME).unlink()
    options = ["--json", "--recompute", "--script", "train.py", "a", "--changed-from", "7"]
    # What follows --script is the program's, so --json comes first.
    status, found = called(capsys, "verify", "a/net", *options)
    assert status == 1
    assert found["record_differs"] == (7 if recorded else None)
    assert found["state_differs"] == (None if recorded else 8)


def test_recomputing_needs_the_program_and_a_program_needs_recomputing(here, capsys):
    assert called(capsys, "verify", "a/net", "--recompute")[0] == 2
    assert called(capsys, "verify", "a/net", "--script", "train.py", "a")[0] == 2


def test_ctrl_c_ends_a_command_with_a_line(here, capsys, monkeypatch):
    from helios.cli import verify

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "survey", interrupted)
    assert main(["verify", "a/net"]) == 130
    out, err = capsys.readouterr()
    assert (out, err) == ("", "helios: interrupted\n")
