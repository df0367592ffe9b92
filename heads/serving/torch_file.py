"""An exported graph in, a torch.export archive (.pt2) out; and such a file in, a function that runs it, out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

#: The extra file in the archive that holds the description.
DESCRIPTION = "featcache.json"


def write(graph: ExportedProgram, path: Path, told: Mapping[str, Any]) -> None:
    """Write the archive, with the description as JSON in an extra file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on its own parts
        torch.export.save(graph, path, extra_files={DESCRIPTION: json.dumps(told)})


def reader(path: Path) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """A function from images to the program's first output. For files of one's own: torch may unpickle parts of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.export.load(path).module()

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = module(torch.from_numpy(images))[0].numpy()
        return found

    return run
