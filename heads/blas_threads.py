"""Pieces of work in; what each gives out, done in threads that do not wait for those of the BLAS libraries."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

Piece = TypeVar("Piece")
Result = TypeVar("Result")

MOST_BYTES = 1 << 30
"""What pieces that are worked on at once may take together."""


class BlasThreads:
    """The threads of numpy's and scipy's BLAS, which each have their own, and spin on while the other's work."""

    @cached_property
    def libraries(self) -> ThreadpoolController:
        import scipy.linalg  # noqa: F401  so that its library is among them
        from threadpoolctl import ThreadpoolController

        return ThreadpoolController()

    @cached_property
    def count(self) -> int:
        """How many one library may use."""
        return max((int(pool["num_threads"]) for pool in self.libraries.info()), default=os.cpu_count() or 1)

    def limited(self) -> Any:
        """A context in which a product has one thread."""
        return self.libraries.limit(limits=1)

    def map(self, work: Callable[[Piece], Result], pieces: Sequence[Piece], *, n_bytes: int = 0) -> list[Result]:
        """The work on each piece: in `count` threads, each with one of BLAS's, or one after the other, each with all of
        them, where there are fewer pieces, or where so many, of n_bytes each, would take more than MOST_BYTES.
        """
        if len(pieces) < self.count or self.count * n_bytes > MOST_BYTES:
            return [work(piece) for piece in pieces]
        with self.limited(), ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(work, pieces))
