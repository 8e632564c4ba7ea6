"""One fit of several members, from what the user gave to what the loop runs on."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from helios.core.distributed import get_dist_info
from helios.core.log_names import LogNames, read_log_names
from helios.core.logging import Loggers, open_loggers
from helios.data import DataModule, EpochSource, mover
from helios.data.source import prefetch_to
from helios.errors import ConsumedStateError
from helios.functional.nonfinite import POLICIES
from helios.functional.plan import Plan
from helios.functional.stacked import member_state
from helios.functional.state import TrainingState
from helios.functional.step import make_step
from helios.functional.trainable import init_state
from helios.model.model import Model
from helios.plugins.plugin_set import overridden
from helios.trainer import arguments as check
from helios.trainer.agreement import Agreement
from helios.trainer.banner import banner
from helios.trainer.fingerprint import fingerprint
from helios.trainer.hooks import Hooks
from helios.trainer.inputs import make_plan, sources, total_updates
from helios.trainer.leaving import left
from helios.trainer.loop import Loop
from helios.trainer.many.model import Many
from helios.trainer.many.report import ManyReporter, flush_all, open_writers
from helios.trainer.many.resuming import Found, last_of_all, reduction, resume_all
from helios.trainer.many.saving import ManySaver, MemberStore
from helios.trainer.progress import Progress
from helios.trainer.resuming import check_position, take_up, warn_of_lost_promises
from helios.trainer.run_logs import (
    failure_logger,
    file_names,
    flusher,
    kept_names,
    open_run_logs,
)
from helios.trainer.saving import Saver, rng_restorer
from helios.trainer.session import session
from helios.trainer.signals import Interrupted, Signals
from helios.trainer.trainer import Trainer


def fit_many(
    trainer: Trainer, models: Sequence[Model], datamodule: DataModule, seeds: Sequence[int] | None
) -> bool:
    """Train several models at once; see `helios.fit_many`."""
    check.check_instance("trainer", trainer, Trainer)
    check.check_instance("datamodule", datamodule, DataModule)
    members = _checked(models)
    _check_trainer(trainer)
    if seeds is None:
        seeds = range(trainer.seed, trainer.seed + len(members))
    if len(seeds) != len(members):
        raise ValueError(f"seeds: received {len(seeds)}; expected one for each of {len(members)}")
    many = Many(members, list(seeds), skip=trainer.non_finite == POLICIES[1])
    trainer._model, trainer._datamodule = many, datamodule
    try:
        _fit(trainer, many, datamodule)
    except Exception as error:
        if isinstance(error, tuple(trainer.train_exceptions)):
            raise
        sys.stderr.write(traceback.format_exc())
        sys.stderr.flush()
        return False
    return True


def _checked(models: Any) -> list[Model]:
    members = list(models) if isinstance(models, (list, tuple)) else []
    if not members:
        raise ValueError(f"models: received {models!r}; expected a list of helios.Model")
    for index, member in enumerate(members):
        check.check_instance(f"models[{index}]", member, Model)
    names = [member.save_name for member in members]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"models: two have the save_name {twice[0]!r}; expected a name for each: it is that of "
            "its checkpoints"
        )
    return members


def _check_trainer(trainer: Trainer) -> None:
    """Raise if the trainer asks for what cannot be done with several members."""
    if trainer.total_steps == 0:
        raise ValueError("total_steps: received 0, which trains nothing; expected a number above 0")
    if trainer.ranks_to_start > 1 or get_dist_info().world_size > 1:
        raise ValueError(
            "fit_many: received a trainer of several ranks; expected one on one device. Members "
            "that are trained at once are not divided among ranks: start a run of some of them on "
            "each device"
        )
    if trainer.reduction != "mean" or trainer.parallel is not None:
        raise ValueError(
            f"fit_many: received reduction={trainer.reduction!r} and parallel={trainer.parallel!r};"
            " these are for runs of several ranks, and expected to be left out"
        )
    if trainer.compile:
        raise ValueError(
            f"fit_many: received a trainer with compile={trainer.compile!r}; expected one without: "
            "a step of several members is not compiled"
        )
    alone = ("fast_dev_run", "overfit_batches", "detect_anomaly", "profile", "print_summary")
    for name in alone:
        if getattr(trainer, name):
            raise ValueError(
                f"fit_many: received a trainer with {name}={getattr(trainer, name)!r}, which is "
                "for one model; expected it to be left out. Try one of the members with it"
            )
    if trainer.flight_recorder:
        raise ValueError(
            "fit_many: received a trainer with flight_recorder=True; expected one without: of "
            "members that are trained at once no single updates are recorded"
        )
    for name, plugin in trainer.plugins.items():
        if overridden(plugin, "configure_model") is not None:
            raise ValueError(
                f"plugin {name!r} overrides configure_model(), which changes a model; of members "
                "that are trained at once there is none by itself. Do it in setup()"
            )


def _fit(trainer: Trainer, many: Many, datamodule: DataModule) -> None:
    signals = Signals(trainer.chkpt_root is not None)
    with session(trainer, many, datamodule), contextlib.ExitStack() as stack:
        hooks = Hooks(trainer.plugins, many)
        agreement = Agreement(hooks.stop_asked, signals)
        stores = _stores(trainer, many, stack)
        kind = reduction(len(many.members))
        state = init_state(many, trainer.seed)
        found = last_of_all(stores, kind) if stores else None
        if found is not None:
            state = resume_all(many, found, trainer.random_seed, trainer.warn)
            datamodule.seed = state.seed
        train, valid = sources(datamodule, stack)
        prefetch_to(trainer.device, train, valid)
        plan = make_plan(trainer, train, valid)
        environment = fingerprint(many, datamodule, trainer.non_finite)
        environment.update(optimizer=many.optimizers, reduction=kind, ranks=1)
        loggers, reporter, names = _open(trainer, many, found, state, plan, stack)
        introduction = banner(many, plan, trainer.device, samples=train.samples_per_batch)
        if trainer.print_banner:
            trainer.say(introduction)
        trainer.is_introduced = True
        if found is None and loggers.logger is not None:
            loggers.logger.info(introduction)
        if found is not None:
            _take_up(trainer, found, state, train, environment, loggers)
        saver = None
        if stores:
            saver = _saver(
                trainer, many, stores, plan, names, train, reporter, environment, loggers
            )
            stack.callback(saver.close)
            if found is not None:
                saver.hold(state)
        loop = Loop(
            plan,
            make_step(many, plan, non_finite=trainer.non_finite),
            hooks,
            train,
            valid,
            mover(trainer.device),
            reporter,
            saver,
            agreement,
        )
        trainer.loop = loop
        stack.enter_context(signals)
        try:
            restore = None if found is None else rng_restorer(found[0][0])
            for _ in loop.run(state, restore):
                pass
            reporter.release()
            if saver is not None:
                saver.finish()
        except Interrupted as reason:
            reporter.announce(f"The run was {reason}. {left(loop)}")
        except BaseException as failure:
            try:
                loop.save_resumable()
            except Exception as error:
                failure.add_note(f"the state before it could not be saved: {error}")
            raise
        finally:
            _give_back(many, loop)
    signals.leave()


def _stores(trainer: Trainer, many: Many, stack: contextlib.ExitStack) -> list[MemberStore]:
    """Open the folders of the members' checkpoints."""
    root = trainer.chkpt_root
    if root is None:
        return []
    stores = []
    for member in many.members:
        store = MemberStore(root / member.save_name, trainer.retention)
        stack.enter_context(store)
        stores.append(store)
    return stores


def _open(
    trainer: Trainer,
    many: Many,
    found: list[Found] | None,
    state: TrainingState,
    plan: Plan,
    stack: contextlib.ExitStack,
) -> tuple[Loggers, ManyReporter, list[dict[str, str | None]]]:
    """Open the log, the members' writers and the terminal; return the names that are kept."""
    saved: list[LogNames | None] = [None] * len(many.members)
    if found is not None:
        saved = [read_log_names(file_names(one)) for one, _ in found]
    name = trainer.run_name or many.save_name
    loggers = open_loggers(
        run_name=name,
        log_path=trainer.log_path if trainer.enable_file_logging else None,
        resume=None if saved[0] is None else {**saved[0], "run_dir": None},
    )
    stack.callback(loggers.close)
    stack.push(failure_logger(loggers.logger, trainer.ranks))
    trainer.failure_log = loggers.logger
    prefix = f"{trainer.run_name}_" if trainer.run_name else ""
    writers, folders = open_writers(
        [prefix + member.save_name for member in many.members],
        trainer.run_path if trainer.enable_tensorboard else None,
        saved,
        state.current_iteration + 1,
        stack,
    )
    content = None if found is None else found[0][0]
    open_run_logs(trainer, many, content, stack, (), state.current_iteration + 1)
    progress = None
    if trainer.enable_progress_bar:
        progress = Progress(total_updates(plan), state.current_iteration)
    reporter = ManyReporter(
        many,
        loggers.logger,
        writers,
        progress,
        lambda message: trainer.say(message, loggers.logger),
        trainer.log,
        state.current_iteration,
    )
    stack.callback(reporter.close)
    names = [
        kept_names(trainer, {"log_file": loggers.names["log_file"], "run_dir": folder})
        for folder in folders
    ]
    return loggers, reporter, names


def _take_up(
    trainer: Trainer,
    found: list[Found],
    state: TrainingState,
    train: EpochSource,
    environment: dict[str, Any],
    loggers: Loggers,
) -> None:
    """Check that the run can go on, and give back to plugins and data what they saved."""
    content, path = found[0]
    check_position(state, train.batches_per_epoch, content["plan"])
    take_up(train, content)
    for name, plugin in trainer.plugins.items():
        if name in content["plugins"]:
            plugin.load_state_dict(content["plugins"][name])
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    trainer.say(f"Resuming training from checkpoint {path}{more}", loggers.logger)
    warn_of_lost_promises(trainer, content, environment)


def _saver(
    trainer: Trainer,
    many: Many,
    stores: list[MemberStore],
    plan: Plan,
    names: list[dict[str, str | None]],
    train: EpochSource,
    reporter: ManyReporter,
    environment: dict[str, Any],
    loggers: Loggers,
) -> ManySaver:
    def flush() -> None:
        flusher(trainer, loggers)()
        flush_all(reporter.writers)

    savers = [
        Saver(
            store,
            member,
            plan,
            trainer.plugins,
            own,
            lambda state: train.state_after(state.dataset_iter),
            reporter.say,
            environment,
            flush,
            in_background=trainer.async_saving,
            tolerant=trainer.tolerate_failed_saves,
        )
        for store, member, own in zip(stores, many.members, names, strict=True)
    ]
    return ManySaver(many, stores, savers, in_background=trainer.async_saving)


def _give_back(many: Many, loop: Loop) -> None:
    """Let each member hold its own weights, in memory of its own, and its best score."""
    with contextlib.suppress(ConsumedStateError):  # after a failure inside a step
        for k, member in enumerate(many.members):
            own = member_state(loop.state, k)
            many.hold(k, own)
            member.best_score = own.carry.best
