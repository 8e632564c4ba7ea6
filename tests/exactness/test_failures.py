"""T1 for runs that fail: what a hook drew before it raised is drawn again by the resumed run."""

from __future__ import annotations

import contextlib
import itertools
import random

import numpy as np
import pytest
import torch

import helios
from property_tests.fits import Data, Stopping, fit, last_content

HOOKS = [
    "on_training_start",
    "on_training_epoch_start",
    "on_training_batch_start",
    "loss",
    "on_training_batch_end",
    "should_training_stop",
    "on_validation_start",
    "on_validation_end",
    "have_metrics_improved",
    "on_training_epoch_end",
    "on_training_end",
]


class HookError(Exception):
    """What a hook of `Failing` raises."""


class Failing(Stopping):
    """Draws in every hook, into the loss, and fails in the n-th call of one of them."""

    def __init__(self, hook=None, at=0):
        super().__init__()
        self.noise = 0.0
        for name in HOOKS:
            setattr(self, name, self.wrapped(getattr(self, name), at if name == hook else 0))

    def wrapped(self, function, at):
        calls = itertools.count(1)

        def hook(*args, **kwargs):
            if function.__name__ == "loss":
                args = ((args[0][0] + 0.1 * self.noise, args[0][1]),)
            elif function.__name__ != "should_training_stop":
                self.noise = float(torch.rand(())) + random.random() + float(np.random.rand())
            if next(calls) == at:
                raise HookError
            return function(*args, **kwargs)

        return hook

    def on_training_batch_start(self, state):
        # The noise of the loss is drawn for every micro-batch: it is no state of its own.
        pass


ARGUMENTS = {
    "epoch": {"total_steps": 3, "valid_frequency": 1},
    "iteration": {
        "train_unit": "iteration",
        "total_steps": 5,
        "accumulation_steps": 2,
        "valid_frequency": 1,
        "chkpt_frequency": 2,
    },
}


@pytest.mark.parametrize("unit", ARGUMENTS)
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_fit_that_failed_in_a_hook_goes_on_as_if_it_had_not(tmp_path, hook, at, unit):
    arguments = {**ARGUMENTS[unit], "random_seed": 3}
    whole, legs = tmp_path / "whole", tmp_path / "legs"
    fit(Failing(), Data(11, 3), chkpt_root=whole, **arguments)
    with contextlib.suppress(HookError):
        fit(Failing(hook, at), Data(11, 3), chkpt_root=legs, **arguments)
    fit(Failing(), Data(11, 3), chkpt_root=legs, **arguments)
    assert helios.first_difference(last_content(whole), last_content(legs)) is None
