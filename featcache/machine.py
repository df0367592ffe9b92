"""What this machine is and has: the device to compute on, its name, and the versions of what is installed."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from featcache.errors import UsageError, UserError

PACKAGES = ("featcache", "torch", "torchvision", "timm", "numpy", "h5py", "pillow")


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA, then Apple's MPS, then the CPU. Raises UserError where the named one is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, is_there in there.items() if is_there)
    kind = name.partition(":")[0]
    if kind not in there:
        raise UsageError(f"--device {name}: expected auto, cuda, mps or cpu")
    if not there[kind]:
        raise UserError(f"--device {name}: torch finds none here; take --device cpu or auto")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """What the maker calls it."""
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
