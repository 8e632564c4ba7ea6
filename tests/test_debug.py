"""``python -m helios.debug``: the command that an error ends with runs that very step again."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import helios
from helios import debug

ROOT = Path(helios.__file__).parents[1]
PROMISE = "To run this very step again in a debugger"
PROGRAM = """
import argparse
import helios, torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--at", type=int, default=5)
parser.add_argument("--unit", default="iteration")
parser.add_argument("--window", type=int, default=1)
parser.add_argument("--workers", type=int, default=0)
parser.add_argument("--before", default="")
given = parser.parse_args()

class StepError(Exception):
    pass

class Line(helios.Model):
    def setup(self, fast_init=False):
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.optimizer = helios.optim.AdamW(lr=given.lr)

    def loss(self, batch):
        x, y = batch
        value = (self.net(x) - y).square().mean()
        if self.training and self.trainer.state.global_iteration == given.at:
            params = {n: p.detach() for n, p in self.named_parameters()}
            found = {"params": params, "batch": [x, y], "value": value.detach()}
            print("digest", helios.digest(found), flush=True)
            raise StepError("planned")
        return value

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.randn(3) + index, torch.randn(1)

def main():
    torch.set_num_threads(1)
    data = helios.data.from_datasets(train=Rows(), batch_size=3, num_workers=given.workers)
    for name in [*given.before.split(), "line"]:
        trainer = helios.Trainer(
            train_unit=given.unit, total_steps=8, chkpt_frequency=2, chkpt_root="runs",
            accumulation_steps=given.window, use_cpu=True, print_banner=False,
        )
        if name == "line":
            print("fitted", trainer.fit(Line(name), data))
        else:
            at, given.at = given.at, 0
            print("fitted", trainer.fit(Line(name), data))
            given.at = at

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a program, which is the current one."""
    (tmp_path / "train.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "job.py").write_text(textwrap.dedent(PROGRAM))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["untouched"])
    monkeypatch.setattr(sys, "path", ["", *sys.path[1:]])
    return tmp_path


def start(folder, command, stdin=subprocess.DEVNULL):
    """Run a command as a shell would find it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "OMP_NUM_THREADS": "1"},
        stdin=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def contents(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def lines(text, word):
    return [line for line in text.splitlines() if line.startswith(word)]


def fail(*arguments, program=("train.py",)):
    """Let the program fail in this process, and return its digest and the command it gives."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        debug.start([*program, *arguments])
    (digest,) = lines(out.getvalue(), "digest")
    (promise,) = lines(err.getvalue(), PROMISE)
    assert err.getvalue().rstrip().endswith(promise)
    command = shlex.split(promise.removeprefix(f"{PROMISE}: "))
    assert command[:3] == ["python", "-m", "helios.debug"]
    return digest, command


def test_the_printed_command_runs_as_it_stands(folder):
    failed = start(folder, ["python", "train.py", "--lr", "0.05", "--workers", "2"])
    promise = failed.stderr.splitlines()[-1]
    before = contents(folder / "runs")
    command = promise.removeprefix(f"{PROMISE}: ")
    assert command == (
        "python -m helios.debug runs/line/crashes/micro_5.json train.py --lr 0.05 --workers 2"
    )
    done = start(folder, shlex.split(command))
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout, "digest") == lines(failed.stdout, "digest") != []
    assert done.stderr.rstrip().endswith("StepError: planned")
    assert contents(folder / "runs") == before


def test_a_module_is_started_as_a_module(folder, capsys):
    digest, command = fail("--lr", "0.05", program=("-m", "package.job"))
    assert command[4:] == ["-m", "package.job", "--lr", "0.05"]
    assert debug.main(command[3:]) == debug.REPRODUCED
    assert lines(capsys.readouterr().out, "digest") == [digest]


def test_on_a_terminal_the_debugger_stands_where_it_failed(folder):
    pty = pytest.importorskip("pty")
    _, command = fail()
    terminal, stdin = pty.openpty()
    try:
        os.write(terminal, b"p x.shape, type(value)\nq\n")
        done = start(folder, command, stdin)
    finally:
        os.close(terminal)
        os.close(stdin)
    assert done.returncode == 0, done.stderr
    assert "(torch.Size([3, 3]), <class 'torch.Tensor'>)" in done.stdout


CASES = {
    "updates": [],
    "updates-windows": ["--window", "3"],
    "epochs": ["--unit", "epoch", "--at", "6"],
    "epochs-windows": ["--unit", "epoch", "--window", "3", "--at", "7"],
    "first": ["--at", "1"],
    "workers": ["--workers", "2"],
}


@pytest.mark.parametrize("case", CASES)
def test_the_step_fails_on_the_bits_of_the_run(folder, capsys, case):
    digest, command = fail(*CASES[case])
    before = contents(folder / "runs")
    assert debug.main(command[3:]) == debug.REPRODUCED
    shown = capsys.readouterr()
    assert lines(shown.out, "digest") == [digest]
    assert shown.err.rstrip().endswith("StepError: planned")
    assert contents(folder / "runs") == before


def test_without_a_terminal_the_variables_of_the_users_frame_are_shown(folder, capsys):
    _, command = fail()
    debug.main(command[3:])
    (line,) = lines(capsys.readouterr().out, "helios.debug: in loss, ")
    assert f"{folder / 'train.py'}:" in line
    assert "x = float32[3, 3], y = float32[3, 1], value = float32[]" in line


def test_the_program_ends_at_the_fit(folder, capsys):
    _, command = fail()
    debug.main(command[3:])
    assert "fitted" not in capsys.readouterr().out


def test_a_step_that_goes_through_has_the_status_1(folder, capsys):
    _, command = fail()
    assert debug.main([*command[3:], "--at", "7"]) == debug.WENT_THROUGH
    assert "micro-batch 5 (update 5) went through this time" in capsys.readouterr().out


def test_another_failure_has_the_status_1(folder, capsys):
    _, command = fail("--at", "6")
    assert debug.main([*command[3:], "--at", "5"]) == debug.WENT_THROUGH
    shown = capsys.readouterr()
    assert "this is not the failure on record, __main__.StepError in micro-batch 6" in shown.out
    assert "This is not the failure on record" in shown.err


def test_fits_of_other_models_run_as_they_are(folder, capsys):
    digest, command = fail("--before", "other")
    before = contents(folder / "runs" / "line")
    assert debug.main(command[3:]) == debug.REPRODUCED
    shown = capsys.readouterr().out
    assert "the fit of 'other' is not the one that failed: it runs as it is" in shown
    assert lines(shown, "digest") == [digest]
    assert contents(folder / "runs" / "line") == before


def test_a_fit_into_another_folder_is_another_fit(folder, capsys):
    _, command = fail()
    (folder / "runs").rename(folder / "moved")
    moved = command[3].replace("runs/", "moved/")
    before = contents(folder / "moved")
    assert debug.main([moved, *command[4:], "--at", "0"]) == debug.UNUSABLE
    assert "ended before it came to a fit of 'line' into" in capsys.readouterr().err
    assert contents(folder / "moved") == before


def test_fits_train_again_once_the_command_is_done(folder, capsys):
    _, command = fail()
    debug.main(command[3:])
    capsys.readouterr()
    debug.start(["train.py", "--at", "0"])
    assert "fitted True" in capsys.readouterr().out


# Python ends a thread by SystemExit without a word; only pytest reports it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fit_in_a_thread_is_taken_over_too(folder, capsys):
    source = (folder / "train.py").read_text()
    threaded = (
        "    import threading\n    t = threading.Thread(target=main)\n    t.start()\n    t.join()"
    )
    (folder / "train.py").write_text(source.removesuffix("    main()\n") + threaded)
    digest, command = fail()
    assert debug.main(command[3:]) == debug.REPRODUCED
    shown = capsys.readouterr().out
    assert lines(shown, "digest") == [digest]
    assert "fitted" not in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage:"),
        (["runs/line/crashes/micro_5.json"], "usage:"),
        (["runs/line/crashes/micro_5.json", "-m"], "usage:"),
        (["runs/line/crashes/micro_6.json", "train.py"], "micro_6.json"),
        (["train.py", "train.py"], "cannot be read as the record of a failed step"),
        (["runs/line/crashes/micro_5.json", "no.py"], "there is no script 'no.py'"),
        (["runs/line/crashes/micro_5.json", "-m", "no.such"], "there is no module 'no.such'"),
        (["runs/line/crashes/micro_5.json", "empty.py"], "the program ended before"),
        (["runs/line/crashes/micro_5.json", "train.py", "--no"], "the program ended before"),
        (["runs/line/crashes/micro_5.json", "broken.py"], "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_tried_has_the_status_2(folder, capsys, arguments, said):
    fail()
    (folder / "empty.py").write_text("")
    (folder / "broken.py").write_text("1 / 0")
    assert debug.main(arguments) == debug.UNUSABLE
    assert said in capsys.readouterr().err


def test_a_checkpoint_that_is_gone_has_the_status_2(folder, capsys):
    _, command = fail()
    (folder / "runs" / "line" / "line_epoch_1_iter_4.pth").unlink()
    assert debug.main(command[3:]) == debug.UNUSABLE
    assert "there is no checkpoint at" in capsys.readouterr().err


def test_help_is_shown(capsys):
    assert debug.main(["--help"]) == 0
    assert "python -m helios.debug BUNDLE SCRIPT" in capsys.readouterr().out


def test_a_value_is_described_by_its_shape():
    x = torch.tensor([1.0, float("nan"), float("inf")])
    assert debug.describe(x) == "float32[3] (2 not finite)"
    assert debug.describe(x.numpy()) == "float32[3]"
    assert debug.describe([x[:1], None, True, 0.5, "text"]) == "[float32[1], None, True, 0.5, str]"
    assert debug.describe((1,) * 9) == "tuple of 9"
    assert debug.describe({"a": [{"b": [1]}]}) == "{'a': [dict of 1]}"
    assert debug.describe(object()) == "object"
