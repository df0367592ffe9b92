"""What this machine is and has: the device to compute on, its name, and the versions of what is installed."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import UsageError, UserError

if TYPE_CHECKING:
    import torch

PACKAGES = ("featcache", "torch", "torchvision", "timm", "numpy", "scikit-learn", "h5py", "pillow")


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA, then Apple's MPS, then the CPU. Raises UserError where the named one is not there."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, is_there in there.items() if is_there)
    kind = name.partition(":")[0]
    if kind not in there:
        raise UsageError(f"--device {name}: expected auto, cuda, mps or cpu")
    if not there[kind]:
        raise UserError(f"--device {name}: torch finds none here; take --device cpu or auto")
    return torch.device(name)


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


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what features come out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
