"""Compile a torch network by OpenVINO for this processor, in fp32, bf16 or int8."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featcache.common.errors import UserError

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class _ChannelsLast(nn.Module):
    """The network, fed with (B, S, S, 3): what a channels-last batch is in memory, so that nothing is copied."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images.permute(0, 3, 1, 2))
        return features


def prepare(
    network: nn.Module, *, precision: str, example: Tensor, images: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """Convert and compile.

    Args:
        network: from (B, 3, S, S) uint8 to features, in float32.
        precision: ``fp32``, ``bf16`` or ``int8`` (quantised after training, by NNCF; what stays is in fp32).
        example: (B, 1 or 3, S, S) uint8, of the one shape that will come.
        images: (n, 3, S, S) uint8 for the calibration of int8.

    Raises:
        UserError: OpenVINO does not take this network.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # can't be imported: no report home
    import openvino

    batch = _as_fed(example)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of the tracer, on Python values that become constants: the shape is fixed
            model: Any = openvino.convert_model(
                _ChannelsLast(network).eval(),
                example_input=torch.from_numpy(batch),
                input=[(batch.shape, openvino.Type.u8)],
            )
            if precision == "int8":
                assert images is not None
                model = _quantized(model, images, len(batch))
            settings = {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",  # one request at a time, all threads on it
            }
            request = _core().compile_model(model, "CPU", settings).create_infer_request()
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"--engine openvino does not take this model ({reason}): take --engine eager") from error

    def forward(images: Tensor) -> Tensor:
        found = request.infer([_as_fed(images)], share_inputs=True, share_outputs=True)
        return torch.from_numpy(np.array(found[0], np.float32))

    return forward


@cache
def _core() -> Any:
    """The one core of this process, which is never let go.

    A core's CPU plugin gives the thread that first compiles with it a signal stack of its own, and takes that memory
    back when it goes. Where the collector lets it go in another thread, the first is left with a stack that is not
    there, and its next signal, Ctrl-C too, ends the process or writes over what has come to lie there.
    """
    import openvino

    return openvino.Core()


def _as_fed(images: Tensor) -> Any:
    """(B, S, S, 3) uint8; a view where the batch has three channels and lies channels-last."""
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def _quantized(model: Any, images: Tensor, batch: int) -> Any:
    """The model in int8, its ranges from these images (https://arxiv.org/abs/2002.08679)."""
    import nncf

    for name in ("nncf", "torch.utils.cpp_extension"):  # the latter warns where CUDA's compiler has no GPU
        logging.getLogger(name).setLevel(logging.ERROR)
    n = -(-len(images) // batch)
    repeated = images.repeat(1 + n * batch // len(images), 1, 1, 1)  # the last batch is filled up with the first ones
    batches = [_as_fed(repeated[i * batch : (i + 1) * batch]) for i in range(n)]
    with redirect_stdout(sys.stderr):  # progress bars
        return nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))
