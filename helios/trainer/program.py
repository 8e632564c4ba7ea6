"""Starting a program as ``python`` would, to do something else in the place of one of its fits."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from helios.data import DataModule
from helios.model.model import Model
from helios.trainer.fit import taken_over
from helios.trainer.trainer import Trainer


def start(program: Sequence[str]) -> str | None:
    """Run a program as ``python`` would; return what is wrong with its name, if something is.

    Args:
        program: a script, or ``-m`` and a module, and its arguments.
    """
    if program[0] == "-m":
        if len(program) < 2:
            return "received -m without a module"
        sys.argv = list(program[1:])  # runpy puts the file in the place of the name
        found = None
        with contextlib.suppress(ImportError, ValueError):
            found = importlib.util.find_spec(program[1])
        if found is None:
            return f"there is no module {program[1]!r}"
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
        return None
    script = os.path.abspath(program[0])
    if not os.path.exists(script):
        return f"there is no script {program[0]!r}"
    sys.argv = list(program)
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    runpy.run_path(script, run_name="__main__")
    return None


def is_fit_of(trainer: Trainer, model: Model, folder: Path) -> bool:
    """Tell whether a fit saves into a folder."""
    root = trainer.chkpt_root
    own = None if root is None else root / model.save_name
    return own is not None and os.path.realpath(own) == os.path.realpath(folder)


def at_fit_of(
    folder: Path, program: Sequence[str], act: Callable[[Trainer, Model, DataModule], None]
) -> str | None:
    """Start a program, and do something in the place of its fit into a folder; it ends there.

    Other fits that come before run as they are.

    Args:
        folder: the folder of the run's checkpoints.
        program: how the run was started.
        act: what to do.

    Returns:
        None once that is done; else what kept it from being done.

    Raises:
        Exception: what ``act`` raises, and what the program raises before it comes to it.
    """
    failures: list[BaseException | None] = []
    others: list[str] = []

    def take(trainer: Trainer, model: Model, datamodule: DataModule) -> bool:
        if not is_fit_of(trainer, model, folder):
            others.append(repr(model.save_name))
            return False
        failure: BaseException | None = None
        try:
            act(trainer, model, datamodule)
        except BaseException as error:
            failure = error
        failures.append(failure)
        # What comes after the fit counts on a model that was trained.
        raise SystemExit(0)

    argv, path = sys.argv, list(sys.path)
    problem = None
    try:
        with taken_over(take):
            problem = start(program)
    except SystemExit:
        pass
    finally:
        sys.argv, sys.path[:] = argv, path
    if failures:
        if failures[0] is not None:
            raise failures[0]
        return None
    seen = f" It came to those of {', '.join(others)}." if others else ""
    return problem or (
        f"the program ended before it came to a fit into {str(folder)!r}.{seen} Start it as the "
        "run was started, from the same folder"
    )
