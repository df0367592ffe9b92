"""A batch of rows and the ranks that train on it together in; which of its rows are this rank's out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from featcache.common.errors import UserError
from featcache.common.ranks import ALONE, Ranks

_Rows = TypeVar("_Rows", Tensor, NDArray[np.int64])


@dataclass(frozen=True, kw_only=True)
class Share:
    """A rank's rows of every batch: neighbours, as many as the other ranks have, or one more or less.

    Attributes:
        ranks: among which batches are shared.
        mixes: whether each row is mixed with the one before it, the first with the last. A rank that has not all rows
            then needs the one before its first, too, which its part of a batch begins with.
    """

    ranks: Ranks = ALONE
    mixes: bool = False

    @property
    def has_neighbour(self) -> bool:
        """Whether a part begins with a row that is another rank's."""
        return self.mixes and not self.ranks.is_alone

    def places(self, n_rows: int) -> NDArray[np.int64]:
        """Where this rank's rows stand in a batch of so many, the neighbour first where there is one."""
        part = self.ranks.part(n_rows)
        return np.arange(part.start - self.has_neighbour, part.stop) % n_rows

    def own(self, rows: _Rows) -> _Rows:
        """Its part of a batch without the neighbour."""
        return rows[1:] if self.has_neighbour else rows

    def check(self, n_rows: int, n_batches: int) -> None:
        """Raises UserError where a rank would have no row of some batch."""
        fewest = n_rows // n_batches
        if fewest < self.ranks.size:
            raise UserError(
                f"{self.ranks.size} ranks can't share forward passes of {fewest} images: take a larger --batch-size, "
                f"or fewer ranks"
            )


#: All rows of every batch.
WHOLE = Share()
