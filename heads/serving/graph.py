"""A servable module in; its graph by torch.export, with the batch (and the image size) left open, out."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from featcache.common.errors import UserError
from featcache.common.files import one_line
from heads.serving.servable import Servable

#: The largest side of an image that a graph with preprocessing takes.
MAX_SIDE = 1 << 16


def graph_of(servable: Servable) -> ExportedProgram:
    """Trace the module without running code of its caller.

    Raises:
        UserError: the model does what a graph can't hold; the message says what.
    """
    batch = Dim("batch", min=1)
    dimensions: dict[int, Any] = {0: batch}
    if servable.fitting is not None:
        # of different sides, and neither the network's: equal numbers would be taken for one
        size = servable.fitting.size
        images = torch.zeros(2, 2 * size + 23, 3 * size + 40, 3, dtype=torch.uint8)
        dimensions |= {1: Dim("height", min=2, max=MAX_SIDE), 2: Dim("width", min=2, max=MAX_SIDE)}
    else:
        images = torch.zeros(2, *(int(length) for length in servable.input_shape[1:]))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on its own parts
            return torch.export.export(servable, (images,), dynamic_shapes={"images": dimensions}, strict=False)
    except Exception as error:
        raise UserError(
            f"torch.export does not take this model ({one_line(error)}); choose another backbone"
        ) from error
