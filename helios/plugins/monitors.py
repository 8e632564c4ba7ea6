"""Monitors: how fast a run is, and how much memory it takes. They look, and change nothing."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from helios.functional import metrics
from helios.functional.share import is_shared
from helios.functional.state import TrainingState
from helios.plugins.plugin import Plugin
from helios.plugins.registry import PLUGIN_REGISTRY

_MIB = 2.0**20
_PLAIN = (tuple, list)


@PLUGIN_REGISTRY.register
class ThroughputMonitor(Plugin):
    """Reports samples, updates and micro-batches per second, and the share of time spent on data.

    Each number is that of one window: the time between two reports of the training metrics, without
    the validations in it. Saving is in it. Of several ranks, rank 0's samples are counted, times
    the number of ranks: they differ by a few where batches are cut unequally.

    Attributes:
        last: the numbers of the last window by tag: ``throughput/samples_per_second``,
            ``updates_per_second``, ``micro_batches_per_second`` and ``waiting_for_data`` (0 to 1).

    Args:
        plug_id: the id of the plugin.

    Example:
        >>> ThroughputMonitor().last
        {}
    """

    def __init__(self, plug_id: str = "throughput") -> None:
        super().__init__(plug_id)
        self.last: dict[str, float] = {}
        self._begin(TrainingState())

    def on_training_start(self) -> None:
        """Begin the first window."""
        self._begin(self.trainer.state)

    def on_training_batch_fetched(self, batch: Any, seconds: float) -> None:
        """Count the samples of a batch, and the time that it was waited for."""
        self._waited += seconds
        first = batch[0] if type(batch) in _PLAIN and batch else batch
        if type(first) is torch.Tensor and first.ndim:  # as nearly always: a shorter way to it
            self._samples += first.shape[0]
        elif is_shared(batch):
            self._samples += sum(piece.count for piece in batch)
        else:
            self._samples += metrics.batch_size(batch)

    def on_validation_start(self, validation_cycle: int) -> None:
        """Stop the clock of the window."""
        self._paused = time.perf_counter()

    def on_validation_end(self, validation_cycle: int) -> None:
        """Let the clock of the window run again."""
        self._start += time.perf_counter() - self._paused

    def on_training_report(self, state: TrainingState) -> None:
        """Report the window, and begin a new one."""
        seconds = time.perf_counter() - self._start
        batches = state.global_iteration - self._batches
        if batches == 0 or seconds <= 0:
            return
        ranks = self.trainer.ranks.world_size
        self.last = {
            "throughput/samples_per_second": self._samples * ranks / seconds,
            "throughput/updates_per_second": (state.current_iteration - self._updates) / seconds,
            "throughput/micro_batches_per_second": batches / seconds,
            "throughput/waiting_for_data": min(self._waited / seconds, 1.0),
        }
        for tag, value in self.last.items():
            self.trainer.log.scalar(tag, value)
        self._begin(state)

    def _begin(self, state: TrainingState) -> None:
        self._start = self._paused = time.perf_counter()
        self._samples, self._waited = 0, 0.0
        self._batches, self._updates = state.global_iteration, state.current_iteration


@PLUGIN_REGISTRY.register
class MemoryMonitor(Plugin):
    """Reports the memory of this process, and of its GPU, at each report of the training metrics.

    Attributes:
        last: the numbers of the last report by tag, in MiB: ``memory/process`` and
            ``memory/process_peak``; on CUDA ``memory/gpu_allocated``, ``memory/gpu_reserved`` and
            their ``_peak``.

    Args:
        plug_id: the id of the plugin.

    Example:
        >>> MemoryMonitor().last
        {}
    """

    def __init__(self, plug_id: str = "memory") -> None:
        super().__init__(plug_id)
        self.last: dict[str, float] = {}

    def on_training_report(self, state: TrainingState) -> None:
        """Report the memory that is in use."""
        self.last = {f"memory/{name}": value / _MIB for name, value in self._bytes().items()}
        for tag, value in self.last.items():
            self.trainer.log.scalar(tag, value)

    def _bytes(self) -> dict[str, float]:
        used = process_memory()
        if self.device.type == "cuda":
            cuda = torch.cuda
            used["gpu_allocated"] = cuda.memory_allocated(self.device)
            used["gpu_allocated_peak"] = cuda.max_memory_allocated(self.device)
            used["gpu_reserved"] = cuda.memory_reserved(self.device)
            used["gpu_reserved_peak"] = cuda.max_memory_reserved(self.device)
        return used


def process_memory() -> dict[str, float]:
    """Return the resident memory of this process now and at its peak, in bytes, where it is known.

    Example:
        >>> used = process_memory()
        >>> all(size > 0 for size in used.values())
        True
    """
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        names = {"process": "VmRSS", "process_peak": "VmHWM"}
        return {
            name: float(fields[field].split()[0]) * 1024
            for name, field in names.items()
            if field in fields
        }
    try:
        import resource
    except ImportError:  # Windows
        return {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"process_peak": float(peak) * (1 if sys.platform == "darwin" else 1024)}
