"""What the loop trains on: rows that come in batches, as images or as the cached output of frozen stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from finetune.share import WHOLE, Share

Labels = NDArray[np.int64]


class Source(Protocol):
    """Labelled rows, and what the model makes of them up to a cut.

    Whatever is random in a batch is drawn from torch's global generators when the batch is asked for, so that the
    caller decides it by seeding them.
    """

    @property
    def labels(self) -> Labels:
        """(N,) int64."""

    @property
    def cut(self) -> int:
        """How many leading stages have been run already; 0 gives what the first stage takes."""

    def serving(self, cut: int) -> Source:
        """The same rows for a phase that needs no gradient below a cut: a source whose own is at most that."""

    def batches(self, rows: Sequence[Labels], *, augment: bool, share: Share = WHOLE) -> Iterator[Tensor]:
        """For each set of row numbers, in order, (n, ...) float32 on the device that computes.

        Of a batch that ranks share, this rank's rows alone; what is random in them is as if all were here.
        """
