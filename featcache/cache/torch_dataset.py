"""A cached split as a torch Dataset of (features, label) pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from featcache.cache.split import CachedSplit
from featcache.tables.subset import row_numbers

#: Rows whose features take no more than this in float32 are read once and kept, by each process.
KEPT_BYTES = 1 << 30


class CachedDataset(Dataset[tuple[Tensor, int]]):
    """Pairs of a row's features, float32 of the split's ``row_shape``, and its label.

    A DataLoader asks for whole batches at once (``__getitems__``), and its workers may be processes of any kind: each
    reads the file by itself. Every block that is read is compared with its checksum. Features up to ``KEPT_BYTES`` are
    read at the first access and kept; of larger ones each batch is read, fastest where its rows are neighbours.

    Attributes:
        split: of a cache.
        rows: (n,) int64, which of its rows.
    """

    def __init__(
        self, split: CachedSplit, rows: NDArray[np.int64] | NDArray[np.bool_] | Sequence[int] | None = None
    ) -> None:
        """``rows`` as ``CachedSplit.read`` takes them; None takes all that are usable (with features and a label)."""
        self.split = split
        self.rows = split.usable() if rows is None else row_numbers(rows, len(split), of=split.name)
        self.labels: list[int] = split.labels[self.rows].tolist()
        self._kept: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": None}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One pair. Raises IndexError beyond the rows, and CacheError where a block is damaged."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Some pairs, read together."""
        wanted = np.asarray(indices)
        if wanted.dtype == bool:  # as torch's Subset hands them on if it is given a mask
            raise TypeError("indices are booleans; expected integers: give the mask to torch_dataset")
        wanted = wanted.astype(np.int64)
        features = self._features(wanted)
        return [(row, self.labels[i]) for row, i in zip(features, wanted.tolist(), strict=True)]

    def _features(self, wanted: NDArray[np.int64]) -> Tensor:
        """(n, *row_shape) float32."""
        if len(self.rows) * int(np.prod(self.split.row_shape)) * 4 > KEPT_BYTES:
            return torch.from_numpy(self.split.load(self.rows[wanted]))
        if self._kept is None:
            self._kept = torch.from_numpy(self.split.load(self.rows))
        return self._kept[torch.from_numpy(wanted)]
