"""The optimizers of torch by name, each with torch's options and defaults.

Every function here takes what the class of its name takes, without the parameters, and returns a
`TorchOptimizer`. ``help(helios.optim.AdamW)`` shows the options.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch

from helios.optim.torch_optimizer import LearningRate, TorchOptimizer


class NamedOptimizer(Protocol):
    """What each name of this module is: a function of the options of one class.

    Args:
        lr: the learning rate, or a function that gives it for the number of updates completed.
        options: the other options of the class, by name.
    """

    def __call__(self, lr: LearningRate = ..., **options: Any) -> TorchOptimizer:
        """Return the optimizer with these options."""
        ...


_DOC = """{summary}.

Args:
    lr: the learning rate, or a function that gives it for the number of updates completed.
    options: the other options of ``torch.optim.{name}``, with its defaults.

Raises:
    TypeError: if there is no such option; the message lists those there are.
    ValueError: if torch refuses the value of an option.

Law:
    Equal to ``torch.optim.{name}`` bit for bit (``tests/optim/test_contract.py``).

Example:
    >>> {name}(lr=0.5)
    {name}(lr=0.5)
"""


def _named(name: str, summary: str) -> NamedOptimizer:
    cls = getattr(torch.optim, name)
    native = list(inspect.signature(cls).parameters.values())[1:]  # the first is `params`
    default = next(p.default for p in native if p.name == "lr")

    def make(lr: LearningRate = default, **options: Any) -> TorchOptimizer:
        return TorchOptimizer(cls, lr=lr, **options)

    keywords = [p.replace(kind=p.KEYWORD_ONLY) for p in native if p.name != "lr"]
    positional = inspect.Parameter(
        "lr", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=LearningRate
    )
    make.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # read by inspect
        [positional, *keywords], return_annotation=TorchOptimizer
    )
    make.__name__ = make.__qualname__ = name
    make.__doc__ = _DOC.format(name=name, summary=summary)
    return make


SGD = _named("SGD", "Stochastic gradient descent, with momentum if asked for")
Adam = _named("Adam", "Adam")
AdamW = _named("AdamW", "Adam with decoupled weight decay")
Adagrad = _named("Adagrad", "Adagrad")
RMSprop = _named("RMSprop", "RMSprop, with momentum and centring if asked for")
NAdam = _named("NAdam", "Adam with Nesterov momentum")
RAdam = _named("RAdam", "Adam with a rectified adaptive term")
Adamax = _named("Adamax", "Adam in the infinity norm")
Adadelta = _named("Adadelta", "Adadelta")
Rprop = _named("Rprop", "Resilient backpropagation, for full batches")
ASGD = _named("ASGD", "Averaged stochastic gradient descent")
Adafactor = _named("Adafactor", "Adafactor, whose second moments are factored")
Muon = _named("Muon", "Muon, for parameters of two dimensions")

NAMED: dict[str, NamedOptimizer] = {
    "SGD": SGD,
    "Adam": Adam,
    "AdamW": AdamW,
    "Adagrad": Adagrad,
    "RMSprop": RMSprop,
    "NAdam": NAdam,
    "RAdam": RAdam,
    "Adamax": Adamax,
    "Adadelta": Adadelta,
    "Rprop": Rprop,
    "ASGD": ASGD,
    "Adafactor": Adafactor,
    "Muon": Muon,
}
"""Every optimizer of this module by its name."""
