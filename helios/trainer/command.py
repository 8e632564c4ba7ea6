"""How to run a failed step again, from how this process was started."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HIDDEN = "***"
_SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(://[^/@\s:]*:)[^/@\s]+@")
# Programs that run somebody else's code in their own process: their arguments lead to no script.
_HOSTS = {"pytest", "py", "unittest", "doctest", "ipykernel", "ipykernel_launcher"}
_HOSTS |= {"IPython", "ipython", "ipython3", "colab_kernel_launcher", "idlelib", "ptpython"}


def how_to_run_again(bundle: Path) -> str:
    """Return the sentence that ends with how to run a failed step again.

    That is a command, if this process was started from a script or a module, and a call of
    `helios.reproduce` if not. Values of options that look like secrets are left out of it.

    Args:
        bundle: the file of the failed micro-batch.
    """
    main = sys.modules.get("__main__")
    moved = _has_moved(main)
    shown = _short(bundle, moved)
    words = invocation(main, sys.argv, moved)
    if words is None:
        call = f"helios.reproduce(model, datamodule, {json.dumps(shown, ensure_ascii=False)})"
        return _printable(f"To run this very step again: {call}")
    hint = f" (put back what {_HIDDEN} hides)" if any(_HIDDEN in word for word in words) else ""
    command = shlex.join(["python", "-m", "helios.debug", shown, *words])
    return _printable(f"To run this very step again in a debugger{hint}: {command}")


def invocation(main: Any, argv: Sequence[str], moved: bool = False) -> list[str] | None:
    """Return what ``python`` was given to start a program: a script or ``-m``, and arguments.

    Args:
        main: the module ``__main__``.
        argv: ``sys.argv``.
        moved: whether the script is to be named in full, since the folder is another one now.

    Returns:
        None if there is no script: for ``-c``, for interactive sessions, notebooks and tests.
    """
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if file is None or not argv:
        return None
    arguments = redacted(argv[1:])
    if spec is not None and spec.name != "__main__":  # a folder with a __main__.py is a script
        module = spec.name.removesuffix(".__main__")
        return None if module.split(".")[0] in _HOSTS else ["-m", module, *arguments]
    if Path(argv[0]).stem in _HOSTS or not os.path.exists(file):
        return None
    script = file if moved or not os.path.exists(argv[0]) else argv[0]
    return [script, *arguments]


def redacted(arguments: Sequence[str]) -> list[str]:
    """Return arguments without the values of options whose name speaks of a key or the like.

    Example:
        >>> redacted(["--lr", "0.1", "--api-key", "x1", "login.token=x2", "--seed=3"])
        ['--lr', '0.1', '--api-key', '***', 'login.token=***', '--seed=3']
    """
    kept: list[str] = []
    secret = False  # the arguments now are the values of such an option
    first = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        option = argument.startswith("-" if not first else "--")
        first = False
        if equals and _SECRET.search(name):
            kept.append(f"{name}={_HIDDEN}")
            secret = False
        elif option:
            secret = first = not equals and _SECRET.search(name) is not None
            kept.append(_IN_ADDRESS.sub(rf"\1{_HIDDEN}@", argument))
        else:
            kept.append(_HIDDEN if secret else _IN_ADDRESS.sub(rf"\1{_HIDDEN}@", argument))
    return kept


def _has_moved(main: Any) -> bool:
    """Tell whether the script has changed the folder, as far as its name tells."""
    file = getattr(main, "__file__", None)
    if file is None or not sys.argv or getattr(main, "__spec__", None) is not None:
        return False
    return os.path.abspath(sys.argv[0]) != os.path.abspath(str(file))


def _short(path: Path, moved: bool) -> str:
    """Return a path as one would type it here."""
    try:
        return str(path if moved else path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def _printable(text: str) -> str:
    """Escape what is not Unicode, so that every file and terminal takes it."""
    return text.encode("utf-8", "backslashreplace").decode()
