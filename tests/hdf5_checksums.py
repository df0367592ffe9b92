"""HDF5 bytes whose checksums are wrong in, the same with right ones out, so that damage gets past them."""

from __future__ import annotations

import struct

_FOUND: dict[int, list[int]] = {}


def headers(data: bytes) -> list[int]:
    """Where HDF5's own structures begin."""
    if len(data) not in _FOUND:
        places, at = [0], data.find(b"OHDR")
        while at >= 0:
            places.append(at)
            at = data.find(b"OHDR", at + 1)
        _FOUND[len(data)] = places
    return _FOUND[len(data)]


def checksums_mended(data: bytes) -> bytes:
    """HDF5's checksums of the superblock and of the first chunk of each object header, made right."""
    out = bytearray(data)
    if len(out) >= 48:
        out[44:48] = struct.pack("<I", lookup3(bytes(out[:44])))
    for at in headers(data)[1:]:
        if out[at : at + 4] != b"OHDR" or at + 16 > len(out):
            continue
        flags = out[at + 5]
        begin = at + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        end = begin + width + int.from_bytes(out[begin : begin + width], "little")
        if end + 4 <= len(out) and end - at < 100_000:
            out[end : end + 4] = struct.pack("<I", lookup3(bytes(out[at:end])))
    return bytes(out)


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hashlittle (2006, http://burtleburtle.net/bob/c/lookup3.c), which HDF5 takes for its metadata."""
    mask, length = 0xFFFFFFFF, len(data)

    def rotated(x: int, k: int) -> int:
        return ((x << k) | (x >> (32 - k))) & mask

    a = b = c = (0xDEADBEEF + length) & mask
    at = 0
    while length - at > 12:
        words = struct.unpack_from("<III", data, at)
        a, b, c = (a + words[0]) & mask, (b + words[1]) & mask, (c + words[2]) & mask
        for k, step in zip((4, 6, 8, 16, 19, 4), range(6), strict=True):
            if step % 3 == 0:
                a, c = (((a - c) & mask) ^ rotated(c, k)), (c + b) & mask
            elif step % 3 == 1:
                b, a = (((b - a) & mask) ^ rotated(a, k)), (a + c) & mask
            else:
                c, b = (((c - b) & mask) ^ rotated(b, k)), (b + a) & mask
        at += 12
    if not length:
        return c
    words = struct.unpack("<III", data[at:].ljust(12, b"\0"))
    a, b, c = (a + words[0]) & mask, (b + words[1]) & mask, (c + words[2]) & mask
    for k, step in zip((14, 11, 25, 16, 4, 14, 24), range(7), strict=True):
        if step % 3 == 0:
            c = ((c ^ b) - rotated(b, k)) & mask
        elif step % 3 == 1:
            a = ((a ^ c) - rotated(c, k)) & mask
        else:
            b = ((b ^ a) - rotated(a, k)) & mask
    return c
