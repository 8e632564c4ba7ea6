"""Archives and pickles as ``torch.save`` writes them, put together by hand so as to bend them."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

NAMES = {
    "local": "magic needed flags method time date crc packed size name_size extra_size",
    "central": "magic made needed flags method time date crc packed size name_size extra_size "
    "comment_size disk internal external offset",
    "descriptor": "magic crc packed size",
    "descriptor64": "magic crc packed size",
    "end64": "magic rest made needed disk start_disk here count length offset",
    "locator": "magic disk offset disks",
    "end": "magic disk start_disk here count length offset comment_size",
}
FORMS = {
    "local": "<4s5H3I2H",
    "central": "<4s6H3I5H2I",
    "descriptor": "<4s3I",
    "descriptor64": "<4sI2Q",
    "end64": "<4sQ2H2I4Q",
    "locator": "<4sIQI",
    "end": "<4s4H2IH",
}


@dataclass
class Entry:
    """A record, and what is to be different from what torch writes."""

    name: bytes
    data: bytes
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    descriptor: dict[str, Any] = field(default_factory=dict)
    local_name: bytes | None = None
    extra: bytes | None = None  # in the local header
    central_extra: bytes = b""
    after: bytes = b""
    listed: bool = True


def pack(
    entries: list[Entry],
    *,
    end64: dict[str, Any] | None = None,
    locator: dict[str, Any] | None = None,
    end: dict[str, Any] | None = None,
    before: bytes = b"",
    between: bytes = b"",
    after: bytes = b"",
    room: int = 2**32 - 1,
) -> bytes:
    """Return an archive; without any changes it is byte for byte what torch writes.

    From ``room`` on, sizes and offsets are in the fields of zip64.
    """
    body, directory, count = bytearray(before), bytearray(), 0
    for entry in entries:
        offset, size, crc = len(body), len(entry.data), zlib.crc32(entry.data)
        name = entry.name if entry.local_name is None else entry.local_name
        flags = 0x0808 if size else 0x0800
        wide = _wide(size, 0, offset, room)
        padding = _padding(offset + 30 + len(name) + len(wide))
        extra = wide + padding if entry.extra is None else entry.extra
        local = (b"PK\3\4", 0, flags, 0, 0, 0, 0, 0, 0, len(name), len(extra))
        body += _record("local", local, entry.local) + name + extra + entry.data
        if size:
            kind = "descriptor64" if wide else "descriptor"
            body += _record(kind, (b"PK\7\10", crc, size, size), entry.descriptor)
        body += entry.after
        if entry.listed:
            central_extra = entry.central_extra or _wide(size, size, offset, room)
            short = _short(size, room), _short(offset, room)
            tail = len(entry.name), len(central_extra), 0, 0, 0, 0, short[1]
            central = (b"PK\1\2", 0, 0, flags, 0, 0, 0, crc, short[0], short[0], *tail)
            directory += _record("central", central, entry.central)
            directory += entry.name + central_extra
            count += 1
    body += between
    start, length = len(body), len(directory)
    body += directory
    stop = len(body)
    large = (b"PK\6\6", 44, 0x031E, 45, 0, 0, count, count, length, start)
    body += _record("end64", large, end64)
    body += _record("locator", (b"PK\6\7", 0, stop, 1), locator)
    body += _record("end", (b"PK\5\6", 0, 0, count, count, length, _short(start, room), 0), end)
    return bytes(body + after)


def _short(value: int, room: int) -> int:
    return 2**32 - 1 if value >= room else value


def _wide(size: int, packed: int, offset: int, room: int) -> bytes:
    values = [size, packed] * (size >= room) + [offset] * (offset >= room)
    form = f"<2H{len(values)}Q"
    return struct.pack(form, 1, 8 * len(values), *values) if values else b""


def _padding(at: int) -> bytes:
    size = 64 - (at + 4) % 64
    return struct.pack("<2sH", b"FB", size) + b"Z" * size


def _record(kind: str, values: tuple[Any, ...], changes: dict[str, Any] | None) -> bytes:
    fields = dict(zip(NAMES[kind].split(), values, strict=True))
    assert not (changes or {}).keys() - fields.keys()
    return struct.pack(FORMS[kind], *{**fields, **(changes or {})}.values())


def entries(pickle: bytes, *storages: bytes, root: bytes = b"archive") -> list[Entry]:
    """Return the records of a file, in torch's order."""
    records = {
        b"data.pkl": pickle,
        b".format_version": b"1",
        b".storage_alignment": b"64",
        b"byteorder": b"little",
        **{f"data/{key}".encode(): data for key, data in enumerate(storages)},
        b"version": b"3\n",
        b".data/serialization_id": b"0" * 40,
    }
    return [Entry(root + b"/" + name, data) for name, data in records.items()]


# Pickles: every function returns the instructions that leave its value on the stack.


def program(body: bytes) -> bytes:
    """Return a whole pickle."""
    return b"\x80\x02" + body + b"."


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def group(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def listed(*parts: bytes) -> bytes:
    return b"](" + b"".join(parts) + b"e"


def mapping(*parts: bytes) -> bytes:
    return b"}(" + b"".join(parts) + b"u"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + group(*arguments) + b"R"


def numbers(*values: int) -> bytes:
    return group(*map(number, values))


NO_HOOKS = call(name("collections", "OrderedDict"))
FALSE, TRUE, NONE = b"\x89", b"\x88", b"N"


def storage(
    key: str = "0",
    cls: str = "FloatStorage",
    numel: int = 4,
    location: str = "cpu",
    module: str = "torch",
) -> bytes:
    identity = text("storage"), name(module, cls), text(key), text(location), number(numel)
    return group(*identity) + b"Q"


def tensor(
    memory: bytes | None = None,
    *,
    offset: bytes = number(0),
    size: bytes = numbers(4),
    stride: bytes = numbers(1),
    grad: bytes = FALSE,
    hooks: bytes = NO_HOOKS,
    more: tuple[bytes, ...] = (),
    function: str = "_rebuild_tensor_v2",
) -> bytes:
    """Return a tensor, by default the four numbers of the storage 0."""
    memory = storage() if memory is None else memory
    return call(name("torch._utils", function), memory, offset, size, stride, grad, hooks, *more)
