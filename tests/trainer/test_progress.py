"""The terminal: a bar and a table on a real one, lines in a pipe, nothing where there is none."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from helios.functional.state import TrainingState
from helios.trainer import progress as module
from helios.trainer.progress import Progress
from tests import zoo
from tests.trainer.runs import Batches, run

SCRIPT = """
import sys
import helios
from tests import zoo
from tests.trainer.runs import Batches, run

run(
    sys.argv[1], zoo.Noisy(), Batches(zoo.classes(5), zoo.classes(2)), unit="epoch",
    steps=int(sys.argv[2]), valid_frequency=1, enable_progress_bar=True, random_seed=1,
)
"""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_a_terminal(folder, steps):
    """Run the script with standard error on a pseudo-terminal, and return what it shows."""
    (folder / "script.py").write_text(SCRIPT)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    shown = []

    def read():
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # the other end was closed
                return
            if not data:
                return
            shown.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    code = [sys.executable, str(folder / "script.py"), str(folder / "c"), str(steps)]
    done = subprocess.run(code, stderr=theirs, check=False)
    os.close(theirs)
    reader.join()
    os.close(ours)
    assert done.returncode == 0
    return b"".join(shown).decode()


def rows(shown):
    """Return the lines that stay above the bar."""
    lines = [line.split("\r")[-1] for line in shown.replace("\r\n", "\n").split("\n")]
    return [line.split() for line in lines if line.strip() and "update/s" not in line]


def test_a_terminal_shows_a_table_and_a_resumed_one_goes_on(tmp_path):
    shown = on_a_terminal(tmp_path, 2)
    header, *table = rows(shown)
    assert " ".join(header) == (
        "epoch update train loss train accuracy valid loss valid accuracy best time"
    )
    assert [row[:2] for row in table] == [["1", "5"], ["2", "10"]]
    assert table[0][-2:] == ["*", "00:00"] or table[0][-2] == "*"
    again = on_a_terminal(tmp_path, 4)
    assert [row[:2] for row in rows(again)[1:]] == [["3", "15"], ["4", "20"]]
    frames = re.findall(r"(\d+)/20 \[", again)
    assert (frames[0], frames[-1]) == ("10", "20")
    assert "epoch 4" in again
    assert "accuracy=" in again


def test_a_pipe_gets_lines_without_control_characters(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "c"), "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", done.stderr)
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "epoch 1  update 5/10  train",
        "epoch 1  update 5/10  valid",
        "epoch 2  update 10/10  train",
        "epoch 2  update 10/10  valid",
    ]
    assert "accuracy" in done.stderr
    assert done.stderr.splitlines()[1].endswith(" (best)")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stream_that_is_closed_during_the_run_ends_nothing(monkeypatch, terminal):
    class Closed(Terminal):
        def isatty(self):
            return terminal

        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Closed())
    data = Batches(zoo.classes(5), zoo.classes(2))
    run(None, zoo.Noisy(), data, valid_frequency=2, print_frequency=1, enable_progress_bar=True)


@pytest.mark.parametrize("closed", [True, False])
def test_without_a_standard_error_nothing_breaks(monkeypatch, closed):
    stream = None
    if closed:
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr("sys.stderr", stream)
    data = Batches(zoo.classes(5), zoo.classes(2))
    run(None, zoo.Noisy(), data, valid_frequency=2, print_frequency=1, enable_progress_bar=True)


def test_the_speed_is_that_of_this_process():
    terminal = Terminal()
    progress = Progress(total=10**6, done=10**6 - 2, stream=terminal)
    progress._bar.start_t -= 100  # as if it had run for so long
    progress.advance(TrainingState(current_iteration=10**6 - 1))
    assert progress._bar.format_dict["initial"] == 10**6 - 2
    progress._bar._ema_dt = progress._bar._ema_dn = lambda *args: 0
    rate = (progress._bar.n - progress._bar.initial) / 100
    assert rate == 0.01
    progress.close()
    assert re.search(r"9\d\.\d\ds/update|10\d\.\d\ds/update", terminal.getvalue().split("\r")[-1])


def test_a_long_validation_has_a_bar_of_its_own_that_goes_away(monkeypatch):
    monkeypatch.setattr(module, "_DELAY", 0.0)
    terminal = Terminal()
    progress = Progress(total=9, done=0, stream=terminal)
    assert list(progress.watched("valid", iter("abc"), 3)) == ["a", "b", "c"]
    progress.close()
    assert "valid:   0%" in terminal.getvalue()
    assert "3/3" not in terminal.getvalue().split("\r")[-1]


def test_a_short_validation_has_none():
    terminal = Terminal()
    progress = Progress(total=9, done=0, stream=terminal)
    assert list(progress.watched("valid", iter("abc"), 3)) == ["a", "b", "c"]
    assert "valid" not in terminal.getvalue()
    progress.close()


def test_a_validation_that_is_never_judged_is_shown_at_the_end():
    stream = io.StringIO()
    progress = Progress(total=None, done=0, stream=stream)
    progress.report(TrainingState(current_iteration=3, global_epoch=1), "valid", {"loss": 1.0})
    assert stream.getvalue() == ""
    progress.close()
    assert stream.getvalue() == "epoch 1  update 3  valid: loss 1\n"


def test_the_script_is_run_with_the_package_of_these_tests():
    assert Path(module.__file__).parents[2] == Path(__file__).parents[2]
