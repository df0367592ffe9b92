"""Files that may come from strangers in, plain arrays and JSON objects out, within the memory that their size tells."""

from __future__ import annotations

import io
import json
import math
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from featcache.common.files import open_regular, size_of
from featcache.models.zip_archive import Member, stored_members

#: The most bytes of one JSON text, and how deep its lists and objects may lie in one another.
MAX_JSON_BYTES = 8 << 20
MAX_JSON_DEPTH = 32

_MAX_DIRECTORY = 1 << 16  # bytes of an .npz file's list of members: about a thousand
_MAX_HEADER = 1024  # characters of an .npy header; one of numpy's has about 120


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz file that ``np.savez`` wrote, in native byte order.

    Raises:
        OSError: there is no such regular file, or it can't be read.
        ValueError: compressed members, members or shapes that don't fit the bytes, arrays that are no numbers, booleans
            or text, or damage.
    """
    with open_regular(path) as file:
        members = stored_members(file, directory_limit=_MAX_DIRECTORY)
        arrays = {}
        for name, member in members.items():
            try:
                arrays[name.removesuffix(".npy")] = _array(file, member)
            except (ValueError, EOFError) as error:
                raise ValueError(f"{name[:80]!r}: {error}") from error
    if len(arrays) != len(members):
        raise ValueError("two members are called alike")
    return arrays


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises as `read_arrays` and `parse_object` do."""
    with open_regular(path) as file:
        if size_of(file) > MAX_JSON_BYTES:
            raise ValueError(f"{size_of(file):,} bytes of JSON, expected {MAX_JSON_BYTES:,} at most")
        return parse_object(file.read(MAX_JSON_BYTES))


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object in UTF-8 bytes.

    Raises ValueError: another value, numbers that are not finite, text that is no Unicode, too long, nested too deeply.
    """
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"{len(text):,} bytes of JSON, expected {MAX_JSON_BYTES:,} at most")
    try:
        value = json.loads(text.decode(), parse_constant=_not_finite)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    if type(value) is not dict:
        raise ValueError(f"JSON of the type {type(value).__name__}, expected an object")
    _check_values(value)
    return value


def _not_finite(constant: str) -> NoReturn:
    raise ValueError(f"JSON with the number {constant}")


def _check_values(value: dict[str, Any]) -> None:
    open_values: list[tuple[Any, int]] = [(value, 1)]
    while open_values:
        item, depth = open_values.pop()
        if depth > MAX_JSON_DEPTH:
            raise ValueError("JSON nested too deeply")
        if isinstance(item, dict):
            open_values += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list):
            open_values += [(part, depth + 1) for part in item]
        elif isinstance(item, str):
            item.encode()
        elif isinstance(item, float) and not math.isfinite(item):
            _not_finite(str(item))


def _array(file: BinaryIO, member: Member) -> NDArray[Any]:
    file.seek(member.offset)
    start = file.read(min(member.size, 2 * _MAX_HEADER))
    shape, fortran_order, dtype, header_size = _header(start)
    count = math.prod(shape)
    if dtype.kind not in "biufU" or not dtype.itemsize:
        raise ValueError(f"values of dtype {str(dtype)[:40]}, expected numbers, booleans or text")
    if count * dtype.itemsize != member.size - header_size:
        raise ValueError(f"{member.size - header_size:,} bytes are no array {str(shape)[:80]} of {dtype}")
    file.seek(member.offset + header_size)
    array = np.fromfile(file, dtype, count)
    if array.size != count or zlib.crc32(array.view(np.uint8), zlib.crc32(start[:header_size])) != member.crc:
        raise ValueError("its checksum differs: the file is damaged")
    array = array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)
    if not dtype.isnative:
        array = array.astype(dtype.newbyteorder("="))
    _check_content(array)
    return array


def _header(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order and dtype that an .npy header tells, and the header's length in bytes."""
    stream = io.BytesIO(start)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            version = npy.read_magic(stream)
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
            shape, fortran_order, dtype = read(stream, max_header_size=_MAX_HEADER)
    except Exception as error:  # Python's parser has many ways to refuse text
        raise ValueError("no header of an .npy array") from error
    if len(shape) > 8 or not all(type(size) is int and 0 <= size < 1 << 62 for size in shape):
        raise ValueError(f"a shape of {str(shape)[:80]}")
    return shape, fortran_order, dtype, stream.tell()


def _check_content(array: NDArray[Any]) -> None:
    """Bytes that numpy would take, and that are nevertheless no booleans or no Unicode."""
    flat = array.ravel(order="K")
    if array.dtype.kind == "b" and flat.view(np.uint8).max(initial=0) > 1:
        raise ValueError("booleans other than 0 and 1")
    if array.dtype.kind == "U":
        points = flat.view(np.uint32)
        if points.max(initial=0) > 0x10FFFF or ((points >= 0xD800) & (points <= 0xDFFF)).any():
            raise ValueError("text that is no Unicode")
