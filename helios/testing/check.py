"""`check_laws`: every law, on a model and data of your own, in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from helios.core.rng import preserved_rng, seed_all
from helios.data import DataModule
from helios.data.checks import check_integer
from helios.functional.plan import Plan
from helios.functional.rng import DEFAULT_SEED, fold
from helios.model import Model
from helios.testing.batches import Supply, check_position, check_workers
from helios.testing.report import Report
from helios.testing.steps import (
    Subject,
    check_deterministic,
    check_donated,
    check_pure,
    check_resumable,
)


def check_laws(
    make_model: Callable[[], Model],
    datamodule: DataModule,
    *,
    batches: int = 4,
    seed: int = DEFAULT_SEED,
    workers: Sequence[int] = (0, 2),
    plan: Plan | None = None,
    raises: bool = True,
) -> Report:
    """Check that a model and its data keep the laws that exact resume rests on.

    ===============  ==============================================================================
    pure             a step leaves state, batch, model and process as they were
    deterministic    equal states and batches give equal bits, in a fresh model too
    donated          a step that reuses the tensors of its state computes the same bits
    resumable        a state written as bytes and a fresh model go on as if nothing had happened
    workers          the batches do not depend on the number of workers
    position         an epoch opened in its middle goes on as if read from its start
    ===============  ==============================================================================

    A law is tried, not proven: what changes only after the batches looked at is not seen. Nor are
    changes of global variables, unless they change a bit of the state. No hook of the model and no
    plugin is called, and nothing is written.

    Args:
        make_model: returns a model made anew in each call, such as ``lambda: MyModel("name")``. It
            is no model, since a run that resumes has a fresh one: only there it shows what was in
            the old one and nowhere else.
        datamodule: the data; prepared, set up and torn down here.
        batches: micro-batches to train on, at least 2. Each law takes about as many steps, a few
            times over; the resumable one takes their square.
        seed: the seed of the runs.
        workers: the numbers of workers to compare.
        plan: (optional) where accumulation windows end; by default each micro-batch is an update.
        raises: whether a broken law raises.

    Returns:
        What was found, law by law.

    Raises:
        LawError: if a law is broken, unless ``raises`` is False; its message names the culprits.
        TypeError: if ``make_model`` does not return a fresh model in each call.
        ValueError: if ``batches`` is less than 2, or ``workers`` is empty.

    Law:
        A model that breaks a law on purpose is found out, and the attribute is named; one that
        keeps them passes (``tests/testing/test_check.py``).

    Example:
        >>> import helios, torch
        >>> class Counting(helios.Model):
        ...     def setup(self, fast_init=False):
        ...         self.net, self.count = torch.nn.Linear(2, 1), 0
        ...         self.optimizer = helios.optim.SGD(lr=0.1)
        ...
        ...     def loss(self, batch):
        ...         self.count += 1
        ...         return self.net(batch[0]).square().mean() / self.count
        >>> data = helios.data.from_datasets(train=(torch.ones(8, 2),), batch_size=2)
        >>> report = check_laws(lambda: Counting("c"), data, workers=(0,), raises=False)
        >>> [result.law for result in report.broken]
        ['pure', 'deterministic', 'resumable']
        >>> report["pure"].culprit
        'micro-batch 1: self.count changed from 0 to 1'
    """
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise TypeError(
            f"make_model: received a {type(make_model).__name__}; expected a callable that returns "
            "a model made anew, such as lambda: MyModel('name'): a run that resumes begins with one"
        )
    check_integer("batches", batches, at_least=2)
    if not workers:
        raise ValueError("workers: received none; expected numbers of workers, such as (0, 2)")
    for number in workers:
        check_integer("workers", number, at_least=0)
    with preserved_rng():
        seed_all(fold(seed, "session"))
        datamodule.seed = seed
        try:
            datamodule.prepare_data()
            datamodule.setup()
            supply = Supply(datamodule, batches)
            subject = Subject(make_model, supply.first(), plan or Plan(), seed)
            report = Report(
                (
                    check_pure(subject),
                    check_deterministic(subject),
                    check_donated(subject),
                    check_resumable(subject),
                    check_workers(supply, workers),
                    check_position(supply),
                )
            )
        finally:
            datamodule.teardown()
    if raises:
        report.raise_if_broken()
    return report
