"""The trainer's arguments: checked once, strictly, at construction."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from helios.core.distributed import get_dist_info
from helios.functional.state import TrainingUnit
from helios.loggers.run_log import RunLog
from helios.plugins import Plugin, PluginSet
from helios.trainer.engine import PIECES
from helios.trainer.profiling import Profile
from helios.trainer.ranks.options import DDP, FSDP
from helios.trainer.store.retention import Retention


def check_unit(value: Any) -> TrainingUnit:
    """Return the unit that an enum value or a label stands for."""
    if isinstance(value, TrainingUnit):
        return value
    if isinstance(value, str):
        try:
            return TrainingUnit.from_str(value)
        except ValueError:
            raise _value("train_unit", value, "'iteration' or 'epoch'") from None
    raise _type("train_unit", value, "a TrainingUnit, 'iteration' or 'epoch'")


def check_total_steps(value: Any) -> int | float:
    """Return ``total_steps``: an int of at least 0, or infinity."""
    if isinstance(value, float) and value == math.inf:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _type("total_steps", value, "an int > 0 or float('inf')")
    if isinstance(value, float) or value < 0:
        raise _value("total_steps", value, "an int > 0 or float('inf')")
    return value


def check_count(name: str, value: Any) -> int | None:
    """Return an int of at least 1, or None."""
    return None if value is None else _positive(name, value, "an int > 0, or None")


def check_window(value: Any) -> int:
    """Return ``accumulation_steps``: an int of at least 1."""
    return _positive("accumulation_steps", value, "an int > 0")


def check_bool(name: str, value: Any) -> bool:
    """Return a bool."""
    if not isinstance(value, bool):
        raise _type(name, value, "a bool")
    return value


def check_seed(value: Any) -> int | None:
    """Return a seed of at most 64 bits, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _type("random_seed", value, "an int, or None")
    if not 0 <= value < 2**63:
        raise _value("random_seed", value, "an int from 0 to 2**63 - 1")
    return value


def check_path(name: str, value: Any) -> Path | None:
    """Return an absolute path, or None; a relative one is taken from the present folder, now."""
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise _type(name, value, "a path, or None")
    return Path(value).expanduser().absolute()


def check_string(name: str, value: Any) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise _type(name, value, "a string")
    return value


def check_plugins(value: Any) -> dict[str, Plugin]:
    """Return plugins by id.

    Raises:
        TypeError: if one of them is something else.
        ValueError: if two have one id or claim the same for themselves.
    """
    if not isinstance(value, (list, tuple)):
        raise _type("plugins", value, "a list of helios.Plugin")
    plugins: dict[str, Plugin] = {}
    for plugin in value:
        if not isinstance(plugin, Plugin):
            raise TypeError(f"plugins: received {plugin!r} among them; expected helios.Plugin")
        if plugin.plug_id in plugins:
            raise ValueError(f"plugins: received two with the id {plugin.plug_id!r}; expected one")
        plugins[plugin.plug_id] = plugin
    PluginSet(plugins)  # raises if two of them claim the same
    return plugins


def check_logs(value: Any) -> list[RunLog]:
    """Return logs of a run.

    Raises:
        TypeError: if one of them is something else.
        ValueError: if one is given twice.
    """
    if not isinstance(value, (list, tuple)):
        raise _type("logs", value, "a list of helios.RunLog, such as [CSVLog('log.csv')]")
    for log in value:
        if not isinstance(log, RunLog):
            raise TypeError(
                f"logs: received {log!r} among them; expected a helios.RunLog, such as "
                "CSVLog('log.csv')"
            )
    if len({id(log) for log in value}) < len(value):
        raise ValueError("logs: received one log twice; expected each once")
    return list(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of some words."""
    if not isinstance(value, str):
        raise _type(name, value, f"one of {list(choices)}")
    if value not in choices:
        raise _value(name, value, f"one of {list(choices)}")
    return value


def check_updates_to_try(value: Any) -> int:
    """Return how many updates ``fast_dev_run`` runs; 0 for none."""
    if isinstance(value, bool):
        return int(value)
    return _positive("fast_dev_run", value, "a bool, or a number of updates")


def check_profile(value: Any) -> Profile | None:
    """Return which updates to profile, or None."""
    if value is not None and not isinstance(value, Profile):
        raise _type("profile", value, "a helios.Profile, such as helios.Profile(updates=3)")
    if value is None or value.to is None:
        return value
    return replace(value, to=check_path("profile.to", value.to))


def check_compile(value: Any) -> bool | str:
    """Return whether to compile, or the name of the backend to do it with."""
    if not isinstance(value, str):
        return check_bool("compile", value)
    return check_choice("compile", value, torch.compiler.list_backends(exclude_tags=()))


def check_retention(value: Any, chkpt_root: Path | None) -> Retention | None:
    """Return a retention, or None.

    Raises:
        TypeError: if it is something else.
        ValueError: if there are no checkpoints to keep.
    """
    if value is None:
        return None
    if not isinstance(value, Retention):
        raise _type("retention", value, "a helios.Retention, such as helios.Retention(last=3)")
    if chkpt_root is None:
        raise _value("retention", value, "a chkpt_root too, or no retention: nothing is saved")
    return value


def check_instance(name: str, value: Any, kind: type) -> None:
    """Raise if a value is not an instance of a class of helios."""
    if isinstance(value, kind):
        return
    expected = f"a {kind.__module__.rsplit('.', 1)[0]}.{kind.__name__}"
    if isinstance(value, type) and issubclass(value, kind):
        raise TypeError(
            f"{name}: received the class {value.__name__}; expected an instance of it, such as "
            f"{value.__name__}(...)"
        )
    raise TypeError(f"{name}: received a {type(value).__name__}; expected {expected}")


def check_gpus(gpus: Any, use_cpu: Any) -> tuple[list[int], torch.device]:
    """Return the GPU ids in use and the device that this process computes on.

    Raises:
        ValueError: if both a CPU and GPUs are asked for, or if there is no such GPU.
        TypeError: if the ids are no list of ints.
    """
    if use_cpu is not None:
        check_bool("use_cpu", use_cpu)
    local_rank = get_dist_info().local_rank
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus is None:
        if use_cpu or available == 0:
            return [], torch.device("cpu")
        if local_rank >= available:
            raise ValueError(
                f"gpus: this process has LOCAL_RANK {local_rank}, and this machine has {available} "
                "GPU(s); start at most one process for each, or give use_cpu=True"
            )
        return [local_rank], torch.device("cuda", local_rank)
    if not isinstance(gpus, (list, tuple)) or any(
        isinstance(g, bool) or not isinstance(g, int) for g in gpus
    ):
        raise _type("gpus", gpus, "a list of GPU ids, or None")
    if use_cpu:
        raise ValueError(f"gpus: received {gpus} with use_cpu=True; expected one of the two")
    if not gpus or len(set(gpus)) != len(gpus):
        raise _value("gpus", gpus, "a list of at least one GPU id, each once")
    if not all(0 <= gpu < available for gpu in gpus):
        raise _value("gpus", gpus, f"ids below {available}, the number of CUDA devices here")
    if local_rank >= len(gpus):
        raise ValueError(
            f"gpus: received {gpus} in the process with LOCAL_RANK {local_rank}; expected an id "
            "for each process of this machine"
        )
    return list(gpus), torch.device("cuda", gpus[local_rank])


def check_cpu_ranks(cpu_ranks: Any, use_cpu: Any, gpus: Any) -> int | None:
    """Return the number of processes to start on the CPU.

    Raises:
        ValueError: if it is less than 1, or comes with GPUs.
        TypeError: if it is no int.
    """
    if cpu_ranks is None:
        return None
    _positive("cpu_ranks", cpu_ranks, "a number of processes, or None")
    if gpus is not None or use_cpu is False:
        raise ValueError(
            f"cpu_ranks: received {cpu_ranks} with gpus={gpus} and use_cpu={use_cpu}; expected one "
            "of the two: ranks on the CPU, or on GPUs"
        )
    return int(cpu_ranks)


def check_pieces(pieces: Any, reduction: str) -> int | None:
    """Return in how many pieces a micro-batch is cut, None for one a rank.

    Raises:
        ValueError: if it is less than 1, or the reduction cuts none.
        TypeError: if it is no int.
    """
    if reduction != "canonical":
        if pieces is not None:
            raise ValueError(
                f"pieces: received {pieces!r} with reduction={reduction!r}; only "
                'reduction="canonical" cuts micro-batches in pieces'
            )
        return None
    return PIECES if pieces is None else _positive("pieces", pieces, "a number of pieces, or None")


def check_parallel(parallel: Any, reduction: str, async_saving: bool) -> DDP | FSDP | None:
    """Return the options of the engine of several ranks.

    Raises:
        TypeError: if they are something else.
        ValueError: if they exclude another argument.
    """
    if parallel is None:
        return None
    if not isinstance(parallel, (DDP, FSDP)):
        raise _type("parallel", parallel, "a helios.DDP, a helios.FSDP, or None")
    if reduction == "canonical":
        raise ValueError(
            f"parallel: received a {type(parallel).__name__} with reduction='canonical', which has "
            "an engine of its own; expected one of the two"
        )
    if isinstance(parallel, FSDP) and async_saving:
        raise ValueError(
            "async_saving: received True with a helios.FSDP, whose checkpoints every rank writes "
            "at once; expected one of the two"
        )
    return parallel


def check_timeout(timeout: Any) -> float:
    """Return how long ranks wait for each other, in seconds.

    Raises:
        ValueError: if it is not above 0 and finite.
        TypeError: if it is no number.
    """
    expected = "a number of seconds above 0"
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise _type("rank_timeout", timeout, expected)
    if not 0 < timeout < math.inf:
        raise _value("rank_timeout", timeout, expected)
    return float(timeout)


def check_recorder(flight_recorder: Any, chkpt_root: Path | None) -> bool:
    """Return whether to record every update.

    Raises:
        TypeError: if it is no bool.
        ValueError: if there is no folder to do it in.
    """
    if check_bool("flight_recorder", flight_recorder) and chkpt_root is None:
        raise _value("flight_recorder", True, "a chkpt_root too: the record is kept in its folder")
    return bool(flight_recorder)


def check_exclusive(
    *,
    benchmark: bool,
    deterministic: bool,
    early_stop_cycles: int | None,
    valid_frequency: int | None,
    chkpt_frequency: int | None,
    chkpt_root: Path | None,
    enable_tensorboard: bool,
    run_path: Path | None,
    enable_file_logging: bool,
    log_path: Path | None,
) -> None:
    """Check the arguments that need or exclude each other.

    Raises:
        ValueError: naming the argument that is missing, or the pair that cannot be.
    """
    if benchmark and deterministic:
        raise ValueError(
            "enable_cudnn_benchmark and enable_deterministic: received True for both; expected at "
            "most one, since the benchmark chooses kernels by their speed of the moment"
        )
    needs = (
        ("early_stop_cycles", early_stop_cycles, "valid_frequency", valid_frequency),
        ("chkpt_frequency", chkpt_frequency, "chkpt_root", chkpt_root),
        ("enable_tensorboard", enable_tensorboard, "run_path", run_path),
        ("enable_file_logging", enable_file_logging, "log_path", log_path),
    )
    for name, given, other, needed in needs:
        if given and needed is None:
            raise ValueError(f"{name}: received {given!r} without {other}; give {other} as well")


def _positive(name: str, value: Any, expected: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _type(name, value, expected)
    if value < 1:
        raise _value(name, value, expected)
    return value


def _value(name: str, received: Any, expected: str) -> ValueError:
    return ValueError(f"{name}: received {received!r}; expected {expected}")


def _type(name: str, received: Any, expected: str) -> TypeError:
    kind = type(received).__name__
    return TypeError(f"{name}: received {received!r} of type {kind}; expected {expected}")
