"""Small files that claim to be large, or are no files: a name and a path in, such a file at that path out."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from test_predictors import make_heads

Build = Callable[[Path], object]
ZEROS = bytes(1 << 20)


def deflated(megabytes: int) -> bytes:
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(ZEROS) for _ in range(megabytes)) + packer.flush()


def npy(shape: tuple[int, ...], data: bytes = b"", dtype: str = "<f4") -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


def head_members() -> dict[str, bytes]:
    """The members of a linear head's file."""
    described = {"format": "featcache-head", "version": 1, "kind": "linear", "meta": {"class_names": ["a", "b", "c"]}}
    arrays = {"description": np.frombuffer(json.dumps(described).encode(), np.uint8), **make_heads()["linear"].arrays()}
    members = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        members[f"{name}.npy"] = buffer.getvalue()
    return members


def archive(path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as file:
        for name, data in members.items():
            file.writestr(name, data)


def head(**changed: bytes) -> Build:
    return lambda path: archive(path, head_members() | {f"{name}.npy": data for name, data in changed.items()})


def overlapping(path: Path) -> None:
    """A thousand members that are all the same megabyte (Fifield 2019, without deflation)."""
    archive(path, {"weight0.npy": npy((1 << 18,), ZEROS)})
    data = path.read_bytes()
    start = struct.unpack("<L", data[-6:-2])[0]
    entry = data[start:-22]
    entries = b"".join(entry.replace(b"weight0", b"w%06d" % i) for i in range(1000))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1000, 1000, len(entries), start, 0)
    path.write_bytes(data[:start] + entries + end)


def lying(path: Path) -> None:
    """A directory that gives a member 3 GB, and a header that agrees."""
    archive(path, {"weight.npy": npy((750_000_000,), bytes(64))})
    data = bytearray(path.read_bytes())
    start = struct.unpack("<L", data[-6:-2])[0]
    size = struct.pack("<L", 3_000_000_000 + 128)
    data[start + 20 : start + 28] = size * 2
    path.write_bytes(data)


def many_members(path: Path) -> None:
    archive(path, {f"m{i}": b"" for i in range(50_000)})


def sparse(size: int, start: bytes = b"") -> Build:
    def build(path: Path) -> None:
        path.write_bytes(start)
        os.truncate(path, size)

    return build


HEADS: dict[str, Build] = {
    "compressed": lambda path: archive(path, {"weight.npy": npy((1 << 25,), ZEROS * 128)}, zipfile.ZIP_DEFLATED),
    "shape": head(weight=npy((10**9, 10**6), bytes(64))),
    "shape overflow": head(weight=npy((2**40, 2**40), bytes(64))),
    "empty but wide": head(weight=npy((0, 10**15))),
    "item size": head(weight=npy((1,), bytes(64), "<U1000000000")),
    "no item size": head(weight=npy((10**12,), b"", "<U0")),
    "long header": head(weight=b"\x93NUMPY\2\0" + struct.pack("<L", 1 << 31) + b"{" * 5000),
    "nested header": head(weight=npy((1,)).replace(b"(1,)", b"(" * 900 + b")" * 900)),
    "object": head(weight=npy((1,), pickle.dumps([1]), "|O")),
    "nested JSON": head(description=npy((200_000,), b"[" * 200_000, "|u1")),
    "long JSON": head(description=npy((9 << 20,), b" " * (9 << 20), "|u1")),
    "overlapping": overlapping,
    "lying": lying,
    "many members": many_members,
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "endless": sparse(3 << 30),
}


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call  # type: ignore[return-value]


def nested_key(_: bytes) -> bytes:
    """The pickle of a dict whose key is 60 pairs, each of the same pair twice: hashing it takes 2 ** 60 steps."""
    return b"\x80\2})q\0" + b"h\0\x86q\0" * 60 + b"K\1s."


def pth(value: Callable[[], object], *, zipped: bool = True) -> Build:
    def build(path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(value(), path, _use_new_zipfile_serialization=zipped)

    return build


def pth_pickle(change: Callable[[bytes], bytes]) -> Build:
    """A .pth file of one tensor of 64 float32, its pickle changed."""

    def build(path: Path) -> None:
        torch.save({"weight": torch.zeros(64)}, path)
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
        name = next(name for name in members if name.endswith("data.pkl"))
        archive(path, members | {name: change(members[name])})

    return build


def larger(data: bytes) -> bytes:
    """Both the storage's and the tensor's 64 become 2 ** 31 - 1."""
    assert data.count(b"K\x40") == 2
    return data.replace(b"K\x40", b"J" + struct.pack("<i", 2**31 - 1))


def legacy_larger(path: Path) -> None:
    pth(lambda: {"weight": torch.zeros(64)}, zipped=False)(path)
    path.write_bytes(larger(path.read_bytes()))


def zipped_pickle(path: Path) -> None:
    data = pickle.dumps([0], 2)[:-1] + b"N0" * (1 << 26) + b"."
    archive(path, {"a/data.pkl": data, "a/version": b"3\n"}, zipfile.ZIP_DEFLATED)


def csr() -> torch.Tensor:
    starts = torch.zeros(1, dtype=torch.int64).expand(10**9 + 1)
    nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    return torch.sparse_csr_tensor(starts, *nothing, (10**9, 1), check_invariants=False)


PTH: dict[str, Build] = {
    "expanded": pth(lambda: {"w": torch.zeros(1).expand(10**6, 10**6)}),
    "expanded stream": pth(lambda: {"w": torch.zeros(1).expand(10**6, 10**6)}, zipped=False),
    "storage": pth_pickle(larger),
    "storage stream": legacy_larger,
    "compressed": zipped_pickle,
    "call of Tensor": pth(lambda: {"w": Call(torch.Tensor, 10**9)}),
    "call of storage": pth(lambda: {"w": Call(torch.FloatStorage, 10**9)}),
    "bytearray": pth(lambda: {"w": Call(bytearray, 10**9)}),
    "bytearray stream": pth(lambda: {"w": Call(bytearray, 10**9)}, zipped=False),
    "meta": pth(lambda: {"w": torch.zeros(10**6, 10**6, device="meta")}),
    "sparse": pth(lambda: {"w": torch.sparse_coo_tensor(torch.zeros(2, 1), torch.ones(1), (10**9, 10**9))}),
    "sparse rows": pth(lambda: {"w": csr()}),
    "quantised": pth(lambda: {"w": torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)}),
    "hash": pth_pickle(nested_key),
    "numbers": pth(lambda: {"w": 3}),
    "state": pth(lambda: {"w": Call(torch.nn.Linear, 10**5, 10**5)}),
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "endless": sparse(3 << 30, b"PK\3\4"),
    "endless stream": sparse(3 << 30, b"\x80\2"),
}


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> Build:
    text = json.dumps(header).encode()
    return lambda path: path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


SAFETENSORS: dict[str, Build] = {
    "shape": safetensors({"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4]}}, bytes(4)),
    "offsets": safetensors({"w": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}, bytes(4)),
    "header": safetensors({}, length=1 << 60),
    "type": safetensors({"w": [1, 2]}),
    "fifo": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "endless": sparse(3 << 30),
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> Build:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b""))


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(encoded("JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp(side: int) -> bytes:
    edge = struct.pack("<I", side - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + edge * 2 + encoded("WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(**entries: int) -> bytes:
    tags = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}
    tags |= {int(tag[1:]): value for tag, value in entries.items()}
    count = entries.get("n258", 1)
    rows = [struct.pack("<HHII", tag, 4, count if tag == 258 else 1, value) for tag, value in sorted(tags.items())]
    return b"II*\0" + struct.pack("<IH", 8, len(rows)) + b"".join(rows) + bytes(4)


IMAGES: dict[str, Build] = {
    "empty": Path.touch,
    "text": lambda path: path.write_text("no picture"),
    "cut off": lambda path: path.write_bytes(encoded("JPEG")[:300]),
    "gif": lambda path: Image.new("P", (3, 3)).save(path, "GIF"),
    "30,000 squared": png(30_000, 30_000, chunk(b"IDAT", deflated(859))),
    "jpeg header": lambda path: path.write_bytes(jpeg(65_500, 65_500)),
    "webp canvas": lambda path: path.write_bytes(webp(16_384)),
    "tiff sides": lambda path: path.write_bytes(tiff(t256=2**32 - 1, t257=2**32 - 1)),
    "tiff samples": lambda path: path.write_bytes(tiff(t277=65_535)),
    "tiff strips": lambda path: path.write_bytes(tiff(t273=2**32 - 1, t279=2**32 - 1)),
    "profile": png(8, 8, chunk(b"iCCP", b"x\0\0" + deflated(256)), chunk(b"IDAT", zlib.compress(bytes(72)))),
    "comment": png(8, 8, chunk(b"zTXt", b"x\0\0" + deflated(256)), chunk(b"IDAT", zlib.compress(bytes(72)))),
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "endless": sparse(3 << 30, jpeg(8, 8)),
    "dangling": lambda path: path.symlink_to("nowhere"),
}

#: By the ending that the file is given.
ALL: dict[str, dict[str, Build]] = {".npz": HEADS, ".pth": PTH, ".safetensors": SAFETENSORS, ".jpg": IMAGES}
