"""Steps that say where they fail: anomaly mode, and operators that are not deterministic."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

import torch

from helios.errors import NonFiniteError
from helios.functional import rng
from helios.functional.state import TrainingState
from helios.functional.trainable import custom_step
from helios.trainer.culprit import from_traceback, in_backward, in_forward, suppressed

if TYPE_CHECKING:
    from helios.functional.step import Step
    from helios.trainer.trainer import Trainer

_NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_NAN = re.compile(r"Function '(\w+)' returned nan values")
_DETECTED = re.compile(r"Error detected in \w+\.")
_ADVICE = (
    "Use another operation there, or give the trainer enable_deterministic=False; two runs may "
    "then differ in their bits on this device."
)
_ADVICE_CUBLAS = (
    "cuBLAS reads CUBLAS_WORKSPACE_CONFIG once a process, when it is first used. The trainer sets "
    "it for a fit, and cuBLAS was used before: set CUBLAS_WORKSPACE_CONFIG=:4096:8 where the "
    "process is started."
)


def watched(trainer: Trainer, step: Step, model: Any) -> Any:
    """Return a step that names the operator it fails in, or the step itself.

    It is wrapped under ``detect_anomaly`` and ``enable_deterministic`` alone, so that nothing is
    asked for each micro-batch otherwise.
    """
    if not (trainer.detect_anomaly or trainer.enable_deterministic):
        return step
    return Watched(step, model, anomaly=trainer.detect_anomaly, again=not trainer.ranks.several)


class Watched:
    """A step that adds to an exception what is known of where it comes from.

    Args:
        step: computes, with the bits that it has by itself.
        model: whose step it is.
        anomaly: whether torch's anomaly mode is on in it.
        again: whether a micro-batch that failed may be run again, to find out more; not where
            several ranks would have to.

    Law:
        Its states have the bits of the step's own (``tests/trainer/test_anomaly.py``).
    """

    def __init__(self, step: Step, model: Any, *, anomaly: bool, again: bool) -> None:
        self._step = step
        self._model = model
        self._anomaly = anomaly
        self._again = again and custom_step(model) is None

    def compute(self, state: TrainingState, batch: Any, *, donate: bool = False) -> TrainingState:
        """Run one micro-batch; see `Step.compute`."""
        told: list[str] = []
        try:
            with _anomalies(told) if self._anomaly else contextlib.nullcontext():
                return self._step.compute(state, batch, donate=donate)
        except Exception as error:
            self._explain(error, state, batch, told)
            raise

    def _explain(self, error: Exception, state: TrainingState, batch: Any, told: list[str]) -> None:
        def seed() -> None:
            rng.seed_generators(rng.train_key(state.seed, state.global_iteration))

        culprit = None
        if _NOT_DETERMINISTIC.search(str(error)):
            with suppressed():
                name_operator(error, self._model)
            if self._again and not _is_named(error):
                with suppressed():
                    culprit = in_backward(self._model, batch, seed, check_nan=False)
                if culprit is not None:
                    add_operator(error, f"the backward pass of {culprit}")
            return
        if not self._anomaly:
            return
        place = (
            f"micro-batch {state.global_iteration} (epoch {state.global_epoch}, batch "
            f"{state.dataset_iter} of it)"
        )
        if self._again and (_NAN.search(str(error)) or isinstance(error, NonFiniteError)):
            with suppressed():
                for what, origin in in_forward(self._model, batch, seed).items():
                    error.add_note(f"In the forward of {place} {what} arose first in {origin}")
        if _NAN.search(str(error)):
            with suppressed():
                if self._again:
                    culprit = in_backward(self._model, batch, seed, check_nan=True)
            if culprit is not None:
                error.add_note(f"In {place} the gradient became NaN in {culprit}")
            for message in told:
                error.add_note(f"In {place}: {message}")


@contextlib.contextmanager
def operators_named(trainer: Trainer, model: Any) -> Iterator[None]:
    """Add to an exception which module called the operator that is not deterministic.

    That of a step has it already; those of validations, tests and hooks get it here.
    """
    try:
        yield
    except Exception as error:
        if trainer.enable_deterministic and not _is_named(error):
            with suppressed():
                name_operator(error, model)
        raise


def name_operator(error: Exception, model: Any) -> None:
    """Say in an exception about an operator that is not deterministic where it was called."""
    text = str(error)
    found = _NOT_DETERMINISTIC.search(text)
    if found is None and _CUBLAS not in text:
        return
    culprit = from_traceback(error.__traceback__, model, found[1] if found else "cuBLAS")
    if culprit is not None:
        add_operator(error, str(culprit))


def add_operator(error: Exception, culprit: str) -> None:
    """Add the note that names an operator that is not deterministic, and what to do about it."""
    advice = _ADVICE_CUBLAS if _CUBLAS in str(error) else _ADVICE
    error.add_note(f"{_HEAD}{culprit}. {advice}")


_HEAD = "Not deterministic: "


def _is_named(error: Exception) -> bool:
    return any(note.startswith(_HEAD) for note in getattr(error, "__notes__", ()))


@contextlib.contextmanager
def _anomalies(told: list[str]) -> Iterator[None]:
    """Turn on anomaly mode, and keep what it warns of; what others warn of is passed on."""
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
        show = warnings.showwarning

        def note(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if _DETECTED.match(str(message)):
                told.append(str(message).split(" (Triggered internally")[0])
            else:
                show(message, category, filename, lineno, file, line)

        warnings.filterwarnings("always", message="Error detected in")
        warnings.showwarning = note
        yield
