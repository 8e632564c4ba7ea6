"""A process that has run no autograd, in which tests let torture trials be forked.

A request is one line of JSON, a name and arguments; the name is that of a function, as
``module:function``, which is called with a `Campaign` and the arguments. The answer is one line.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch

from tests.exactness.zygote import begin
from tests.torture.campaign import Campaign
from tests.torture.tally import Tally
from tests.torture.warm import warm


class Server:
    """The other side, for tests."""

    def __enter__(self) -> Server:
        self._process = begin("tests.torture.server")
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate()

    def call(self, name: str, **arguments: Any) -> Any:
        """Call a function there, and return its result.

        Raises:
            RuntimeError: with what it raised.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, arguments]).encode() + b"\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]


def serve() -> None:
    """Take requests from standard input, and answer each."""
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "wb")
    os.set_inheritable(answers.fileno(), False)
    os.dup2(2, 1)
    memory = "/dev/shm"
    root = Path(tempfile.mkdtemp(prefix="helios-", dir=memory if os.access(memory, 2) else None))
    warm(root)
    campaign = Campaign(root, Tally(), lambda line: None)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        module, function = name.split(":")
        try:
            result = getattr(importlib.import_module(module), function)(campaign, **arguments)
            answer = {"result": result}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
    shutil.rmtree(root)


if __name__ == "__main__":
    serve()
