"""Check what the pickle in an open .pth file would build, before anything is built.

``torch.load(weights_only=True)`` executes no foreign code, but it calls constructors and allocates as the pickle says.
Here the pickle is read opcode by opcode (``pickletools``) on numbers, names and tuples alone. What passes names tensors
in dicts, lists and tuples, and each tensor lies within bytes that the file has.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pickle import UnpicklingError
from typing import Any, BinaryIO

from featcache.common.files import size_of
from featcache.models.zip_archive import read_member, stored_members

#: The most bytes of pickle in a checkpoint; the tensors' values are no part of it.
MAX_PICKLE_BYTES = 4 << 20
_MAX_DIRECTORY = 4 << 20  # bytes of the list of members: about 40,000 tensors

#: Bytes of one value, by the kind of storage.
_ITEM_BYTES = {
    f"{module} {kind}Storage": size
    for module in ("torch", "torch.cuda")
    for kind, size in {
        "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1,
        "Bool": 1,
    }.items()
}  # fmt: skip
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # how torch.save began before it wrote zip archives


@dataclass(frozen=True)
class _Name:
    """A class or function that the pickle names."""

    path: str


@dataclass(frozen=True)
class _Storage:
    key: str | int
    item_bytes: int
    items: int


class _Value(Enum):
    """Values of which no more need be known: all keys of a dict, and the place of a tensor, were checked."""

    DICT = 1
    TENSOR = 2
    PLAIN = 3  # None, booleans, floats, dtypes, sizes


@dataclass
class _Machine:
    """Reads pickles; ``storages`` are those that their tensors lie in."""

    storages: dict[str | int, _Storage] = field(default_factory=dict)

    def read(self, stream: BinaryIO) -> Any:
        """The value that the next pickle stands for, made of the types above, numbers, text, lists and tuples."""
        stack: list[Any] = []
        outer: list[list[Any]] = []
        memo: dict[int, Any] = {}
        operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(stream)
        for opcode, argument, _ in operations:
            match opcode.name:
                case "STOP":
                    return stack.pop()
                case "PROTO" if argument == 2:
                    pass
                case "MARK":
                    outer.append(stack)
                    stack = []
                case "GLOBAL":
                    stack.append(_named(argument))
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "SHORT_BINSTRING":
                    stack.append(argument)
                case "NONE" | "NEWTRUE" | "NEWFALSE" | "BINFLOAT":
                    stack.append(_Value.PLAIN)
                case "EMPTY_DICT":
                    stack.append(_Value.DICT)
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    if len(stack) < count:
                        raise ValueError("damaged pickle")
                    stack[-count:] = [tuple(stack[-count:])]
                case "TUPLE" | "APPENDS" | "SETITEMS":
                    items, stack = stack, outer.pop()
                    if opcode.name == "TUPLE":
                        stack.append(tuple(items))
                    else:
                        _fill(stack[-1], items)
                case "APPEND" | "SETITEM":
                    count = 1 if opcode.name == "APPEND" else 2
                    items = stack[-count:]
                    del stack[-count:]
                    _fill(stack[-1], items)
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINPERSID":
                    stack.append(self._storage(stack.pop()))
                case "REDUCE":
                    arguments = stack.pop()
                    stack.append(_called(stack.pop(), arguments))
                case "BUILD":  # the attributes of an OrderedDict: _metadata
                    if stack.pop() is not _Value.DICT or stack[-1] is not _Value.DICT:
                        raise UnpicklingError("sets the state of an object")
                case other:
                    raise UnpicklingError(f"opcode {other}")
        raise ValueError("cut off")

    def _storage(self, told: Any) -> _Storage:
        match told:
            case ("storage", _Name(path), (str() | int()) as key, str(), int(items), *rest) if path in _ITEM_BYTES:
                storage = _Storage(key, _ITEM_BYTES[path], items)
            case _:
                raise UnpicklingError("refers to something that is no storage of numbers")
        if rest not in ([], [_Value.PLAIN]):
            raise UnpicklingError("a view of a storage")
        if items < 0 or self.storages.setdefault(key, storage) != storage:
            raise ValueError("one storage of several sizes")
        return storage


def check_checkpoint(file: BinaryIO) -> None:
    """Refuse a .pth file that holds more than tensors, or less than it says.

    Raises:
        UnpicklingError: the pickle names more than what tensors, numbers and text are made of.
        ValueError, IndexError, KeyError, TypeError: it is damaged, compressed, or claims more bytes than it has.
    """
    file.seek(0)
    if file.read(4) == b"PK\3\4":
        _check_archive(file)
    else:
        _check_stream(file)


def _check_archive(file: BinaryIO) -> None:
    members = stored_members(file, directory_limit=_MAX_DIRECTORY)
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError("a zip archive without one data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise UnpicklingError("a TorchScript program")
    member = members[pickles[0]]
    if member.size > MAX_PICKLE_BYTES:
        raise ValueError(f"a pickle of {member.size:,} bytes, expected {MAX_PICKLE_BYTES:,} at most")
    machine = _Machine()
    machine.read(io.BytesIO(read_member(file, member)))
    for storage in machine.storages.values():
        if members[f"{folder}data/{storage.key}"].size < storage.items * storage.item_bytes:
            raise ValueError(f"storage {str(storage.key)[:20]} claims more bytes than its member has")


def _check_stream(file: BinaryIO) -> None:
    file.seek(0)
    stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    if _Machine().read(stream) != _MAGIC or _Machine().read(stream) != _PROTOCOL:
        raise ValueError("no checkpoint of torch.save")
    _Machine().read(stream)
    machine = _Machine()
    machine.read(stream)
    keys = _Machine().read(stream)
    known = type(keys) is list and all(type(key) in (str, int) for key in keys)
    if not known or set(keys) != set(machine.storages):
        raise ValueError("the storages that are told of are not those that follow")
    claimed = sum(8 + storage.items * storage.item_bytes for storage in machine.storages.values())
    if claimed > size_of(file) - stream.tell():
        raise ValueError(f"its tensors claim {claimed:,} bytes, more than follow")


def _fill(target: Any, items: list[Any]) -> None:
    if type(target) is list:
        target.extend(items)
    elif target is _Value.DICT:
        _check_keys(items[0::2])
    else:
        raise UnpicklingError("fills an object that is no list or dict")


def _check_keys(keys: list[Any]) -> None:
    if not all(type(key) in (str, int) for key in keys):
        raise UnpicklingError("a dict with keys other than text and numbers")


def _ordered_dict(*pairs: Any) -> _Value:
    """Of nothing, or, as Python 2 pickled it, of one list of keys and values."""
    match pairs:
        case ():
            pass
        case (list(given),) if all(type(pair) in (list, tuple) and len(pair) == 2 for pair in given):
            _check_keys([key for key, _ in given])
        case _:
            raise UnpicklingError("an OrderedDict of something else")
    return _Value.DICT


def _tensor(*arguments: Any) -> _Value:
    match arguments:
        case (_Storage() as storage, int(offset), tuple(shape), tuple(strides), *rest) if len(rest) <= 2:
            numbers = (offset, *shape, *strides)
        case _:
            raise UnpicklingError("a tensor of something else than a storage")
    if len(shape) != len(strides) or len(shape) > 64:
        raise ValueError("a tensor of an impossible shape")
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
        raise ValueError("a tensor of an impossible shape")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.items or (math.prod(shape) and last >= storage.items):
        raise ValueError(f"a tensor of {str(shape)[:80]} in a storage of {storage.items:,}")
    return _Value.TENSOR


def _parameter(tensor: Any = None, *_rest: Any) -> _Value:
    if tensor is not _Value.TENSOR:
        raise UnpicklingError("a parameter that is no tensor")
    return _Value.TENSOR


def _plain(*arguments: Any) -> _Value:
    """A torch.Size or torch.device: of text, numbers and tuples of numbers."""
    for argument in arguments:
        parts = argument if type(argument) is tuple else (argument,)
        if not all(type(part) in (int, str) for part in parts):
            raise UnpicklingError("a size or device of something else")
    return _Value.PLAIN


_CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch Size": _plain,
    "torch device": _plain,
}
_DTYPES = {
    f"torch {name}"
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


def _named(path: str) -> _Name | _Value:
    if path in _DTYPES:
        return _Value.PLAIN
    if path in _CALLS or path in _ITEM_BYTES:
        return _Name(path)
    raise UnpicklingError(f"names {path[:80]!r}")


def _called(called: Any, arguments: Any) -> Any:
    if type(called) is not _Name or called.path not in _CALLS or type(arguments) is not tuple:
        raise UnpicklingError("calls something else than what makes tensors")
    return _CALLS[called.path](*arguments)
