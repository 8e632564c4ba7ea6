"""Whether all contestants did the same work."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.contestants import SAVE_EVERY, Contestant
from benchmarks.rounds import Run

EARLY_TOLERANCE = 1e-4
"""How far parameters may be from the baseline's after the first updates, where other kernels round
in another way: the norm of the difference, by that of the way that the baseline has gone."""

FINAL_TOLERANCE = 0.01
"""How far the loss over all batches may be from the baseline's at the end, by what the baseline's
has fallen. Rounding errors grow from update to update: parameters cannot be compared there."""


def disagreement(
    contestant: Contestant, run: Run, baseline: Run, full: bool, total: int
) -> tuple[str | None, dict[str, Any]]:
    """Say in what a run's work differs from the baseline's, None if in nothing.

    Args:
        contestant: whose run it is.
        run: the run, at its end.
        baseline: the baseline's run.
        full: whether checkpoints and logs were to be written.
        total: updates of the run.

    Returns:
        What differs, and what was measured.
    """
    if full:
        if run.done["saves"] < total // SAVE_EVERY:
            return f"it wrote {run.done['saves']} checkpoints, not {total // SAVE_EVERY}", {}
        if not run.done["logs"]:
            return "it wrote nothing for TensorBoard", {}
    own, theirs = (np.load(r.folder / "parameters.npz") for r in (run, baseline))
    if not np.array_equal(_bits(own["first"]), _bits(theirs["first"])):
        return "it started from other weights", {}
    if run is baseline:
        return None, {"bitwise": True}
    same = all(np.array_equal(_bits(own[at]), _bits(theirs[at])) for at in ("early", "last"))
    if contestant.exact:
        return None if same else "its parameters are not those of the baseline", {"bitwise": same}
    moved = float(np.linalg.norm(theirs["early"] - theirs["first"]))
    early = float(np.linalg.norm(own["early"] - theirs["early"])) / moved
    fallen = baseline.done["before"] - baseline.done["loss"]
    if not fallen > 0:
        return "the baseline's loss has not fallen, so that there is nothing to compare with", {}
    final = abs(run.done["loss"] - baseline.done["loss"]) / fallen
    measured = {"bitwise": same, "early": early, "final": final}
    if not early <= EARLY_TOLERANCE:
        return f"its first updates are {early:.2g} away; {EARLY_TOLERANCE:g} is allowed", measured
    if not final <= FINAL_TOLERANCE:
        return f"its last loss is {final:.2g} away; {FINAL_TOLERANCE:g} is allowed", measured
    return None, measured


def _bits(values: Any) -> Any:
    return values.view(np.uint32)
