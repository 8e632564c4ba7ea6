"""One fit and one test, from what the user gave to what the loop runs on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from helios.core.logging import Loggers
from helios.data import DataModule, mover, source_of
from helios.data.source import prefetch_to
from helios.functional.binding import bind
from helios.functional.nonfinite import Deferred
from helios.functional.schedule import Plan
from helios.functional.state import TrainingState
from helios.functional.step import make_step
from helios.functional.trainable import init_state
from helios.functional.tree import place
from helios.model.hooks import ModelHooks, overridden
from helios.model.model import Model
from helios.model.summary import summary
from helios.trainer.agreement import Agreement
from helios.trainer.anomaly import operators_named, watched
from helios.trainer.banner import banner
from helios.trainer.crash import record_crash
from helios.trainer.evaluate import test as evaluate_test
from helios.trainer.fingerprint import fingerprint
from helios.trainer.flight.opening import open_recorder
from helios.trainer.hooks import Hooks
from helios.trainer.in_memory import begin_anew, leave, whereabouts
from helios.trainer.inputs import make_plan, sources, total_updates
from helios.trainer.leaving import left
from helios.trainer.loop import Loop
from helios.trainer.measures import Measures
from helios.trainer.observing import Observers
from helios.trainer.profiling import profiled
from helios.trainer.progress import Progress
from helios.trainer.report import Reporter
from helios.trainer.resuming import (
    check_position,
    check_same,
    content_of_all,
    load_weights,
    resume,
    take_up,
    warn_of_lost_promises,
)
from helios.trainer.run_logs import flusher, kept_names, open_logs
from helios.trainer.saving import rng_restorer
from helios.trainer.session import session
from helios.trainer.side_effects import check_supported
from helios.trainer.signals import Interrupted, Signals, is_interactive
from helios.trainer.store import Store, stored_state

if TYPE_CHECKING:
    from helios.trainer.trainer import Trainer


Takeover = Callable[["Trainer", Model, DataModule], bool]
"""Does something else in the place of a fit, or returns False to let it run."""

_instead: Takeover | None = None


@contextlib.contextmanager
def taken_over(by: Takeover) -> Iterator[None]:
    """Ask ``by`` before every fit of this process, in any thread; `helios.debug` alone does so."""
    global _instead
    before, _instead = _instead, by
    try:
        yield
    finally:
        _instead = before


def is_taken_over(trainer: Trainer, model: Model, datamodule: DataModule) -> bool:
    """Let what asked for it do something in the place of a fit; tell whether it did."""
    return _instead is not None and _instead(trainer, model, datamodule)


def fit(trainer: Trainer, model: Model, datamodule: DataModule) -> None:
    """Run a fit to its end, from the last checkpoint if there is one."""
    if is_taken_over(trainer, model, datamodule):
        return
    ranks = trainer.ranks
    saves = trainer.chkpt_root is not None and not trainer.fast_dev_run
    signals = Signals(saves or is_interactive())
    compile = False if trainer.detect_anomaly else trainer.compile
    if trainer.going_on is None:  # otherwise it can be tried again, if the model does not fit
        begin_anew(trainer)
    with session(trainer, model, datamodule), contextlib.ExitStack() as stack:
        hooks = Hooks(trainer.plugins, model)
        division = trainer.division()
        stack.callback(division.close)
        check_supported(trainer, model)
        division.prepare(model)
        agreement = division.agreement(hooks.stop_asked, signals)
        store = None
        if trainer.chkpt_root is not None and ranks.is_first:
            folder = trainer.chkpt_root / model.save_name
            store = stack.enter_context(Store(folder, trainer.retention))
        state = init_state(model, trainer.seed)
        content, path = content_of_all(trainer, model, store)
        content = content if trainer.going_on is None else trainer.going_on
        if content is not None:
            state = resume(trainer, model, state, content, path)
            datamodule.seed = state.seed
        train, valid = sources(datamodule, stack, division.shares, trainer.limits)
        prefetch_to(trainer.device, train, valid)
        plan = make_plan(trainer, train, valid)
        check_same(ranks, state, plan)
        environment_now = fingerprint(
            model, datamodule, trainer.non_finite, compile, trainer.overfit_batches
        )
        environment_now.update(division.fingerprint())
        loggers = open_logs(trainer, model, content, stack, state.current_iteration + 1)
        _introduce(
            banner(model, plan, trainer.device, division.describe(), train.samples_per_batch),
            trainer,
            loggers,
            new=content is None,
        )
        if content is not None:
            check_position(state, train.batches_per_epoch, content["plan"])
            take_up(train, content)
            place = f"{whereabouts(state)}, in memory" if path is None else f"checkpoint {path}"
            trainer.say(f"Resuming training from {place}", loggers.logger)
            warn_of_lost_promises(trainer, content, environment_now)
        reporter = _open_reporter(trainer, plan, state, loggers, stack, agreement)
        saver = None
        if trainer.chkpt_root is not None:
            saver = division.saver(
                trainer.chkpt_root / model.save_name,
                store,
                model,
                plan,
                trainer.plugins,
                kept_names(trainer, loggers.names),
                lambda state: train.state_after(state.dataset_iter),
                reporter.say,
                environment_now,
                flusher(trainer, loggers),
                in_background=trainer.async_saving,
                tolerant=trainer.tolerate_failed_saves,
            )
            stack.callback(saver.close)  # the lock is given back after it
            if content is not None:
                saver.hold(state)
        recorder = open_recorder(trainer, store, train, state, division, stack)
        # The norm of a sharded model is computed by all ranks, or by none.
        observers = Observers(
            plan,
            division.norm,
            reports=agreement.of_first(trainer.log.is_on),
            members=() if recorder is None else (recorder,),
        )
        reporter.measure = Measures(model, observers)
        # On the CPU the answer is there at once; elsewhere, nobody waits for it.
        deferred = None if trainer.device.type == "cpu" else Deferred()
        step = make_step(
            model,
            plan,
            engine=division.engine(agreement.ballot),
            non_finite=trainer.non_finite,
            deferred=deferred,
            compile=compile,
            tell=reporter.announce,
            observe=observers.observer(),
        )
        stack.enter_context(operators_named(trainer, model))
        make_loop = Loop if trainer.profile is None else profiled(trainer, model, loggers.writer)
        loop = make_loop(
            plan,
            watched(trainer, step, model),
            hooks,
            train,
            valid,
            mover(trainer.device),
            reporter,
            saver,
            agreement,
            lambda: None if deferred is None else deferred.check(),
            records=recorder,
        )
        trainer.loop = loop
        stack.enter_context(signals)
        try:
            restore = None
            if content is not None:
                restore = rng_restorer(content, ranks.rank, ranks.world_size)
            for _ in loop.run(state, restore):
                pass
            reporter.release()
            if saver is not None:
                saver.finish()
            agreement.at_end()
        except Interrupted as reason:
            how = left(loop) if saver is not None else "trainer.resume() goes on from there."
            reporter.announce(f"The run was {reason}. {how}")
        except BaseException as failure:
            # Between two steps the state is whole: nothing of it is lost. Of several ranks one
            # alone must not wait for the others here: they go on from the last checkpoint.
            if not ranks.several:
                try:
                    loop.save_resumable()
                except Exception as error:
                    failure.add_note(f"the state before it could not be saved: {error}")
            if ranks.named(failure) is failure and not trainer.fast_dev_run:
                record_crash(failure, loop, store, train, plan, environment_now)
            raise
        finally:
            if not ranks.several and trainer.chkpt_root is None:
                trainer.left = leave(
                    loop,
                    plan,
                    loggers.names,
                    train,
                    environment_now,
                    interrupted=signals.received is not None,
                )
    if signals.received is not None:
        ranks.ended()
    signals.leave()


def _introduce(introduction: str, trainer: Trainer, loggers: Loggers, *, new: bool) -> None:
    """Show the banner, and write that of a new run to its log."""
    if trainer.print_banner:
        trainer.say(introduction)
    if trainer.print_summary:
        trainer.say(str(summary(trainer.model)))
    if trainer.detect_anomaly and trainer.compile:
        trainer.say("The step runs uncompiled: detect_anomaly is on.", loggers.logger)
    trainer.is_introduced = True
    if new and loggers.logger is not None:
        loggers.logger.info(introduction)


def _open_reporter(
    trainer: Trainer,
    plan: Plan,
    state: TrainingState,
    loggers: Loggers,
    stack: contextlib.ExitStack,
    agreement: Agreement,
) -> Reporter:
    ranks, progress = trainer.ranks, None
    if trainer.enable_progress_bar and ranks.is_first:
        progress = Progress(total_updates(plan), state.current_iteration)
    reporter = Reporter(
        loggers.logger,
        trainer.log,
        progress,
        announce=lambda message: trainer.say(message, loggers.logger),
        merge=agreement.merged if ranks.several else None,
        wanted=agreement.of_first(any((loggers.logger, trainer.log.is_on, progress))),
        done=state.current_iteration,
    )
    stack.callback(reporter.close)
    return reporter


def test(trainer: Trainer, model: Model, datamodule: DataModule) -> None:
    """Run the test set through a model, with the weights of its last checkpoint."""
    division = trainer.division()
    # What a sharded state looks like is known from a whole model alone, optimizer included.
    fast_init = not division.is_sharded
    with session(trainer, model, datamodule, fast_init=fast_init), contextlib.ExitStack() as stack:
        hooks = Hooks(trainer.plugins, model)
        division.prepare(model)
        agreement = division.agreement(hooks.stop_asked, None)
        content, path = content_of_all(trainer, model)
        loggers = open_logs(trainer, model, content, stack)
        state = TrainingState(seed=trainer.seed)
        if content is not None and division.is_sharded:
            state = resume(trainer, model, init_state(model, trainer.seed), content, path)
            bind(model).lend(state.carry.params, state.carry.buffers)
            trainer.say(f"Testing the checkpoint {path}", loggers.logger)
        elif content is not None:
            load_weights(model, content)
            # The carry comes along: a model that keeps an average is tested with it.
            state = place(stored_state(content), trainer.device)
            datamodule.seed = state.seed
            trainer.say(f"Testing the checkpoint {path}", loggers.logger)
        elif overridden(model, "load_for_testing", ModelHooks) is not None:
            model.load_for_testing()
        else:
            trainer.say(
                "Testing the model as it is: no checkpoint, and no load_for_testing()",
                loggers.logger,
            )
            if trainer.loop is not None and trainer.loop.model is model:
                state = trainer.loop.state
        source = source_of(
            datamodule.test_dataloader(), seed=datamodule.seed, shares=division.shares
        )
        if source is None:
            trainer.say("There is no test set: nothing to test", loggers.logger)
            return
        source = trainer.limits.of_evaluation(source)
        stack.enter_context(contextlib.closing(source))
        prefetch_to(trainer.device, source)
        if trainer.print_banner and not trainer.is_introduced:
            trainer.say(banner(model, None, trainer.device, division.describe()))
        progress = None
        if trainer.enable_progress_bar and trainer.ranks.is_first:
            progress = Progress(None, state.current_iteration, with_bar=False)
        trainer.log.at(state)
        reporter = Reporter(loggers.logger, trainer.log, progress)
        stack.callback(reporter.close)
        stack.enter_context(operators_named(trainer, model))
        move = mover(trainer.device)
        results = evaluate_test(state, hooks, source, move, agreement, reporter.watched)
        reporter.show(state, "test", results)
        reporter.release()
