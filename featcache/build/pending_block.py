"""Collect the rows of one block until none is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.build.reuse import KnownRows
from featcache.cache import file_format

Array = NDArray[Any]


@dataclass
class OpenBlock:
    """A block whose rows are not all there yet.

    Attributes:
        start: its first row.
        features: of all its rows.
        status: likewise.
        missing: the rows that are to be embedded.
        copied: how many came from other files.
    """

    start: int
    features: Array
    status: NDArray[np.uint8]
    missing: set[int]
    copied: int

    @classmethod
    def begin(
        cls, start: int, features: Array, origin: NDArray[np.uint8], content: Array, known: KnownRows
    ) -> OpenBlock | None:
        """A block with the rows from other files in it.

        Args:
            start: its first row.
            features: an array of zeros for all its rows.
            origin: the source of each; set to 0 where that is gone.
            content: the digest of each.
            known: the sources.

        Returns:
            None where a source is gone: a later pass embeds its rows.
        """
        for source in np.unique(origin[origin > 0]).tolist():
            here = np.flatnonzero(origin == source)
            copied = known.read(source, content[here])
            if copied is None:
                origin[here] = 0
                return None
            features[here] = copied
        missing = np.flatnonzero(origin == 0)
        status = np.full(len(features), file_format.OK, np.uint8)
        return cls(start, features, status, set((start + missing).tolist()), len(features) - len(missing))

    def put(self, row: int, features: Array, status: int) -> None:
        self.features[row - self.start], self.status[row - self.start] = features, status
        self.missing.discard(row)
