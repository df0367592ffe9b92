"""Several `Features` in; their columns side by side, or their rows one after the other, as one out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from heads.features import Addressed, Features, as_slice
from heads.standardization import Floats, Labels


@dataclass(frozen=True, eq=False)
class StackedFeatures(Addressed):
    """The rows of several features, one after the other, in one order of one's own choice; made by `stacked`."""

    parts: tuple[Addressed, ...]

    @property
    def stored_views(self) -> int:
        return self.parts[0].n_views

    @property
    def stored_shape(self) -> tuple[int, int]:
        return sum(map(len, self.parts)), self.parts[0].shape[1]

    @property
    def store(self) -> object:
        return id(self.parts)

    @cached_property
    def _ends(self) -> Labels:
        """The cell after the last of each part."""
        return np.cumsum([len(part) for part in self.parts]) * self.stored_views

    def read(self, cells: Labels, out: Floats, *, threads: int = 1) -> None:
        owner = np.searchsorted(self._ends, cells, side="right")
        for number, part in enumerate(self.parts):
            places = np.flatnonzero(owner == number)
            if not len(places):
                continue
            own = cells[places] - (self._ends[number] - len(part) * self.stored_views)
            if part.cells is not None:
                row, view = np.divmod(own, self.stored_views)
                own = part.cells[row] + view
            at = as_slice(places)
            if isinstance(at, slice):
                part.read(own, out[at], threads=threads)
            else:
                found = np.empty((len(places), out.shape[1]), np.float32)
                part.read(own, found, threads=threads)
                out[places] = found


@dataclass(frozen=True, eq=False)
class JoinedFeatures(Features):
    """The columns of several features of the same images side by side; of plain views where their n_views differ."""

    parts: tuple[Features, ...]

    @property
    def n_views(self) -> int:
        each = {part.n_views for part in self.parts}
        return each.pop() if len(each) == 1 else 1

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.parts[0]), sum(part.shape[1] for part in self.parts)

    def block(self, start: int, stop: int) -> Floats:
        return np.concatenate([part.block(start, stop) for part in self.parts], axis=1)

    def fill(self, out: Floats) -> None:
        start = 0
        for part in self.parts:
            stop = start + part.shape[1]
            part.fill(out[:, start:stop])
            start = stop

    def take(self, rows: Labels) -> JoinedFeatures:
        return JoinedFeatures(tuple(part.take(rows) for part in self.parts))

    def view(self, number: int) -> JoinedFeatures:
        assert 0 <= number < self.n_views
        return JoinedFeatures(tuple(part.view(number) for part in self.parts))

    def expanded(self) -> JoinedFeatures:
        if self.n_views == 1:  # plain views, where the parts have different numbers of them
            return self.view(0)
        return JoinedFeatures(tuple(part.expanded() for part in self.parts))


def joined(parts: Sequence[Features]) -> Features:
    """The columns of features of the same images side by side; the features themselves where there is one part."""
    assert len({len(part) for part in parts}) == 1
    return parts[0] if len(parts) == 1 else JoinedFeatures(tuple(parts))


def stacked(parts: Sequence[Features]) -> Features:
    """The rows of features with the same columns and views, one after the other; those of one store stay one."""
    first = parts[0]
    if isinstance(first, JoinedFeatures):
        alike = [part for part in parts if isinstance(part, JoinedFeatures)]
        return JoinedFeatures(tuple(stacked(columns) for columns in zip(*(p.parts for p in alike), strict=True)))
    addressed = tuple(part for part in parts if isinstance(part, Addressed))
    assert len(addressed) == len(parts)
    assert len({(part.n_views, part.shape[1]) for part in parts}) == 1
    one = addressed[0]
    if len({part.store for part in addressed}) == 1:
        return replace(one, cells=np.concatenate([part.first_cells() for part in addressed]))
    return StackedFeatures(addressed)
