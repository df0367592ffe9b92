"""Random damage: bytes in, other bytes out, with the checksums made right again where a format has them."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
import zlib
from typing import Any

_NUMBERS = [bytes([b]) * n for b in (0x00, 0x7F, 0x80, 0xFF) for n in (1, 2, 4, 8)] + [
    struct.pack("<q", value) for value in (1, -1, 2**31, 2**32, 2**40, 2**62)
]
_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2,
    10**30,
    0.5,
    1e300,
    "",
    "x",
    "\ud800",
    "a\nb",
    [],
    [[]],
    {},
    {"a": {}},
    [1, "b"],
]


def damaged(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, or a piece cut out, doubled, moved, or cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        length = min(rng.choice((1, 2, 4, 8, 64, 500)), len(out) - at)
        match rng.randrange(7):
            case 0 | 1:
                if at < len(out):
                    out[at] ^= 1 << rng.randrange(8)
            case 2:
                number = rng.choice(_NUMBERS)
                out[at : at + len(number)] = number
            case 3:
                del out[at : at + length]
            case 4:
                out[at:at] = out[at : at + length]
            case 5:
                to = rng.randrange(len(out) + 1)
                out[to : to + length] = out[at : at + length]
            case _:
                if rng.random() < 0.3:
                    del out[at:]
    return bytes(out)


def number_changed(rng: random.Random, data: bytes) -> bytes:
    """One of the numbers written out in the text of a header is another."""
    found = list(re.finditer(rb"\d+", data[:2000]))
    if not found:
        return damaged(rng, data)
    match = rng.choice(found)
    number = rng.choice((b"0", b"1", b"-1", b"2", b"8", b"99999999999", b"1e9", str(2**63).encode(), b"3.5", b"True"))
    return data[: match.start()] + number + data[match.end() :]


def json_changed(rng: random.Random, data: bytes) -> bytes:
    """A value somewhere in a JSON text is another, or missing."""
    value = json.loads(data)
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return damaged(rng, data)
        key = rng.choice(keys)
        if isinstance(place[key], dict | list) and rng.random() < 0.7:
            place = place[key]
            continue
        if rng.random() < 0.3:
            del place[key]
        else:
            place[key] = rng.choice(_VALUES)
        return json.dumps(value).encode()


def zip_changed(rng: random.Random, data: bytes) -> bytes:
    """A member is damaged, exchanged, missing, there twice, renamed or compressed; its CRC is right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(members))
    name, content = members[at]
    compression = zipfile.ZIP_STORED
    match rng.randrange(9):
        case 0 | 1 | 2:
            members[at] = name, damaged(rng, content)
        case 3 | 4:
            members[at] = name, number_changed(rng, content)
        case 5:
            members[at] = name, rng.choice(members)[1]
        case 6:
            del members[at]
        case 7:
            members.append((rng.choice((name + "x", "../" + name, name.upper(), "a\nb")), content))
        case _:
            compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            rng.shuffle(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def png_mended(data: bytes) -> bytes:
    """The same chunks with checksums that are theirs."""
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out + data[at:])


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Damage of a kind that suits the bytes."""
    if rng.random() < 0.3:
        return damaged(rng, data)
    if data[:2] == b"PK":
        return zip_changed(rng, data)
    if data[:1] == b"{":
        return json_changed(rng, data)
    if data[:4] == b"\x89PNG":
        return png_mended(damaged(rng, data))
    return number_changed(rng, data) if data[8:9] == b"{" or data[:1] == b"P" else damaged(rng, data)
