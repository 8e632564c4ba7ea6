"""The way in to `fit_many`: what stands behind it is imported when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from helios.data import DataModule
from helios.model.model import Model

if TYPE_CHECKING:
    from helios.trainer.trainer import Trainer


def fit_many(
    trainer: Trainer,
    models: Sequence[Model],
    datamodule: DataModule,
    *,
    seeds: Sequence[int] | None = None,
) -> bool:
    """Train several models at once, in one run over the same batches.

    The models are copies of one: they may differ in the values of their parameters and buffers, and
    in the numbers of their optimizers, such as ``lr`` and ``weight_decay``. One forward and one
    backward pass, through ``torch.func.vmap``, serve all of them. The batches are in the order of
    the trainer's seed. Each member has a TensorBoard folder and checkpoints of its own, which are
    those of a run of it alone: `Trainer.fit` and `Trainer.test` read them, and so do
    `helios.replay` and `helios.load_pretrained`. The run goes on from the last place that all
    members have saved.

    ``early_stop_cycles`` counts the validations in a row that were the best for no member.

    Args:
        trainer: how to train; on one device.
        models: the members, each with a ``save_name`` of its own.
        datamodule: the datamodule to use.
        seeds: (optional) the seeds under which the members are set up, one each. By default that
            of the trainer for the first member, and one more for each that follows. A model that
            is set up already keeps the parameters that it has.

    Returns:
        True if it went well, false otherwise, as `Trainer.fit`.

    Raises:
        ValueError: if ``total_steps`` is 0, there are no models, two of them have one name, or the
            trainer asks for several ranks.
        TypeError: if an argument is something else.

    Law:
        Each member ends where a run of it alone ends, up to rounding: 1e-13 in float64, for models
        that draw no random numbers (``property_tests/test_many.py``). A run that is interrupted and
        resumed has the bits of one that is not (``tests/trainer/many/test_resume.py``).

    Example:
        >>> import helios, torch
        >>> class Line(helios.Model):
        ...     def __init__(self, name, lr):
        ...         super().__init__(name)
        ...         self.lr = lr
        ...
        ...     def setup(self, fast_init=False):
        ...         self.net = torch.nn.Linear(1, 1)
        ...         self.optimizer = helios.optim.SGD(lr=self.lr)
        ...
        ...     def loss(self, batch):
        ...         return (self.net(batch[0]) - batch[1]).square().mean()
        >>> x = torch.linspace(-1, 1, 32)[:, None]
        >>> data = helios.data.from_datasets(train=(x, 2 * x), batch_size=8)
        >>> trainer = helios.Trainer(total_steps=30, use_cpu=True, print_banner=False)
        >>> slow, fast = Line("slow", lr=0.001), Line("fast", lr=0.1)
        >>> helios.fit_many(trainer, [slow, fast], data, seeds=[0, 0])
        True
        >>> round(fast.net.weight.item(), 1), slow.net.weight.item() < 1.9
        (2.0, True)
    """
    from helios.trainer.many.fit import fit_many

    return fit_many(trainer, models, datamodule, seeds)
