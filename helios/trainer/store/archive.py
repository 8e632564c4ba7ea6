"""The zip archive that ``torch.save`` writes, checked byte by byte before torch opens it.

Readers of zip files differ in what they make of a name that is there twice, of records that overlap
and of bytes between them, so that two of them can see two contents in one file. Here a file has
one meaning: it is accepted if every byte of it is where ``torch.save`` puts it, and refused
otherwise. Nothing is allocated that the file's own size does not bound.

References:
    The format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT. Torch's writer adds to
    it an extra field ``FB`` that aligns the records.
"""

from __future__ import annotations

import re
import struct
from typing import IO, NamedTuple

from helios.trainer.store.symbols import refused, shown

MAX_RECORDS = 2**17
"""How many records an archive may have: a storage is one, and no model has 100,000 of them."""

MAX_PICKLE = 2**26
"""How many bytes ``data.pkl`` may have; a tensor takes about 110 of them."""

_MAX_NAME = 300  # torch's longest is the stem of a file's name, 255 bytes, and "/.data/serial..."
_MAX_SMALL = 64  # the records beside the pickle and the storages: the longest is 40 digits

_MAX_16, _MAX_32 = 2**16 - 1, 2**32 - 1  # stand for numbers that are elsewhere, in 64 bits
_ROOM = 2**32 - 1  # from here on, sizes and offsets of records are
_STORED, _NO_SIZE, _DESCRIBED = 0, 0x0800, 0x0808  # UTF-8 names; sizes come after the data

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_DESCRIPTOR = struct.Struct("<4s3I")
_DESCRIPTOR_64 = struct.Struct("<4sI2Q")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")
_ENDS = _END_64.size + _LOCATOR.size + _END.size  # torch always writes all three

_ROOT = re.compile(rb"(?!\.\.?/)[^\x00-\x1f\x7f/\\]+/")
_STORAGE = re.compile(rb"data/(0|[1-9][0-9]*)")
_SMALL = {
    b".format_version": re.compile(rb"1"),
    b".storage_alignment": re.compile(rb"[1-9][0-9]{0,4}"),
    b"byteorder": re.compile(rb"little"),
    b"version": re.compile(rb"3\n"),
    b".data/serialization_id": re.compile(rb"[0-9]{1,40}"),
}


class Archive(NamedTuple):
    """What a checked archive holds."""

    pickle: bytes
    """The record ``data.pkl``."""

    storages: dict[str, int]
    """The size of every record ``data/<key>``, in bytes, by its key."""


class _Record(NamedTuple):
    name: bytes
    flags: int
    crc: int
    size: int
    offset: int  # of the local header


class _Extent(NamedTuple):
    start: int  # of the data
    size: int
    padding: int


def scan_archive(file: IO[bytes], size: int) -> Archive:
    """Read the directory of an archive and check every byte that is not data.

    Args:
        file: open for reading, seekable; where it stands afterwards is not defined.
        size: its size in bytes.

    Raises:
        CorruptCheckpointError: if it is not what ``torch.save`` writes.
    """
    start, stop, count = _ends(file, size)
    records = _directory(_read(file, start, stop - start), count)
    position = 0
    extents: dict[bytes, _Extent] = {}
    root = _ROOT.match(records[0].name) if records else None
    if root is None:
        raise refused("it has no record under a root folder")
    for record in records:
        if not record.name.startswith(root[0]):
            raise refused(f"the record {shown(record.name)} is not under {shown(root[0])}")
        name = record.name[root.end() :]
        if name in extents:
            raise refused(f"it has two records {shown(name)}")
        if record.offset != position:
            raise refused(f"the record {shown(name)} is not right after the one before it")
        extents[name], position = _extent(file, record)
    if position != start:
        raise refused("it has bytes between its last record and its directory")
    return _contents(file, extents)


def _read(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise refused("it ends before what it points to")
    return data


def _ends(file: IO[bytes], size: int) -> tuple[int, int, int]:
    """Check the three records at the end; return the directory's start, stop and count."""
    if file.seek(0, 2) != size:
        raise refused("its size changes while it is read")
    if size < _ENDS:
        raise refused(f"it has {size} bytes, too few for an archive")
    tail = _read(file, size - _ENDS, _ENDS)
    stop = size - _ENDS
    large = _END_64.unpack_from(tail)
    locator = _LOCATOR.unpack_from(tail, _END_64.size)
    count, length, start = large[7:]
    if locator != (b"PK\6\7", 0, stop, 1) or large[:2] != (b"PK\6\6", _END_64.size - 12):
        raise refused("it does not end as an archive of torch.save; it was cut short or added to")
    if large[4:7] != (0, 0, count) or start + length != stop:
        raise refused("its directory is not right before its end")
    short = min(count, _MAX_16), min(length, _MAX_32), start if start < _ROOM else _MAX_32
    if _END.unpack_from(tail, _ENDS - _END.size) != (
        b"PK\5\6", 0, 0, short[0], *short, 0
    ):  # fmt: skip
        raise refused("the records at its end contradict each other, or a comment follows")
    if count > MAX_RECORDS:
        raise refused(f"it has {count} records; at most {MAX_RECORDS} are accepted")
    if length > count * (_CENTRAL.size + _MAX_NAME + 28):
        raise refused("its directory is larger than its records need")
    return start, stop, count


def _directory(data: bytes, count: int) -> list[_Record]:
    records: list[_Record] = []
    at = 0
    for _ in range(count):
        if len(data) - at < _CENTRAL.size:
            raise refused("its directory has fewer records than it says")
        fields = _CENTRAL.unpack_from(data, at)
        flags, crc, size, offset = fields[3], fields[7], fields[9], fields[16]
        name_size, extra_size = fields[10:12]
        # All else is 0, and has to be. Of a record with the attribute of a folder, for one, torch
        # reads nothing, and hands out the memory that it has for it as it finds it.
        tail = (name_size, extra_size, 0, 0, 0, 0, offset)
        if fields != (b"PK\1\2", 0, 0, flags, _STORED, 0, 0, crc, size, size, *tail):
            raise refused("its directory has a record that is compressed, or not one of torch.save")
        at += _CENTRAL.size + name_size + extra_size
        if at > len(data) or name_size > _MAX_NAME:
            raise refused("its directory has a name that is too long")
        name = data[at - name_size - extra_size : at - extra_size]
        size, offset = _widened(data[at - extra_size : at], size, offset)
        if flags != (_DESCRIBED if size else _NO_SIZE):
            raise refused(f"the record {shown(name)} is encrypted, or not one of torch.save")
        records.append(_Record(name, flags, crc, size, offset))
    if at != len(data):
        raise refused("its directory has more bytes than records")
    return records


def _widened(extra: bytes, size: int, offset: int) -> tuple[int, int]:
    """Return a record's size and offset, from the zip64 field if they have not the room."""
    places = 2 * (size == _MAX_32) + (offset == _MAX_32)
    if len(extra) != (4 + 8 * places if places else 0):
        raise refused("its directory has a field that torch.save does not write")
    if places:
        tag, length, *values = struct.unpack(f"<2H{places}Q", extra)
        if offset == _MAX_32:
            offset = values[-1]
        if size == _MAX_32:
            size = values[0]
        if extra != _zip64(size, size, offset) or (tag, length) != (1, 8 * places):
            raise refused("its directory has sizes that contradict each other")
    return size, offset


def _zip64(size: int, packed: int, offset: int) -> bytes:
    values = [size, packed] * (size >= _ROOM) + [offset] * (offset >= _ROOM)
    if not values:
        return b""
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)


def _extent(file: IO[bytes], record: _Record) -> tuple[_Extent, int]:
    """Check what stands around a record's data; return its place, and where the next one begins."""
    header = _LOCAL.unpack(_read(file, record.offset, _LOCAL.size))
    name_size, extra_size = header[-2:]
    if header != (b"PK\3\4", 0, record.flags, _STORED, *[0] * 5, len(record.name), extra_size):
        raise refused(f"the record {shown(record.name)} is described differently at its place")
    start = record.offset + _LOCAL.size + name_size + extra_size
    names = _read(file, record.offset + _LOCAL.size, name_size + extra_size)
    if names[:name_size] != record.name:
        raise refused(f"the record {shown(record.name)} has another name at its place")
    wide = _zip64(record.size, 0, record.offset)
    padding = extra_size - len(wide) - 4
    if (
        padding < 0
        or names[name_size:] != wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    ):
        raise refused(f"the record {shown(record.name)} has a field that torch.save does not write")
    stop = start + record.size
    if record.size:
        descriptor = _DESCRIPTOR_64 if wide else _DESCRIPTOR
        expected = (b"PK\7\10", record.crc, record.size, record.size)
        if descriptor.unpack(_read(file, stop, descriptor.size)) != expected:
            raise refused(f"the record {shown(record.name)} has another size at its place")
        stop += descriptor.size
    return _Extent(start, record.size, padding), stop


def _contents(file: IO[bytes], extents: dict[bytes, _Extent]) -> Archive:
    """Check the names and the small records, and read the pickle."""
    storages: dict[str, int] = {}
    for name, extent in extents.items():
        if match := _STORAGE.fullmatch(name):
            storages[match[1].decode()] = extent.size
        elif name != b"data.pkl" and name not in _SMALL:
            raise refused(f"it has a record {shown(name)}, which torch.save does not write")
    missing = [name for name in (b"data.pkl", *_SMALL) if name not in extents]
    if missing:
        raise refused(f"it lacks the record {shown(missing[0])}")
    for name, pattern in _SMALL.items():
        place = extents[name]
        if place.size > _MAX_SMALL or not pattern.fullmatch(_read(file, place.start, place.size)):
            raise refused(f"its record {shown(name)} has a value that torch.save does not write")
    alignment = int(_read(file, *extents[b".storage_alignment"][:2]))
    for name, place in extents.items():
        if place.start % alignment or place.padding >= alignment:
            raise refused(f"the record {shown(name)} is not aligned to {alignment} bytes")
    pickle = extents[b"data.pkl"]
    if pickle.size > MAX_PICKLE:
        raise refused(f"its data.pkl has {pickle.size} bytes; at most {MAX_PICKLE} are accepted")
    return Archive(_read(file, pickle.start, pickle.size), storages)
