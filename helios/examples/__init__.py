"""Examples that run as they stand: ``python -m helios.examples.digits`` and ``.char_lm``."""
