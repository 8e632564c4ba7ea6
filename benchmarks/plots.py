"""The figures as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.contestants import BASELINE, CONTESTANTS
from benchmarks.workloads import WORKLOADS

_OURS, _OTHERS = "#c8553d", "#8d99ae"


def steps(path: Path, workloads: dict[str, Any]) -> None:
    """Draw the ratio of each contestant on each workload, with its quartiles."""
    figure = _figure(3.2 * len(workloads) + 1, 4.2)
    if figure is None:
        return
    all_axes = figure.subplots(1, len(workloads), squeeze=False, sharey=True)
    names = [n for n in CONTESTANTS if any(n in w["contestants"] for w in workloads.values())]
    for axes, (workload, found) in zip(all_axes[0], workloads.items(), strict=True):
        for place, name in enumerate(reversed(names)):
            ratio = found["contestants"].get(name, {}).get("ratio")
            if ratio is None:
                continue
            middle = ratio["median"]
            around = [[middle - ratio["low"]], [ratio["high"] - middle]]
            color = _OURS if CONTESTANTS[name].module == "with_helios" else _OTHERS
            axes.barh(place, middle, color=color, xerr=around, error_kw={"linewidth": 0.8})
            axes.text(ratio["high"], place, f" {middle:.2f}", va="center", fontsize=7)
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_title(WORKLOADS[workload].label.split(",")[0], fontsize=9)
        axes.set_yticks(range(len(names)), [CONTESTANTS[n].label for n in reversed(names)])
        axes.tick_params(labelsize=7)
        axes.margins(x=0.15)
    figure.supxlabel(f"time of an update, by that of the {CONTESTANTS[BASELINE].label}", fontsize=8)
    _save(figure, path)


def tensors(path: Path, counts: dict[str, Any]) -> None:
    """Draw what helios adds to an update against the number of tensors."""
    figure = _figure(5, 3.2)
    if figure is None:
        return
    axes = figure.subplots()
    present = {int(n): found for n, found in counts.items() if "refused" not in found}
    for name, color in (("helios", _OURS), ("helios-fused", _OTHERS)):
        gaps = [found[name]["difference"] for found in present.values()]
        middles = [gap["median"] for gap in gaps]
        around = [
            [gap["median"] - gap["low"] for gap in gaps],
            [gap["high"] - gap["median"] for gap in gaps],
        ]
        axes.errorbar(
            list(present), middles, around, color=color, marker="o", label=CONTESTANTS[name].label
        )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("parameter tensors", fontsize=8)
    axes.set_ylabel("added to an update, us", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=8)
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    """Return a figure to draw on; None, and a sentence, without what draws."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        print("no pictures: matplotlib is not installed; the extra `bench` has it", flush=True)
        return None
    # Equal figures give an equal file.
    matplotlib.rcParams.update({"svg.hashsalt": "helios", "svg.fonttype": "none"})
    return Figure(figsize=(width, height))


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
