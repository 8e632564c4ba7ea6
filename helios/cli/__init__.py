"""The command line: ``helios``, or ``python -m helios``. Nothing of helios imports it."""
