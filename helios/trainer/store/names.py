"""How checkpoints are named, and how the last one is found."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

_COUNTERS = re.compile(r"epoch_(\d+)_iter_(\d+)(?:_micro_(\d+))?(?=_|\W|$)")
_EPOCH = re.compile(r"(?:^|[_\W])epoch_(\d+)")
_ITER = re.compile(r"(?:^|[_\W])iter_(\d+)")
_UNSAFE = re.compile(r"[^A-Za-z0-9._=+-]+")
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
_LONGEST = 200  # characters of a stem: 255 bytes are a name, and ours get a few more


def checkpoint_name(
    save_name: str,
    epoch: int,
    iteration: int,
    metadata: str = "",
    micro_batch: int | None = None,
    *,
    due: bool = False,
) -> str:
    """Return the file name of a checkpoint.

    Args:
        save_name: the model's name.
        epoch: the global epoch.
        iteration: the current iteration, in updates.
        metadata: what `helios.Model.append_metadata_to_chkpt_name` returned: the name without
            extension and something after it, or only what comes after it. Characters that do not
            belong into a file name become ``-``.
        micro_batch: the global iteration of a run that stopped inside of an accumulation window,
            so that it does not take the name of the update before it; None between windows.
        due: whether the run stopped before a validation or the end of the epoch that is due at
            this update; the checkpoint after them has the plain name.

    Example:
        >>> checkpoint_name("digits", 3, 171, "accuracy_0.9")
        'digits_epoch_3_iter_171_accuracy_0.9.pth'
    """
    stem = f"{save_name}_epoch_{epoch}_iter_{iteration}"
    if micro_batch is not None:
        stem += f"_micro_{micro_batch}"
    if due:
        stem += "_due"
    extra = _UNSAFE.sub("-", metadata.removeprefix(stem)).strip("_")[: _LONGEST - len(stem) - 1]
    return f"{stem}_{extra}.pth" if extra else f"{stem}.pth"


def is_stem(name: str, save_name: str) -> bool:
    """Tell whether a name without its extension is one that the store gives a checkpoint.

    Example:
        >>> is_stem("m_epoch_1_iter_2", "m"), is_stem("../m_epoch_1_iter_2", "m")
        (True, False)
    """
    return _STEM.fullmatch(name) is not None and parse_counters(name, save_name) is not None


def find_last_checkpoint(root: Path | None) -> Path | None:
    """Find the last saved checkpoint (if available).

    The function assumes that checkpoint names contain ``epoch_<epoch>`` and ``iter_<iter>`` in the
    name, in which case it will return the path to the checkpoint with the highest epoch and/or
    iteration count, compared as numbers. The name of the folder, which is that of the model, may
    hold such words too, and so may metadata.

    Checkpoints with a manifest beside them come before those without: helios never committed those,
    or somebody moved them. Nothing is read; `helios.Trainer` itself looks for the last one that is
    also whole.

    Args:
        root: the path where the checkpoints are stored.

    Returns:
        The path to the last checkpoint (if any).
    """
    if root is None or not Path(root).is_dir():
        return None
    root = Path(root)
    found = []
    for path in root.iterdir():
        if path.suffix == ".pth" and not path.name.startswith(".") and path.is_file():
            counters = parse_counters(path.stem, root.name)
            if counters is not None:
                committed = path.with_suffix(".json").is_file()
                with contextlib.suppress(FileNotFoundError):  # a run may be removing it
                    found.append((committed, counters, path.stat().st_mtime_ns, path.name, path))
    return max(found)[-1] if found else None


def parse_counters(stem: str, save_name: str) -> tuple[int, int, int] | None:
    """Return epoch, iteration and micro-batch of a checkpoint's name, None if it names neither.

    The micro-batch is 0 where the name has none.

    Args:
        stem: the file name without its extension.
        save_name: the model's name, if the file's name begins with it.

    Example:
        >>> parse_counters("first_iter_100_epoch_2_iter_5", "first_iter_100")
        (2, 5, 0)
    """
    rest = stem.removeprefix(f"{save_name}_") if save_name else stem
    if rest != stem and (match := _COUNTERS.match(rest)):
        return int(match[1]), int(match[2]), int(match[3] or 0)
    if matches := _COUNTERS.findall(stem):
        epoch, iteration, micro_batch = matches[-1]
        return int(epoch), int(iteration), int(micro_batch or 0)
    epochs, iterations = _EPOCH.findall(stem), _ITER.findall(stem)
    if not epochs and not iterations:
        return None
    return int(epochs[-1]) if epochs else 0, int(iterations[-1]) if iterations else 0, 0
