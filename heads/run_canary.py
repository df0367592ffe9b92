"""What a run's encoders made of the shipped pictures in, a small file in the run's folder out, and back.

With it a run can be used on new images where its cache is no longer at hand, and never with another stack unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.cache.canary import Canary
from featcache.common.errors import UserError
from featcache.common.files import one_line
from featcache.common.hashing import DIGEST_SIZE
from heads.plain_data import read_arrays

CANARY_FILE = "canary.npz"


def write_canary(folder: Path, canaries: Sequence[Canary]) -> None:
    """Write ``canary.npz``: for the i-th encoder ``i_ids`` (K,) text, ``i_features`` (K, ...), ``i_pixels`` (K, 16)."""
    arrays: dict[str, Any] = {}
    for number, canary in enumerate(canaries):
        arrays[f"{number}_ids"] = np.array(canary.ids)
        arrays[f"{number}_features"] = canary.features
        arrays[f"{number}_pixels"] = canary.pixels
    np.savez(folder / CANARY_FILE, allow_pickle=False, **arrays)


def read_canary(folder: Path, *, n_encoders: int) -> tuple[Canary, ...] | None:
    """What a run's folder holds; None where it is of a time when runs kept none.

    Raises:
        UserError: it is damaged, or not of so many encoders.
    """
    path = folder / CANARY_FILE
    try:
        arrays = read_arrays(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({one_line(error.strerror or error)})") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged ({one_line(error)}); run it again") from error
    expected = {f"{number}_{part}" for number in range(n_encoders) for part in ("ids", "features", "pixels")}
    if set(arrays) != expected:
        raise UserError(f"{path}: holds {one_line(sorted(arrays))}, expected {one_line(sorted(expected))}")
    canaries = []
    for number in range(n_encoders):
        ids, features, pixels = (arrays[f"{number}_{part}"] for part in ("ids", "features", "pixels"))
        if not _fit(ids, features, pixels):
            raise UserError(f"{path}: its ids, features and pixels do not fit each other; run it again")
        canaries.append(Canary(tuple(ids.tolist()), features, pixels))
    return tuple(canaries)


def _fit(ids: NDArray[Any], features: NDArray[Any], pixels: NDArray[Any]) -> bool:
    if ids.ndim != 1 or ids.dtype.kind != "U" or not len(ids):
        return False
    if features.dtype.kind != "f" or features.ndim < 2 or len(features) != len(ids):
        return False
    return pixels.dtype == np.uint8 and pixels.shape == (len(ids), DIGEST_SIZE)
