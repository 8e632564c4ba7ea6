"""JSON objects whose last field is a digest of all before it: any change of them is seen.

The digest is checked before a byte is parsed, whatever the schema.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

import msgspec

from helios.errors import CheckpointError, CheckpointVersionError

_DIGEST_SIZE = 64
T = TypeVar("T", bound=msgspec.Struct)


def seal(body: bytes, tail: bytes) -> bytes:
    """Return a sealed object.

    Args:
        body: the object's bytes, without its closing brace.
        tail: what closes it, with ``%s`` where the digest goes.

    Example:
        >>> sealed = seal(b'{"a":1', b',"check":"%s"}')
        >>> unseal(sealed, b',"check":"%s"}')
        b'{"a":1'
        >>> unseal(sealed.replace(b"1", b"2", 1), b',"check":"%s"}') is None
        True
    """
    return body + tail % hashlib.sha256(body).hexdigest().encode()


def unseal(data: bytes, tail: bytes) -> bytes | None:
    """Return the body of a sealed object, None if the bytes are not what `seal` returned."""
    size = len(tail % (b"0" * _DIGEST_SIZE))
    body = data[:-size]
    return body if seal(body, tail) == data else None


class _Head(msgspec.Struct):
    schema: int
    version: str = "?"


def parse(
    data: bytes,
    tail: bytes,
    kind: type[T],
    newest: int,
    name: str,
    refused: Callable[[str], CheckpointError],
) -> T:
    """Return what a sealed object holds.

    JSON decoders accept a key twice, spaces, and much else that was never written: whoever calls
    this compares the bytes with those of the result.

    Args:
        data: the bytes.
        tail: what closes the object.
        kind: what it should hold; it has the fields ``schema`` and ``version``.
        newest: the highest schema that is known.
        name: what it is of, for errors.
        refused: makes an error of a reason.

    Raises:
        CheckpointVersionError: if a newer helios wrote it.
        CheckpointError: what ``refused`` makes, if it is anything else.
    """
    body = unseal(data, tail)
    if body is None:
        raise refused(f"its {len(data)} bytes are not what was written")
    try:
        head = msgspec.json.decode(body + b"}", type=_Head)
        if head.schema > newest:
            raise CheckpointVersionError(
                f"{name!r} has schema {head.schema}, and this helios reads up to {newest}; helios "
                f"{head.version} wrote it. Update helios."
            )
        return msgspec.json.decode(body + b"}", type=kind)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise refused(str(error)) from error
