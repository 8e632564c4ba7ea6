"""A run that is left before its end."""

from __future__ import annotations

from helios.trainer.loop import Loop


def left(loop: Loop) -> str:
    """Save the state of a run that is left, and say whether that went well; it is left anyway."""
    try:
        loop.save_resumable()
    except Exception as error:
        return f"Its state could not be saved: {error}"
    return "Its state is saved; run again to go on."
