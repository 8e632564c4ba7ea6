"""The models that the laws of the step are tried on."""

from __future__ import annotations

import functools

from hypothesis import settings

import helios
from tests import zoo

MAKE = {
    "line": lambda: zoo.Line("line", lambda: helios.optim.SGD(lr=0.1, momentum=0.9)),
    "noisy": lambda: zoo.Noisy("noisy"),
    "weighted": lambda: zoo.Weighted("weighted"),
    "adversarial": lambda: zoo.Adversarial("adversarial"),
    "averaged": lambda: Averaged("averaged"),
}
MODELS = sorted(MAKE)
ENGINES = ["autograd", "func"]

few = settings(max_examples=max(settings.default.max_examples // 10, 30))
"""For laws whose every example runs a model several times: a tenth of the profile's examples."""


class Averaged(zoo.Noisy):
    """Clips its gradients and keeps an average of its parameters; one layer is frozen."""

    def setup(self, fast_init=False):
        super().setup()
        self.net[0].requires_grad_(False)
        self.optimizer = helios.optim.chain(
            clip=helios.optim.clip_by_global_norm(0.1), adamw=helios.optim.AdamW(lr=1e-2)
        )
        self.average = helios.optim.average(decay=0.9)


@functools.cache
def built(kind: str) -> helios.Model:
    """Return a model, set up; one object per kind, so that laws also hold across its uses."""
    model = MAKE[kind]()
    model.prepare(3)
    return model
