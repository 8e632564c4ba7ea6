"""The version of helios."""

__version__ = "0.1.0"
