"""Hypothesis profiles: ``ci``, the same examples every time, and ``nightly``, many and new ones."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile(
    "ci", max_examples=300, derandomize=True, deadline=None, print_blob=True, database=None
)
settings.register_profile("nightly", max_examples=10_000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
