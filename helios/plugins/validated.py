"""Reading what a validation measured."""

from __future__ import annotations

from helios.plugins.plugin import Plugin


def metric_value(plugin: Plugin, metric: str) -> float:
    """Return a metric of the validation that just ended.

    Args:
        plugin: who asks.
        metric: its name.

    Raises:
        ValueError: if the validation did not compute it; the message lists those it did.
    """
    measured = plugin.trainer.model.valid_metrics
    if metric not in measured:
        raise ValueError(
            f"metric of plugin {plugin.plug_id!r}: received {metric!r}, which the validation did "
            f"not compute; expected one of {sorted(measured)}"
        )
    return float(measured[metric])
