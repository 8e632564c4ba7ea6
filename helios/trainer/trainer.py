"""The trainer: arguments, and the two things that can be done with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helios.core.logging import check_run_name
from helios.data import DataModule
from helios.functional.nonfinite import POLICIES
from helios.functional.rng import DEFAULT_SEED
from helios.functional.state import TrainingUnit
from helios.loggers.run_log import RunLog
from helios.model.model import Model
from helios.plugins import Plugin
from helios.trainer import arguments as check
from helios.trainer.engine import REDUCTIONS, Division
from helios.trainer.launch import launch
from helios.trainer.limits import Limits
from helios.trainer.profiling import Profile
from helios.trainer.ranks.options import DDP, FSDP
from helios.trainer.run_in_progress import RunInProgress
from helios.trainer.store import Retention
from helios.trainer.trying import trying


class Trainer(RunInProgress):
    """Automates the training, validation, and testing code.

    The trainer handles all of the required steps to setup the correct environment, the
    training/validation/testing loops, and any clean up afterwards. The arguments are checked here,
    and relative paths are taken from the folder of this moment.

    Args:
        run_name: name of the current run, for its logs. Defaults to the model's name.
        train_unit: the unit of ``total_steps``, ``valid_frequency`` and ``chkpt_frequency``:
            epochs, or updates. ``"epoch"`` and ``"iteration"`` are accepted as well. Defaults to
            :py:attr:`TrainingUnit.EPOCH`.
        total_steps: the total number of steps to train for, in ``train_unit``; ``float("inf")``
            trains until something stops it.
        valid_frequency: (optional) steps between validations, in ``train_unit``.
        chkpt_frequency: (optional) steps between checkpoints, in ``train_unit``.
        print_frequency: (optional) updates between reports of the training metrics. Without it
            they are reported at validations and at the ends of epochs.
        accumulation_steps: micro-batches per update. Defaults to 1.
        enable_cudnn_benchmark: enable/disable CuDNN benchmark. Defaults to false.
        enable_deterministic: enable/disable PyTorch deterministic. Defaults to false.
        early_stop_cycles: (optional) number of validations in a row without improvement after
            which training will stop.
        use_cpu: (optional) if true, CPU will be used.
        gpus: (optional) IDs of GPUs to use; for each of several, a process is started. Under
            ``torchrun``, which starts them, the one at its ``LOCAL_RANK`` is this process's.
        random_seed: (optional) the seed of everything random, shuffling included.
        enable_tensorboard: enable/disable Tensorboard logging. Defaults to false.
        enable_file_logging: enable/disable file logging. Defaults to false.
        enable_progress_bar: enable/disable the progress bar(s); where standard error is not a
            terminal, a line is written for each report instead. Defaults to false.
        chkpt_root: (optional) root folder in which checkpoints will be placed, in a folder named
            after the model. With one, the final state is always saved, and a run goes on from the
            last checkpoint there.
        log_path: (optional) root folder in which logs will be saved.
        run_path: (optional) root folder in which Tensorboard runs will be saved.
        src_root: (optional) root folder where the code is located. This is used to automatically
            populate the registries using :py:func:`~helios.core.utils.update_all_registries`.
        import_prefix: prefix to use when importing modules. See
            :py:func:`~helios.core.utils.update_all_registries` for details.
        print_banner: if true, the Helios banner with system info will be printed. Defaults to true.
        plugins: (optional) plugins, in the order in which they are called.
        non_finite: what to do about an update whose loss or gradient is NaN or infinite:
            ``"raise"`` stops the run before it; ``"skip"`` leaves it out and counts it. Defaults
            to ``"raise"``.
        retention: (optional) which checkpoints to keep; all by default.
        async_saving: whether training goes on while a checkpoint is written. It costs one copy of
            the state in host memory, and the time to make that copy. Defaults to false.
        tolerate_failed_saves: whether a checkpoint that cannot be written is a warning, as long as
            the last one can. Defaults to false: the run stops.
        cpu_ranks: (optional) how many processes to start that train together on the CPU.
        reduction: how the gradients of a micro-batch are put together. ``"mean"`` is the fastest:
            every rank computes its share at once. ``"canonical"`` cuts it in ``pieces``, whose
            gradients are added in a fixed order: the parameters have the same bits on any number
            of ranks. Defaults to ``"mean"``.
        pieces: (optional) in how many pieces ``"canonical"`` cuts a micro-batch; every rank has to
            get 1, 2, 4, 8, ... of them. Defaults to 8.
        parallel: (optional) how several ranks train: a `helios.DDP`, with options of
            ``DistributedDataParallel``, or a `helios.FSDP`, which shards the model over them.
        compile: whether the whole step is compiled to one graph: forward, backward, accumulation,
            clipping, update and average; or the name of a backend of ``torch.compile``. The first
            steps of a run take the time to compile. What cannot be compiled runs as it is, and a
            sentence says why. Defaults to false.
        rank_timeout: seconds that a rank waits for the others before it takes the run for failed;
            to be longer than what one of them does alone, such as writing a checkpoint. Defaults
            to 600.
        fast_dev_run: true, or a number of updates: `fit` runs that many, one if true, on copies of
            the model and the plugins, validates and tests on as many batches, saves a checkpoint
            to a folder that goes away, and resumes and keeps nothing. For finding out whether all
            of the code runs. Defaults to false.
        overfit_batches: (optional) how many batches to train on: those that the first epoch begins
            with, in every epoch again. The run validates on them too. For finding out whether a
            model can learn at all.
        detect_anomaly: whether a gradient that becomes NaN is an error that names the operation
            and the module, by torch's anomaly mode; it is slow. A step is then not compiled.
            Defaults to false.
        profile: (optional) a `helios.Profile`: some updates to profile.
        print_summary: whether the table of `helios.summary` is printed when a fit begins. Defaults
            to false.
        logs: where metrics and what hooks log go beside TensorBoard: `helios.CSVLog`,
            `helios.JSONLog`, `helios.WandbLog`, or logs of one's own.
        flight_recorder: whether to keep a record of every update beside the checkpoints: its loss,
            the norm of its gradients and a digest of the indices of its samples. ``helios diff``
            finds in it where two runs part. Defaults to false.

    Raises:
        TypeError: if an argument is of the wrong type; a bool is not an int here.
        ValueError: if an argument has a wrong value, or needs or excludes another one.

    Example:
        >>> trainer = Trainer(total_steps=3, use_cpu=True, print_banner=False)
        >>> trainer.gpu_ids
        []
    """

    def __init__(
        self,
        run_name: str = "",
        train_unit: TrainingUnit | str = TrainingUnit.EPOCH,
        total_steps: int | float = 0,
        valid_frequency: int | None = None,
        chkpt_frequency: int | None = None,
        print_frequency: int | None = None,
        accumulation_steps: int = 1,
        enable_cudnn_benchmark: bool = False,
        enable_deterministic: bool = False,
        early_stop_cycles: int | None = None,
        use_cpu: bool | None = None,
        gpus: list[int] | None = None,
        random_seed: int | None = None,
        enable_tensorboard: bool = False,
        enable_file_logging: bool = False,
        enable_progress_bar: bool = False,
        chkpt_root: Path | None = None,
        log_path: Path | None = None,
        run_path: Path | None = None,
        src_root: Path | None = None,
        import_prefix: str = "",
        print_banner: bool = True,
        *,
        plugins: Sequence[Plugin] = (),
        non_finite: str = "raise",
        retention: Retention | None = None,
        async_saving: bool = False,
        tolerate_failed_saves: bool = False,
        cpu_ranks: int | None = None,
        reduction: str = "mean",
        pieces: int | None = None,
        parallel: DDP | FSDP | None = None,
        compile: bool | str = False,
        rank_timeout: float = 600.0,
        fast_dev_run: bool | int = False,
        overfit_batches: int | None = None,
        detect_anomaly: bool = False,
        profile: Profile | None = None,
        print_summary: bool = False,
        logs: Sequence[RunLog] = (),
        flight_recorder: bool = False,
    ) -> None:
        super().__init__()
        self.run_name = check_run_name(run_name)
        if run_name:
            check_run_name(run_name)
        self.train_unit = check.check_unit(train_unit)
        self.total_steps = check.check_total_steps(total_steps)
        self.valid_frequency = check.check_count("valid_frequency", valid_frequency)
        self.chkpt_frequency = check.check_count("chkpt_frequency", chkpt_frequency)
        self.print_frequency = check.check_count("print_frequency", print_frequency)
        self.accumulation_steps = check.check_window(accumulation_steps)
        self.enable_cudnn_benchmark = check.check_bool(
            "enable_cudnn_benchmark", enable_cudnn_benchmark
        )
        self.enable_deterministic = check.check_bool("enable_deterministic", enable_deterministic)
        self.early_stop_cycles = check.check_count("early_stop_cycles", early_stop_cycles)
        self._gpu_ids, self.device = check.check_gpus(gpus, use_cpu)
        self.random_seed = check.check_seed(random_seed)
        self.enable_tensorboard = check.check_bool("enable_tensorboard", enable_tensorboard)
        self.enable_file_logging = check.check_bool("enable_file_logging", enable_file_logging)
        self.enable_progress_bar = check.check_bool("enable_progress_bar", enable_progress_bar)
        self.chkpt_root = check.check_path("chkpt_root", chkpt_root)
        self.log_path = check.check_path("log_path", log_path)
        self.run_path = check.check_path("run_path", run_path)
        self.src_root = check.check_path("src_root", src_root)
        self.import_prefix = check.check_string("import_prefix", import_prefix)
        self.print_banner = check.check_bool("print_banner", print_banner)
        check.check_exclusive(
            benchmark=enable_cudnn_benchmark,
            deterministic=enable_deterministic,
            early_stop_cycles=early_stop_cycles,
            valid_frequency=valid_frequency,
            chkpt_frequency=chkpt_frequency,
            chkpt_root=self.chkpt_root,
            enable_tensorboard=enable_tensorboard,
            run_path=self.run_path,
            enable_file_logging=enable_file_logging,
            log_path=self.log_path,
        )
        self.non_finite = check.check_choice("non_finite", non_finite, POLICIES)
        self.retention = check.check_retention(retention, self.chkpt_root)
        self.async_saving = check.check_bool("async_saving", async_saving)
        self.tolerate_failed_saves = check.check_bool(
            "tolerate_failed_saves", tolerate_failed_saves
        )
        self.cpu_ranks = check.check_cpu_ranks(cpu_ranks, use_cpu, gpus)
        self.reduction = check.check_choice("reduction", reduction, REDUCTIONS)
        self.pieces = check.check_pieces(pieces, reduction)
        self.parallel = check.check_parallel(parallel, reduction, async_saving)
        self.compile = check.check_compile(compile)
        self.rank_timeout = check.check_timeout(rank_timeout)
        self.fast_dev_run = check.check_updates_to_try(fast_dev_run)
        self.overfit_batches = check.check_count("overfit_batches", overfit_batches)
        self.detect_anomaly = check.check_bool("detect_anomaly", detect_anomaly)
        self.profile = check.check_profile(profile)
        self.print_summary = check.check_bool("print_summary", print_summary)
        self.logs = check.check_logs(logs)
        self.flight_recorder = check.check_recorder(flight_recorder, self.chkpt_root)
        self._plugins = check.check_plugins(plugins)

    @property
    def ranks_to_start(self) -> int:
        """How many processes a run is to have if none were started for it."""
        return self.cpu_ranks or max(len(self._gpu_ids), 1)

    def division(self) -> Division:
        """Return how the micro-batches are divided among the ranks of the run in progress.

        Raises:
            ValueError: if the pieces of ``"canonical"`` cannot be shared among them.
        """
        return Division(self.ranks, self.pieces, self.parallel)

    @property
    def gpu_ids(self) -> list[int]:
        """Return the list of GPU IDs to use for training."""
        return self._gpu_ids

    @property
    def plugins(self) -> dict[str, Plugin]:
        """Return the list of plug-ins."""
        return self._plugins

    @property
    def limits(self) -> Limits:
        """Return how much of its data a run uses."""
        tried = self.fast_dev_run or None
        window = None if tried is None else tried * self.accumulation_steps
        return Limits(self.overfit_batches, window, tried)

    @property
    def seed(self) -> int:
        """Return the seed that is used, which is ``random_seed`` or the default one."""
        return DEFAULT_SEED if self.random_seed is None else self.random_seed

    def fit(self, model: Model, datamodule: DataModule) -> bool:
        """Run the full training routine.

        With a ``chkpt_root`` it goes on from the last checkpoint of the model there, if there is
        one; a run that is finished trains nothing more.

        Args:
            model: the model to run on.
            datamodule: the datamodule to use.

        Returns:
            True if the training process completed successfully, false otherwise. One of several
            ranks does not return after a failure: it ends with a status that is not 0.

        Raises:
            ValueError: if ``total_steps`` is 0.
            TypeError: if the model or the datamodule is something else.
        """
        if self.total_steps == 0 and not self.fast_dev_run:
            raise ValueError(
                "total_steps: received 0, which trains nothing; expected the number of "
                f"{'epochs' if self.train_unit is TrainingUnit.EPOCH else 'updates'} to train for, "
                "or float('inf')"
            )
        return self._run("fit", self._train_exceptions, model, datamodule)

    def resume(self, model: Model | None = None, datamodule: DataModule | None = None) -> bool:
        """Go on with the last fit from where it was left, without a file.

        It goes on from `state`: after an interruption, in a notebook with Ctrl-C or the stop
        button, or after the end, if ``total_steps`` was raised since. With a ``chkpt_root`` it is
        the same as `fit`, which goes on from the last checkpoint.

        Args:
            model: (optional) one to go on with in the place of the last one, such as one whose
                class was defined anew; it has to have the same parameters.
            datamodule: (optional) likewise.

        Returns:
            As `fit`.

        Raises:
            ResumeError: if there is no state to go on from: no fit has run in this process, or it
                was left in the middle of a micro-batch.

        Law:
            A run that was interrupted and gone on with has the bits of one that was not
            (``tests/trainer/test_in_memory.py``).

        Example:
            >>> Trainer(total_steps=1, use_cpu=True).resume()
            Traceback (most recent call last):
            ...
            helios.errors.ResumeError: there is no state to go on from: this trainer has not run a \
fit in this process; call fit() first
        """
        content = None if self.chkpt_root is not None else self.left.take()
        model = self.model if model is None else model
        datamodule = self.datamodule if datamodule is None else datamodule
        self.going_on = content
        try:
            return self.fit(model, datamodule)
        finally:
            self.going_on = None

    def test(self, model: Model, datamodule: DataModule) -> bool:
        """Run the full testing routine.

        It tests the last checkpoint of the model under ``chkpt_root``; without one, what the
        model's ``load_for_testing`` loads; without that, the model as it is.

        Args:
            model: the model to run on.
            datamodule: the datamodule to use.

        Returns:
            True if the training process completed successfully, false otherwise.

        Raises:
            TypeError: if the model or the datamodule is something else.
        """
        return self._run("test", self._test_exceptions, model, datamodule)

    def _run(
        self, routine: str, passed_on: Sequence[type[Exception]], model: Any, datamodule: Any
    ) -> bool:
        check.check_instance("model", model, Model)
        check.check_instance("datamodule", datamodule, DataModule)
        if not self.fast_dev_run:
            self._model, self._datamodule = model, datamodule
            return launch(self, routine, passed_on, model, datamodule)
        with trying(self, model, datamodule, routine) as tried:
            self._model, self._datamodule = tried, datamodule
            went_well = launch(self, routine, passed_on, tried, datamodule)
            if went_well and routine == "fit":
                went_well = launch(self, "test", self._test_exceptions, tried, datamodule)
            return went_well
