"""An exported graph in, an ONNX file out; and such a file in, a function that runs it in ONNX Runtime, out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from featcache.common.errors import UserError
from featcache.common.files import one_line

#: The first set of operators whose Resize knows antialiasing.
OPSET = 18
#: One ONNX file holds no more, being a protocol buffer.
_MAX_BYTES = (1 << 31) - (1 << 20)


def write(
    graph: ExportedProgram,
    path: Path,
    texts: Mapping[str, str],
    *,
    input_shape: Sequence[int | str],
    outputs: Sequence[str],
) -> None:
    """Write one self-contained file.

    Args:
        graph: of one input.
        path: of the file.
        texts: its metadata.
        input_shape: of a batch, with names for what may vary; the first one is the batch.
        outputs: their names.

    Raises:
        UserError: the weights are beyond what one file holds, or an operation has no ONNX equivalent.
    """
    import onnx

    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict.values())
    if n_bytes > _MAX_BYTES:
        raise UserError(f"its weights take {n_bytes:,} bytes, and an ONNX file holds 2 GiB: take --format torch")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's and onnxscript's, on their own parts
            program: Any = torch.onnx.export(
                graph, dynamo=True, opset_version=OPSET, input_names=["images"], output_names=[*outputs], verbose=False
            )
    except Exception as error:
        raise UserError(f"torch.onnx does not take this model ({one_line(error)}); take --format torch") from error
    model = program.model_proto
    _resize_as_torch(model)
    _forget_origins(model)
    _name_dimensions(model, input_shape)
    onnx.helper.set_model_props(model, dict(texts))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def reader(path: Path) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """A function from images to the file's first output, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def _resize_as_torch(model: Any) -> None:
    """Weights beyond the image's edge are left out and cubic ones are Pillow's, as torch has it where it antialiases.

    Older exporters forget both (pytorch/pytorch#177138, #183546).
    """
    import onnx

    for node in model.graph.node:
        if node.op_type == "Resize" and any(each.name == "antialias" and each.i for each in node.attribute):
            others = [each for each in node.attribute if each.name not in ("exclude_outside", "cubic_coeff_a")]
            del node.attribute[:]
            node.attribute.extend(others)
            node.attribute.append(onnx.helper.make_attribute("exclude_outside", 1))
            node.attribute.append(onnx.helper.make_attribute("cubic_coeff_a", -0.5))


def _forget_origins(model: Any) -> None:
    """Take out the paths and lines of source code that the exporter notes at every operation."""
    graph = model.graph
    del graph.value_info[:]
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    for function in model.functions:
        for part in (function, *function.node):
            del part.metadata_props[:]
            part.doc_string = ""


def _name_dimensions(model: Any, input_shape: Sequence[int | str]) -> None:
    """Names that people understand for the lengths that may vary, in the place of torch's symbols."""
    (images,) = model.graph.input
    names = {}
    for dimension, name in zip(images.type.tensor_type.shape.dim, input_shape, strict=True):
        if dimension.dim_param:
            names[dimension.dim_param] = str(name)
    for value in (images, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = names.get(dimension.dim_param, dimension.dim_param)
