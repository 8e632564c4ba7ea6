"""``helios export``: the weights of a checkpoint, for other programs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import msgspec

from helios.cli.again import UnusableError
from helios.cli.command import add_command, add_json
from helios.cli.output import GOOD, USAGE, complain, counted, in_bytes, say, say_json
from helios.cli.survey import at, nothing_there
from helios.errors import HeliosError
from helios.trainer.store.fs import OsFs
from helios.trainer.store.reading import last_valid, read_checkpoint

SUFFIXES = (".safetensors", ".pt")

_EXAMPLES = """\
examples:
  helios export runs/digits/digits_epoch_4_iter_8.pth -o digits.safetensors
  helios export runs/digits -o digits.pt --average --prefix net.

The digest of the checkpoint is compared before anything is parsed, and the model's code is not
needed. A .pt opens with torch.load(weights_only=True), a .safetensors with safetensors. For ONNX
and torch.export, which need the model, see helios.exporting.

"""


class Exported(msgspec.Struct, frozen=True):
    """What was written.

    Args:
        checkpoint: what it comes from.
        output: where it is.
        tensors: how many tensors it has.
        bytes: how many bytes those take.
    """

    checkpoint: str
    output: str
    tensors: int
    bytes: int


def add(commands: Any) -> None:
    """Add the command to the parsers."""
    parser = add_command(
        commands,
        "export",
        run,
        brief="write the weights of a checkpoint for other programs",
        full="Write the weights of a checkpoint, or of the newest of a run, for other programs.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "path", metavar="CKPT", type=Path, help="a .pth file, or the folder of a run's checkpoints"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="a .safetensors or a .pt to write"
    )
    parser.add_argument(
        "--average", action="store_true", help="the average of the weights, if one was kept"
    )
    parser.add_argument(
        "--prefix", default="", help="only what begins with this, such as net., which is left out"
    )
    parser.add_argument("--force", action="store_true", help="replace the output if it is there")
    add_json(parser)


def run(given: argparse.Namespace) -> int:
    """Export weights, and return the exit status."""
    try:
        written = _export(given)
    except (UnusableError, HeliosError, OSError) as error:
        return complain("export", str(error), USAGE)
    if given.json:
        say_json(written)
    else:
        amount = f"{counted(written.tensors, 'tensor')}, {in_bytes(written.bytes)}"
        say([f"{written.output}: {amount}, of {written.checkpoint}"])
    return GOOD


def _export(given: argparse.Namespace) -> Exported:
    output: Path = given.output
    if output.suffix not in SUFFIXES:
        raise UnusableError(
            f"--output: received {str(output)!r}; expected a name that ends in "
            f"{' or '.join(SUFFIXES)}"
        )
    if os.path.lexists(output) and not given.force:
        raise UnusableError(f"--output: {str(output)!r} is there already; give --force as well")
    problem = at(given.path)
    if problem is not None:
        raise UnusableError(problem)
    if given.path.is_dir():
        found = last_valid(OsFs(), given.path, given.path.resolve().name)
        if found is None:
            raise UnusableError(nothing_there(given.path))
        content, path = found
    else:
        content, path = read_checkpoint(given.path), given.path
    from helios.exporting.weights import network_weights, write_weights

    weights = network_weights(content, average=given.average, prefix=given.prefix)
    write_weights(weights, output)
    size = sum(tensor.nbytes for tensor in weights.values())
    return Exported(str(path), str(output), len(weights), size)
