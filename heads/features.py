"""Feature vectors that lie in memory or in cache files in; float32 blocks of rows, subsets and views out.

`Features` is what every head takes; `ArrayFeatures` here, `heads.cached_features` and `heads.joined_features` are what
there is of it. Nothing is kept in memory but what `kept` keeps. Blocks may be asked for by several threads at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from heads.standardization import Floats, Labels

if TYPE_CHECKING:
    from typing_extensions import Self

BLOCK_ROWS = 8192
_MAX_THREADS = 4  # that read all rows of a cache


class Features(ABC):
    """Feature vectors of N images, each seen in one or more views; read a block at a time, always as float32.

    Rows are images. View 0 is the plain image, and what all methods but `view`, `expanded` and `kept` give.
    """

    @property
    def n_views(self) -> int:
        return 1

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(N, D)."""

    @abstractmethod
    def block(self, start: int, stop: int) -> Floats:
        """Rows start to stop - 1, float32 (stop - start, D); the caller does not write to them."""

    @abstractmethod
    def take(self, rows: Labels) -> Features:
        """Some rows, in the order asked for, int64 (n,); nothing is read yet."""

    def view(self, number: int) -> Features:
        """All rows in one of the views."""
        assert number == 0
        return self

    def expanded(self) -> Features:
        """Every view of every image as a row of its own, (N * n_views, D): image by image, its views side by side."""
        return self

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def n_bytes(self) -> int:
        """What all rows in all views take in memory as float32."""
        return self.shape[0] * self.n_views * self.shape[1] * 4

    def blocks(self, size: int = BLOCK_ROWS) -> Iterator[tuple[slice, Floats]]:
        """All rows in order: which ones, and their features."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield slice(start, stop), self.block(start, stop)

    def load(self) -> Floats:
        """All rows in memory, float32 (N, D); the caller does not write to them."""
        out = np.empty(self.shape, np.float32)
        self.fill(out)
        return out

    def fill(self, out: Floats) -> None:
        """Write all rows to `out`, float32 (N, D)."""
        for rows, block in self.blocks():
            out[rows] = block

    def kept(self) -> ArrayFeatures:
        """The same rows and views, read once and from then on in memory, `n_bytes` of them."""
        values = self.expanded().load()
        return ArrayFeatures(values.reshape(len(self), self.n_views, self.shape[1]) if self.n_views > 1 else values)


@dataclass(frozen=True, eq=False, kw_only=True)
class Addressed(Features):
    """Images in a store of rows, each in `stored_views` views. Cell r * stored_views + v is row r in view v.

    Attributes:
        cells: the first cell of each image, int64 (N,); None for all of the store.
        single: whether an image is its one cell, and not all views from it on.
    """

    cells: Labels | None = None
    single: bool = False

    @property
    @abstractmethod
    def stored_views(self) -> int:
        """Views of each row of the store."""

    @property
    @abstractmethod
    def stored_shape(self) -> tuple[int, int]:
        """Rows of the store, and the length D of a vector."""

    @property
    @abstractmethod
    def store(self) -> object:
        """What tells this store from others."""

    @abstractmethod
    def read(self, cells: Labels, out: Floats, *, threads: int = 1) -> None:
        """Write the vectors of some cells, in any order, to `out` (n, D)."""

    @property
    def n_views(self) -> int:
        return 1 if self.single else self.stored_views

    @property
    def shape(self) -> tuple[int, int]:
        n_rows, n_features = self.stored_shape
        return n_rows if self.cells is None else len(self.cells), n_features

    def first_cells(self, start: int = 0, stop: int | None = None) -> Labels:
        """The first cell of each image, or of images start to stop - 1."""
        if self.cells is not None:
            return self.cells[start:stop]
        return np.arange(start, len(self) if stop is None else stop, dtype=np.int64) * self.stored_views

    def block(self, start: int, stop: int) -> Floats:
        cells = self.first_cells(start, stop)
        out = np.empty((len(cells), self.shape[1]), np.float32)
        self.read(cells, out)
        return out

    def fill(self, out: Floats) -> None:
        self.read(self.first_cells(), out, threads=_MAX_THREADS)

    def take(self, rows: Labels) -> Self:
        return replace(self, cells=self.first_cells()[rows])

    def view(self, number: int) -> Self:
        assert 0 <= number < self.n_views
        return self if self.n_views == 1 else replace(self, cells=self.first_cells() + number, single=True)

    def expanded(self) -> Self:
        if self.n_views == 1:
            return self
        return replace(self, cells=(self.first_cells()[:, None] + np.arange(self.n_views)).ravel(), single=True)


@dataclass(frozen=True, eq=False)
class ArrayFeatures(Addressed):
    """Rows in memory, float16 or float32, (N, D) or with views (N, V, D); blocks of rows in a row are not copied."""

    values: NDArray[np.floating]

    @property
    def stored_views(self) -> int:
        return self.values.shape[1] if self.values.ndim == 3 else 1

    @property
    def stored_shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[-1]

    @property
    def store(self) -> object:
        return id(self.values)

    def block(self, start: int, stop: int) -> Floats:
        return self._vectors(self.first_cells(start, stop))

    def load(self) -> Floats:
        return self._vectors(self.first_cells())

    def read(self, cells: Labels, out: Floats, *, threads: int = 1) -> None:
        out[:] = self._vectors(cells)

    def _vectors(self, cells: Labels) -> Floats:
        vectors = self.values.reshape(-1, self.values.shape[-1])
        return vectors[as_slice(cells)].astype(np.float32, copy=False)


def as_features(X: Features | NDArray[np.floating]) -> Features:
    """X itself, or an array (N, D) or (N, V, D) as `Features`."""
    return X if isinstance(X, Features) else ArrayFeatures(np.asarray(X))


def as_slice(numbers: Labels) -> slice | Labels:
    """The slice that takes the same ascending, evenly spaced numbers without copying; else the numbers themselves."""
    if len(numbers) < 2:
        return slice(numbers[0], numbers[0] + 1) if len(numbers) else slice(0, 0)
    first, last, step = int(numbers[0]), int(numbers[-1]), int(numbers[1] - numbers[0])
    if step < 1 or last - first != step * (len(numbers) - 1) or (np.diff(numbers) != step).any():
        return numbers
    return slice(first, last + 1, step)
