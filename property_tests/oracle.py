"""A naive training loop, written from the semantics alone: what `schedule` must agree with.

It knows nothing of resuming, keeps its counters in a dict and its decisions in flags, and shares
no code with the library. Events are plain tuples ``(name, *fields)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = tuple[tuple[Any, ...], dict[str, int]]
Answer = Callable[[tuple[Any, ...]], tuple[bool, bool]]


class _OverError(Exception):
    pass


def run(
    *,
    unit: str,
    total: int | None,
    size_of: Callable[[int], int],
    accumulation: int,
    valid: int | None,
    chkpt: int | None,
    log: int | None,
    patience: int | None,
    save_final: bool,
    answer: Answer,
    limit: int,
) -> list[Row]:
    """Return the first ``limit`` events of a new run, each with the counters once it is done.

    ``size_of(epoch)`` is the number of micro-batches of an epoch. ``answer(event)`` gives
    ``(improved, stop)``.
    """
    counters = {
        "current_iteration": 0,
        "global_iteration": 0,
        "global_epoch": 0,
        "validation_cycles": 0,
        "dataset_iter": 0,
        "early_stop_count": 0,
        "running_iter": 0,
        "window_iter": 0,
    }
    rows: list[Row] = []
    on_disk: dict[str, int] = {}

    def emit(*event: Any) -> tuple[bool, bool]:
        if len(rows) == limit:
            raise _OverError
        rows.append((event, dict(counters)))
        return answer(event)

    def done() -> None:
        rows[-1] = (rows[-1][0], dict(counters))

    def validate() -> bool:
        improved, stop = emit("Validate", counters["validation_cycles"])
        counters["validation_cycles"] += 1
        counters["running_iter"] = 0
        if improved:
            counters["early_stop_count"] = 0
        else:
            counters["early_stop_count"] += 1
        done()
        return stop

    def save(cadence: bool) -> bool:
        on_disk.clear()
        on_disk.update(counters)
        _, stop = emit(
            "Checkpoint", counters["global_epoch"], counters["current_iteration"], cadence
        )
        return stop

    def finish(reason: str) -> None:
        if save_final and on_disk != counters:
            save(cadence=False)
        emit("Stop", reason)
        raise _OverError

    def stop_if_due(asked: bool, steps_done: int) -> None:
        if patience is not None and counters["early_stop_count"] >= patience:
            finish("early_stop")
        if asked:
            finish("requested")
        if total is not None and steps_done >= total:
            finish("total_steps")

    def micro_batch(last: bool, asked: bool) -> bool:
        index = counters["dataset_iter"]
        update = counters["window_iter"] == accumulation - 1
        if unit == "epoch" and last:
            update = True
        counters["global_iteration"] += 1
        counters["window_iter"] += 1
        should_log = False
        if update:
            counters["window_iter"] = 0
            counters["current_iteration"] += 1
            counters["running_iter"] += 1
            should_log = log is not None and counters["current_iteration"] % log == 0
        _, stop = emit(
            "Batch",
            counters["global_epoch"],
            index,
            counters["global_iteration"],
            update,
            should_log,
        )
        counters["dataset_iter"] += 1
        done()
        if stop or asked:
            updates = counters["current_iteration"]
            if unit == "iteration" and update and not last:
                validation_first = valid is not None and updates % valid == 0
                if not validation_first and chkpt is not None and updates % chkpt == 0:
                    save(cadence=True)
            finish("requested")
        return update

    def epoch_by_iterations() -> None:
        size = size_of(counters["global_epoch"])
        _, asked = emit("EpochStart", counters["global_epoch"], 0)
        for index in range(size):
            last = index == size - 1
            update = micro_batch(last, asked)
            stop = False
            updates = counters["current_iteration"]
            if update and valid is not None and updates % valid == 0:
                stop = validate()
            if last:
                counters["dataset_iter"] = 0
                stop = emit("EpochEnd", counters["global_epoch"])[1] or stop
            if update and chkpt is not None and updates % chkpt == 0:
                stop = save(cadence=True) or stop
            if update or last:
                stop_if_due(stop, updates)

    def epoch_by_epochs() -> None:
        size = size_of(counters["global_epoch"])
        epoch = counters["global_epoch"]
        _, asked = emit("EpochStart", epoch, 0)
        for index in range(size):
            micro_batch(index == size - 1, asked)
        counters["dataset_iter"] = 0
        stop = False
        if valid is not None and epoch % valid == 0:
            stop = validate()
        stop = emit("EpochEnd", epoch)[1] or stop
        if chkpt is not None and epoch % chkpt == 0:
            stop = save(cadence=True) or stop
        stop_if_due(stop, epoch)

    try:
        while True:
            counters["global_epoch"] += 1
            if unit == "iteration":
                epoch_by_iterations()
            else:
                epoch_by_epochs()
    except _OverError:
        return rows
