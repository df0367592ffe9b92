"""Share the missing blocks of a file among ranks, and watch how far the other ranks are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featcache.cache.split import CachedSplit
from featcache.common.ranks import Ranks

#: Seconds between two looks at what the others have done.
LOOK_SECONDS = 1.0

Blocks = Mapping[str, Sequence[int]]


def share_of(blocks: Blocks, weights: Mapping[str, NDArray[np.int64]], ranks: Ranks) -> dict[str, set[int]]:
    """A rank's share: blocks one after the other, so that few groups of rows straddle two shares.

    Args:
        blocks: by split, ascending.
        weights: what each block of a split costs.
        ranks: whose share is asked for.
    """
    if ranks.is_alone:
        return {name: set(numbers) for name, numbers in blocks.items()}
    costs = np.concatenate([weights[name][np.array(numbers, np.int64)] for name, numbers in blocks.items()])
    ends = costs.cumsum()
    owners = (2 * ends - costs) * ranks.size // max(1, 2 * costs.sum())  # of the middle of each block
    share, first = {}, 0
    for name, numbers in blocks.items():
        mine = owners[first : first + len(numbers)] == ranks.rank
        share[name] = set(np.array(numbers, np.int64)[mine].tolist())
        first += len(numbers)
    return share


class OthersRows:
    """Rows in the blocks of other ranks.

    Args:
        splits: as they lie in the file.
        blocks: of other ranks, by split.
    """

    def __init__(self, splits: Mapping[str, CachedSplit], blocks: Blocks) -> None:
        self._told = {name: splits[name].stored["checksums"] for name, numbers in blocks.items() if numbers}
        self._blocks = {name: np.array(blocks[name]) for name in self._told}
        ends = {name: [splits[name].rows_of(block) for block in blocks[name]] for name in self._told}
        self._rows = {name: np.array([stop - start for start, stop in each]) for name, each in ends.items()}
        self._done = 0
        self._looked_at = float("-inf")

    @property
    def done(self) -> int:
        """How many count, as of a moment ago."""
        if self._told and time.monotonic() - self._looked_at > LOOK_SECONDS:
            self._looked_at = time.monotonic()
            self._done = 0
            for name, stored in self._told.items():
                told = stored.read()["features"][self._blocks[name]]
                self._done += int(self._rows[name][told.any(axis=1)].sum())
        return self._done
