"""Run a failed step again, in a debugger: ``python -m helios.debug BUNDLE SCRIPT [ARGUMENTS]``.

It starts a program as ``python`` would, and takes over the fit to which the bundle belongs: that
does not train, but runs the failed step again with its own model, data and plugins, and opens the
debugger where it fails. The program ends there. Without a terminal, the traceback is printed, and
what the variables were. Fits of other models, and tests, run as they are.

Nothing but this entry does that: no environment variable, and no content of a file.
"""

from __future__ import annotations

import os
import pdb
import site
import sys
import sysconfig
import traceback
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from helios.data import DataModule
from helios.errors import CheckpointError
from helios.model import Model
from helios.trainer.crash import Crash, read_crash, type_name
from helios.trainer.fit import taken_over
from helios.trainer.program import is_fit_of, start
from helios.trainer.reproduce import fails_there, run_again, went_through
from helios.trainer.trainer import Trainer

REPRODUCED, WENT_THROUGH, UNUSABLE = 0, 1, 2
"""The exit statuses: the same error came, it did not, and it could not be tried."""

_USAGE = """\
usage: python -m helios.debug BUNDLE SCRIPT [ARGUMENTS]
       python -m helios.debug BUNDLE -m MODULE [ARGUMENTS]

BUNDLE is the file that the failed run names, <chkpt_root>/<save_name>/crashes/micro_<number>.json;
the rest is how that run was started.

exit status: 0 the step failed with the same error, 1 it did not, 2 it could not be tried
"""


def main(arguments: list[str]) -> int:
    """Run a failed step again, and return the exit status.

    Args:
        arguments: the bundle, and how to start the program.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(_USAGE)
        return 0
    if len(arguments) < 2 or (arguments[1] == "-m" and len(arguments) < 3):
        return _unusable(_USAGE.rstrip())
    path = Path(arguments[0]).absolute()
    try:
        crash = read_crash(path)
    except CheckpointError as error:
        return _unusable(str(error))
    return _Debugging(crash, path.parent.parent).run(arguments[1:])


class _Debugging:
    """One program that is run for the sake of one of its steps."""

    def __init__(self, crash: Crash, folder: Path) -> None:
        self.crash = crash
        self.folder = folder
        self.status: int | None = None
        self.others: list[str] = []

    def run(self, program: list[str]) -> int:
        """Start the program, and return the exit status."""
        try:
            with taken_over(self.take):
                problem = start(program)
            if problem is not None:
                return _unusable(problem)
        except SystemExit:
            pass
        except Exception:
            if self.status is None:
                traceback.print_exc()
        if self.status is None:
            seen = f" It came to those into {', '.join(self.others)}." if self.others else ""
            return _unusable(
                f"the program ended before it came to a fit of {self.crash.save_name!r} into "
                f"{str(self.folder)!r}.{seen} Start it as the failed run was started."
            )
        return self.status

    def take(self, trainer: Trainer, model: Model, datamodule: DataModule) -> bool:
        """Run the step again if this is its fit, and end the program; otherwise return False."""
        root = trainer.chkpt_root
        folder = None if root is None else root / model.save_name
        if model.save_name != self.crash.save_name or not is_fit_of(trainer, model, self.folder):
            self.others.append(repr(model.save_name if folder is None else str(folder)))
            _say(f"the fit of {model.save_name!r} is not the one that failed: it runs as it is")
            return False
        try:
            run_again(trainer, model, datamodule, self.crash, self.folder)
        except Exception as error:
            self.status = self.judge(trainer, error)
        else:
            _say(went_through(self.crash))
            self.status = WENT_THROUGH
        # What comes after the fit counts on a model that was trained. A thread too ends by this.
        raise SystemExit(self.status)

    def judge(self, trainer: Trainer, error: Exception) -> int:
        """Show an exception, let the user look around, and return the exit status."""
        if trainer.loop is None and isinstance(error, CheckpointError):
            return _unusable(str(error))
        traceback.print_exception(error)
        same = fails_there(trainer.loop, self.crash) and type_name(error) == self.crash.error
        where = f"{self.crash.error} in micro-batch {self.crash.micro_batch}"
        _say(f"{'this is' if same else 'this is not'} the failure on record, {where}")
        trace = error.__traceback__
        assert trace is not None
        if sys.stdin is not None and sys.stdin.isatty():
            pdb.post_mortem(trace)
        else:
            frame = innermost_frame(trace)
            code = frame.f_code
            _say(
                f"in {code.co_name}, {code.co_filename}:{frame.f_lineno}: {describe_locals(frame)}"
            )
        return REPRODUCED if same else WENT_THROUGH


def innermost_frame(trace: TracebackType) -> FrameType:
    """Return the innermost frame of code that is not a library's, or the innermost of all."""
    own = innermost = trace.tb_frame
    found = False
    for frame, _ in traceback.walk_tb(trace):
        innermost = frame
        if _is_own(frame.f_code.co_filename):
            own, found = frame, True
    return own if found else innermost


def describe_locals(frame: FrameType) -> str:
    """Return the local variables of a frame: shapes of tensors, and plain numbers.

    Args:
        frame: the frame.
    """
    parts = (f"{name} = {describe(value)}" for name, value in frame.f_locals.items())
    return ", ".join(parts) or "no local variables"


def describe(value: Any, depth: int = 2) -> str:
    """Return what a value is, without its content.

    Example:
        >>> describe({"x": torch.zeros(2, 3), "label": "a", "n": 4})
        "{'x': float32[2, 3], 'label': str, 'n': 4}"
    """
    if isinstance(value, torch.Tensor) or type(value).__module__ == "numpy":
        shape = getattr(value, "shape", None)
        if shape is not None:
            kind = str(value.dtype).removeprefix("torch.")
            return f"{kind}{list(shape)}{_not_finite(value)}"
    if isinstance(value, (bool, int, float)) or value is None:
        return repr(value)
    if type(value) in (list, tuple) and depth and len(value) <= 8:
        inside = ", ".join(describe(part, depth - 1) for part in value)
        return f"[{inside}]" if type(value) is list else f"({inside})"
    if type(value) is dict and depth and len(value) <= 8:
        inside = ", ".join(f"{k!r}: {describe(v, depth - 1)}" for k, v in value.items())
        return f"{{{inside}}}"
    if isinstance(value, (list, tuple, dict, set)):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def _not_finite(value: Any) -> str:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.is_meta:
        return ""
    count = int((~torch.isfinite(value.detach().float())).sum())
    return f" ({count} not finite)" if count else ""


def _is_own(file: str) -> bool:
    """Tell whether a file is the user's: neither helios nor an installed package nor Python."""
    if file.startswith("<"):
        return False
    path = os.path.realpath(file)
    return not any(path.startswith(folder + os.sep) for folder in _LIBRARIES)


def _libraries() -> set[str]:
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {*site.getsitepackages(), site.getusersitepackages(), os.path.dirname(__file__)}
    return {os.path.realpath(folder) for folder in folders}


_LIBRARIES = _libraries()


def _say(message: str) -> None:
    sys.stdout.write(f"helios.debug: {message}\n")
    sys.stdout.flush()


def _unusable(message: str) -> int:
    sys.stderr.write(f"helios.debug: {message}\n" if message[:5] != "usage" else message + "\n")
    sys.stderr.flush()
    return UNUSABLE


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
