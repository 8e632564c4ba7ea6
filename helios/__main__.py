"""``python -m helios``: the command line."""

from __future__ import annotations

from helios.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
