"""Find the stored members of an open zip archive; an archive that claims more than it holds is refused."""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from featcache.common.files import size_of

_END, _END64 = 22, 98  # bytes of the end record, and of it together with the two zip64 records before it
_LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class Member:
    """Bytes ``offset`` to ``offset + size`` of the archive, and their CRC-32."""

    offset: int
    size: int
    crc: int


def stored_members(file: BinaryIO, *, directory_limit: int) -> dict[str, Member]:
    """The members of an archive that compresses nothing, by name.

    Args:
        file: the open archive.
        directory_limit: the most bytes that its list of members may have; they become about ten times as many.

    Raises:
        ValueError: no such archive, a compressed or encrypted member, members that overlap or reach beyond the file, or
            two of one name.
    """
    start = _directory(file, directory_limit)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise ValueError(str(error)) from error
    members: dict[str, Member] = {}
    ends = [entry.header_offset for entry in entries[1:]] + [start]
    for entry, end in zip(entries, ends, strict=True):
        if entry.orig_filename in members:
            raise ValueError(f"two members are called {entry.orig_filename!r}")
        members[entry.orig_filename] = _member(file, entry, end)
    return members


def read_member(file: BinaryIO, member: Member) -> bytes:
    """A member's bytes. Raises ValueError where they are not those that were stored."""
    file.seek(member.offset)
    data = file.read(member.size)
    if zlib.crc32(data) != member.crc:
        raise ValueError("a member's checksum differs: the file is damaged")
    return data


def _directory(file: BinaryIO, limit: int) -> int:
    """Where the list of members begins: before it is read, its length is."""
    size = size_of(file)
    file.seek(max(0, size - _END64))
    tail = file.read(_END64)
    if len(tail) < _END or tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise ValueError("no zip archive, or cut off")
    (length,) = struct.unpack("<L", tail[-10:-6])
    after = _END
    if len(tail) == _END64 and tail[-42:-38] == b"PK\6\7":
        if tail[:4] != b"PK\6\6":
            raise ValueError("a zip archive without its end")
        (length,) = struct.unpack("<Q", tail[40:48])
        after = _END64
    if length > min(limit, size - after):
        raise ValueError(f"a list of members of {length:,} bytes, expected {min(limit, size - after):,} at most")
    return size - after - length


def _member(file: BinaryIO, entry: zipfile.ZipInfo, end: int) -> Member:
    name = entry.orig_filename
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1:
        raise ValueError(f"member {name[:80]!r} is compressed or encrypted, expected stored bytes")
    file.seek(entry.header_offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or header[:4] != b"PK\3\4":
        raise ValueError(f"member {name[:80]!r} is not where the archive says")
    _, _, flags, method, *_, name_size, extra_size = _LOCAL.unpack(header)
    own_name = file.read(name_size).decode("utf-8" if flags & 0x800 else "cp437")
    offset = entry.header_offset + _LOCAL.size + name_size + extra_size
    if own_name != name or method != zipfile.ZIP_STORED:
        raise ValueError(f"member {name[:80]!r} is told of in two ways")
    if entry.file_size != entry.compress_size or offset + entry.file_size > end:
        raise ValueError(f"member {name[:80]!r} claims {entry.file_size:,} bytes, more than lie there")
    return Member(offset, entry.file_size, entry.CRC)
