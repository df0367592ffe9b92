"""What this machine is and has: the device to compute on, its name, and the versions of what is installed."""

from __future__ import annotations

import ctypes
import os
import platform
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.common.errors import UsageError, UserError
from featcache.common.ranks import Ranks

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "featcache", "torch", "torchvision", "timm", "numpy", "scikit-learn", "h5py", "pillow", "simplejpeg", "openvino",
    "nncf",
)  # fmt: skip
#: Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def choose_device(name: str, *, local_rank: int | None = None) -> torch.device:
    """``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Args:
        name: ``auto``, ``cuda``, ``mps``, ``cpu``, or one of several as in ``cuda:1``.
        local_rank: of a process that shares this machine with others: each takes a GPU of its own while there are
            enough, and makes it the current one, so that nothing of it lands on the first.

    Raises:
        UserError: the named one is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, is_there in there.items() if is_there)
    kind = name.partition(":")[0]
    if kind not in there:
        raise UsageError(f"--device {name}: expected auto, cuda, mps or cpu")
    if not there[kind]:
        raise UserError(f"--device {name}: torch finds none here; take --device cpu or auto")
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank % torch.cuda.device_count()}"
        torch.cuda.set_device(name)
    return torch.device(name)


def has_room(device: torch.device, n_bytes: int) -> bool:
    """Whether so many bytes take no more than half of what a GPU has free; of other devices that is not asked."""
    import torch

    return device.type != "cuda" or n_bytes <= torch.cuda.mem_get_info(device)[0] / 2


@contextmanager
def full_fp32() -> Iterator[None]:
    """Keep CUDA's convolutions from rounding float32 inputs to TF32, as cuDNN does unless told otherwise."""
    import torch

    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def n_cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fast_precision(device: torch.device) -> str:
    """``bf16`` where the processor multiplies it faster than float32, else ``fp32``."""
    import torch

    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if device.type == "cpu":
        try:
            flags = set(Path("/proc/cpuinfo").read_text().partition("\n\n")[0].split())
        except OSError:
            flags = set()
        return "bf16" if flags & {"amx_bf16", "avx512_bf16"} else "fp32"
    return "fp32"


def keep_freed_memory() -> None:
    """Let this process keep up to half a GiB that it freed, where the C library is glibc.

    Else glibc hands the buffers of each forward pass on a CPU back to the kernel, which clears them anew for the next:
    bf16 eager in batches of 16 is 1.2 times (ResNet-18) to 1.6 times (EfficientNet-Lite0) as fast with this, and its
    peak memory the same. It is a setting of the whole process, so commands make it, not the library.
    """
    if platform.libc_ver()[0] == "glibc":
        glibc = ctypes.CDLL(None)
        glibc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        glibc.mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def device_name(device: torch.device) -> str:
    """What the maker calls it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def hardware(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """What is recorded of it; with several ranks, who ask together, also how many have which device."""
    name = device_name(device)
    told = {"machine": platform.machine(), "device": str(device), "name": name}
    return told if ranks.is_alone else {**told, "ranks": dict(Counter(ranks.gather(name)))}


def working_folder() -> str:
    """The path of it; nothing where it was deleted."""
    try:
        return os.fsencode(Path.cwd()).decode(errors="replace")
    except FileNotFoundError:
        return ""


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what features come out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
