"""Turn a trunk into a function from 8-bit batches to features, by one of several engines.

``eager`` in fp32 is the reference, the trunk as it is. All else is faster and less exact: ``fidelity`` says how much
less, and ``engine_choice`` which is worth its set-up.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from featcache.common.errors import UsageError, UserError, missing_extra
from featcache.common.machine import full_fp32
from featcache.engines.folding import cast, folded
from featcache.sources.preprocessing import Preprocessing

ENGINES = ("eager", "compile", "openvino")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: 8-bit arithmetic, by OpenVINO alone and never chosen unasked.
INT8 = "int8"

#: (B, 1 or 3, S, S) uint8 on the CPU to (B, ...) float32 on the CPU; B is always the same.
Forward = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """A trunk that takes 8-bit images: normalisation is its first operation.

    Args:
        trunk: takes (B, 3, S, S) float32.
        preprocessing: tells mean and standard deviation.
        dtype: of the arithmetic, by autocast.
    """

    def __init__(self, trunk: nn.Module, preprocessing: Preprocessing, dtype: torch.dtype) -> None:
        super().__init__()
        self.trunk = trunk
        self.preprocessing = preprocessing
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        values = self.preprocessing.normalise(images)
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features: Tensor = self.trunk(values)
        return features.float()


def prepare(
    trunk: nn.Module,
    preprocessing: Preprocessing,
    *,
    engine: str,
    precision: str,
    device: torch.device,
    example: Tensor,
    calibration: Tensor | None = None,
) -> Forward:
    """Set an engine up; what takes long is done when this returns.

    Args:
        trunk: as ``StagedModel.trunk`` gives it; it is not changed, though moved to ``device``.
        preprocessing: its normalisation becomes part of the function.
        engine: one of ``ENGINES``.
        precision: one of ``PRECISIONS``, or ``int8``.
        device: to compute on.
        example: (B, 1 or 3, S, S) uint8, a batch of the shape that the function will be called with.
        calibration: (n, 3, S, S) uint8, images that int8's ranges are taken from.

    Raises:
        UserError: the engine is not installed, or does not take this model, device or precision.
    """
    reason = unavailable(engine, precision, device)
    if reason is not None:
        raise reason
    if engine == "openvino":
        from featcache.engines import openvino_backend

        return openvino_backend.prepare(
            Network(folded(trunk), preprocessing, torch.float32),
            precision=precision,
            example=example,
            images=calibration,
        )
    network = _network(
        trunk.to(device), preprocessing, PRECISIONS[precision], keep=(engine, precision) == ("eager", "fp32")
    )

    def forward(images: Tensor) -> Tensor:
        with torch.inference_mode(), full_fp32():
            features: Tensor = network(images.to(device, non_blocking=True))
            return features.cpu()

    if engine == "eager":
        return forward
    return _compiled(network, device, example)


def unavailable(engine: str, precision: str, device: torch.device) -> UserError | None:
    """Why an engine can't be had here, or None."""
    if precision == INT8 and engine != "openvino":
        return UsageError("--precision int8 is OpenVINO's: take --engine openvino with it")
    if engine == "openvino":
        needed = ("openvino", "nncf") if precision == INT8 else ("openvino",)
        for package in needed:
            if importlib.util.find_spec(package) is None:
                return missing_extra(package, "openvino")
        if precision == "fp16":
            return UsageError("--engine openvino computes in fp32, bf16 or int8 on a CPU, not in fp16")
        if device.type != "cpu":
            return UserError(
                f"--engine openvino computes on the CPU here, not on {device}: take --device cpu, or eager"
            )
    if engine == "compile" and device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        return UserError(
            "--engine compile needs a C++ compiler on a CPU, and none is found: install g++, or take eager"
        )
    return None


def _network(trunk: nn.Module, preprocessing: Preprocessing, dtype: torch.dtype, *, keep: bool) -> Network:
    """The trunk as it is, or folded and with its weights in the type of the arithmetic."""
    ready = trunk if keep else cast(folded(trunk), dtype)
    return Network(ready, preprocessing, dtype).eval()


def _compiled(network: Network, device: torch.device, example: Tensor) -> Forward:
    """By torch.compile, weights frozen into the code; compiled for the one shape that comes."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns where CUDA's compiler has no GPU
    compiled: Any = torch.compile(network, dynamic=False, options={"freezing": True})

    def forward(images: Tensor) -> Tensor:
        images = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)  # one shape, one kernel
        with torch.no_grad(), full_fp32():  # under inference_mode no weights are frozen
            features: Tensor = compiled(images.to(device, non_blocking=True))
            return features.cpu()

    try:
        forward(example)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"--engine compile does not take this model here ({reason}): take --engine eager") from error
    return forward
