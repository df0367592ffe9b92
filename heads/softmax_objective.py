"""Features, labels and weights of several multinomial logistic problems in; losses and gradients, in one pass, out.

The problems share the rows and differ in how much each row counts (a fold's own rows count nothing). Products are in
float32 (in float64 for rows of that type), sums over blocks in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.common.machine import has_room
from heads.blas_threads import BlasThreads
from heads.features import Features
from heads.predictors import Doubles
from heads.standardization import Floats, Labels, standardized

KEPT_BYTES = 1 << 30
"""Standardised rows of up to so many bytes are kept in memory; more are read and standardised anew in each pass."""

SMALL = 1 << 18
"""Rows of up to so many numbers are multiplied in float64, which costs next to nothing there."""

_BLOCK_BYTES = 1 << 21  # of a block of rows with its scores: what a core's cache holds
_ALONE = 1 << 23  # multiplications of a pass, up to which threads cost more than they save
_DEVICE_ROWS = 16384  # of a block on a GPU


@dataclass(frozen=True, eq=False)
class Sums:
    """What a pass gives, a mean over the weights of each problem's rows.

    Attributes:
        loss: (P,) float64, without the penalty.
        gradient: (P, R, D + 1) float64 of it, the intercepts' in the last column.
    """

    loss: Doubles
    gradient: Doubles


@dataclass(frozen=True, eq=False, kw_only=True)
class SoftmaxObjective:
    """P problems on the rows of X (N, D).

    Attributes:
        X: features, z = (x - mean) / scale being what weights apply to; or z itself, float32 or float64, in memory.
        codes: (N,) int64 in 0..n_classes-1.
        weights: (N, P) float64, what each row counts in each problem; every problem's sum is its number of rows.
        mean, scale: float32 (D,); None where X is z.
        n_classes: 2 give one row of weights (R = 1), as in scikit-learn, more give one a class.
        device: "cpu" is numpy in threads; another is torch's.
    """

    X: Features | NDArray[np.floating]
    codes: Labels
    weights: Doubles
    n_classes: int
    mean: Floats | None = None
    scale: Floats | None = None
    device: str = "cpu"

    @property
    def n_rows(self) -> int:
        """R, the rows of weights of one problem."""
        return 1 if self.n_classes == 2 else self.n_classes

    @property
    def n_features(self) -> int:
        return self.X.shape[1]

    @cached_property
    def threads(self) -> BlasThreads:
        """What the rows are shared among on a CPU."""
        return BlasThreads()

    @cached_property
    def totals(self) -> Doubles:
        """(P,) sums of the weights."""
        return self.weights.sum(axis=0)

    @cached_property
    def class_shares(self) -> Doubles:
        """(P, K) what the rows of each class count, of what all rows of the problem count."""
        return np.stack([np.bincount(self.codes, w, self.n_classes) for w in self.weights.T]) / self.totals[:, None]

    @cached_property
    def null_losses(self) -> Doubles:
        """(P,) mean losses of the best intercepts alone: the entropies of the classes' shares."""
        from scipy import special

        return special.entr(self.class_shares).sum(axis=1)

    @property
    def finest(self) -> float:
        """The relative gap to the optimum that sums in this type resolve, with a margin."""
        return 1e-12 if self._dtype is np.float64 else 1e-6

    @property
    def is_kept(self) -> bool:
        """Whether the standardised rows are in memory."""
        return self._kept is not None

    def block(self, start: int, stop: int) -> NDArray[np.floating]:
        """Standardised rows."""
        if self._kept is not None:
            return self._kept[start:stop]
        assert isinstance(self.X, Features)
        assert self.mean is not None
        assert self.scale is not None
        return standardized(self.X.block(start, stop), self.mean, self.scale)

    def sample(self, n: int) -> tuple[NDArray[np.floating], Labels]:
        """So many rows at equal distances, standardised, and which ones they are."""
        rows = np.arange(n) * len(self.codes) // n
        if self._kept is not None:
            return self._kept if n == len(self._kept) else self._kept[rows], rows
        assert isinstance(self.X, Features)
        assert self.mean is not None
        assert self.scale is not None
        return standardized(self.X.take(rows).load(), self.mean, self.scale), rows

    def __call__(
        self, points: Doubles, problems: NDArray[np.int64], *, kept: NDArray[np.floating] | None = None
    ) -> Sums:
        """Losses and gradients of some problems (n,) at their points (n, R, D + 1), float64.

        `kept` (N, n, K), where given, takes the probabilities.
        """
        totals = self.totals[problems]

        def part(xp: Any, span: tuple[int, int], arrays: tuple[Any, ...]) -> tuple[Doubles, Doubles]:
            W, b = arrays
            return self._part(xp, span, W, b, problems, kept)

        loss, gradient = self._over_rows(part, self._columns(points))
        return Sums(
            loss=loss / totals,
            gradient=gradient.reshape(len(problems), self.n_rows, -1) / totals[:, None, None],
        )

    def keep_probabilities(self, points: Doubles, problems: NDArray[np.int64]) -> NDArray[np.floating] | None:
        """Probabilities (N, n, K) at the points, for `curve`; None where they would take more than KEPT_BYTES / 2."""
        n_rows = len(self.codes)
        if self.device != "cpu" or 4 * n_rows * len(problems) * self.n_classes > KEPT_BYTES // 2:
            return None
        kept = np.empty((n_rows, len(problems), self.n_classes), self._dtype)
        self(points, problems, kept=kept)
        return kept

    def curve(
        self, points: Doubles, directions: Doubles, problems: NDArray[np.int64], kept: NDArray[np.floating] | None
    ) -> Doubles:
        """The Hessians (without the penalty) at the points times the directions; all are (n, R, D + 1)."""
        W, b = self._columns(points)
        V, v = self._columns(directions)
        totals = self.totals[problems]

        def part(xp: Any, span: tuple[int, int], arrays: tuple[Any, ...]) -> tuple[Doubles]:
            W, b, V, v = arrays
            return (self._curved(xp, span, W, b, V, v, problems, kept),)

        (bent,) = self._over_rows(part, (W, b, V, v))
        return bent.reshape(len(problems), self.n_rows, -1) / totals[:, None, None]

    def _curved(
        self,
        xp: Any,
        span: tuple[int, int],
        W: Any,
        b: Any,
        V: Any,
        v: Any,
        problems: NDArray[np.int64],
        kept: NDArray[np.floating] | None,
    ) -> Doubles:
        n, R, K = len(problems), self.n_rows, self.n_classes
        bent = self._zeros(xp, n * R, self.n_features + 1)
        for rows in self._spans(xp, span, n):
            z, omega = self._rows(xp, rows), self.weights[rows, problems].astype(self._dtype)
            if xp is not np:
                omega = self._to(omega)
            p = kept[rows] if kept is not None else self._softmax(xp, z @ W + b, n)[0]
            p = p[:, :, K - R :]
            t = (z @ V + v).reshape(-1, n, R) * p
            t -= p * t.sum(2)[:, :, None]
            t *= omega[:, :, None]
            t = t.reshape(-1, n * R)
            bent[:, :-1] += self._doubles(t.T @ z)
            bent[:, -1] += self._doubles(t.sum(0))
        return _on_cpu(bent)

    def _softmax(self, xp: Any, scores: Any, n: int) -> tuple[Any, Any, Any]:
        """Probabilities (rows, n, K) of scores (rows, n * R), and the scores and the logarithms they came from."""
        scores = scores.reshape(len(scores), n, self.n_rows)
        if self.n_rows < self.n_classes:
            scores = xp.concatenate([xp.zeros_like(scores), scores], 2)
        scores = scores - xp.amax(scores, 2)[:, :, None]
        p = xp.exp(scores)
        total = p.sum(2)
        p /= total[:, :, None]
        return p, scores, xp.log(total)

    def _spans(self, xp: Any, span: tuple[int, int], n: int) -> Iterator[slice]:
        size = _DEVICE_ROWS
        if xp is np:
            size = max(64, _BLOCK_BYTES // (4 * (self.n_features + 2 * n * self.n_classes)))
        for start in range(span[0], span[1], size):
            yield slice(start, min(start + size, span[1]))

    def _columns(self, points: Doubles) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Weights (D, n * R) and intercepts (n * R,)."""
        weights = points[:, :, :-1].reshape(-1, self.n_features).T
        return np.ascontiguousarray(weights, self._dtype), points[:, :, -1].reshape(-1).astype(self._dtype)

    def _over_rows(self, part: Callable[..., tuple[Doubles, ...]], arrays: tuple[Any, ...]) -> tuple[Doubles, ...]:
        """What `part` gives for spans of rows, summed: in threads, or on the device."""
        if self.device != "cpu":
            import torch

            with torch.no_grad():
                return part(torch, (0, len(self.codes)), tuple(self._to(array) for array in arrays))
        if len(self.codes) * arrays[0].size <= _ALONE:
            with self.threads.limited():
                return part(np, (0, len(self.codes)), arrays)
        bounds = [len(self.codes) * i // self.threads.count for i in range(self.threads.count + 1)]
        found = self.threads.map(lambda span: part(np, span, arrays), list(pairwise(bounds)))
        return tuple(np.sum(column, axis=0) for column in zip(*found, strict=True))

    def _part(
        self,
        xp: Any,
        span: tuple[int, int],
        W: Any,
        b: Any,
        problems: NDArray[np.int64],
        kept: NDArray[np.floating] | None,
    ) -> tuple[Doubles, Doubles]:
        """Loss (n,) and gradient (n * R, D + 1), summed over a span of rows.

        The same lines serve numpy and, with other arrays, torch.
        """
        n, R, K = len(problems), self.n_rows, self.n_classes
        loss, gradient = self._zeros(xp, n), self._zeros(xp, n * R, self.n_features + 1)
        for rows in self._spans(xp, span, n):
            z, code = self._rows(xp, rows), self.codes[rows]
            omega, here = self.weights[rows, problems].astype(self._dtype), np.arange(len(code))
            if xp is not np:
                code, omega, here = (self._to(part) for part in (code, omega, here))
            p, scores, log_total = self._softmax(xp, z @ W + b, n)
            if kept is not None:
                kept[rows] = p
            loss += self._doubles(((log_total - scores[here, :, code]) * omega).sum(0))
            p *= omega[:, :, None]
            p[here, :, code] -= omega
            off = p[:, :, K - R :].reshape(-1, n * R)
            gradient[:, :-1] += self._doubles(off.T @ z)
            gradient[:, -1] += self._doubles(off.sum(0))
        return _on_cpu(loss), _on_cpu(gradient)

    def _rows(self, xp: Any, rows: slice) -> Any:
        """Standardised rows where the products are computed."""
        if xp is np:
            return self.block(rows.start, rows.stop)
        return self._there[rows] if self._there is not None else self._to(self.block(rows.start, rows.stop))

    def _doubles(self, values: Any) -> Any:
        """Whatever array, as float64."""
        return values.astype(np.float64) if isinstance(values, np.ndarray) else values.to(self._sums_on).double()

    def _zeros(self, xp: Any, *shape: int) -> Any:
        """In float64, where the products are computed."""
        return np.zeros(shape) if xp is np else xp.zeros(shape, dtype=xp.float64, device=self._sums_on)

    def _to(self, array: NDArray[Any]) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    @cached_property
    def _kept(self) -> NDArray[np.floating] | None:
        if not isinstance(self.X, Features):
            return self.X
        if 4 * self.X.shape[0] * self.X.shape[1] > KEPT_BYTES or self.mean is None or self.scale is None:
            return None
        rows = standardized(self.X.load(), self.mean, self.scale)
        return rows.astype(np.float64) if rows.size <= SMALL and self._sums_on == self.device else rows

    @property
    def _sums_on(self) -> str:
        """Where torch sums in float64, which Apple's GPUs do not have."""
        return "cpu" if self.device.startswith("mps") else self.device

    @cached_property
    def _there(self) -> Any:
        """The standardised rows on the device, or None where they would take too much of its memory, or where that is
        not known.
        """
        import torch

        n_rows, n_features = self.X.shape
        dtype, place = torch.float64 if self._dtype is np.float64 else torch.float32, torch.device(self.device)
        if place.type == "mps" or not has_room(place, dtype.itemsize * n_rows * n_features):
            return None
        rows = torch.empty(n_rows, n_features, dtype=dtype, device=place)
        for start in range(0, n_rows, _DEVICE_ROWS):
            stop = min(start + _DEVICE_ROWS, n_rows)
            rows[start:stop] = torch.from_numpy(np.ascontiguousarray(self.block(start, stop)))
        return rows

    @property
    def _dtype(self) -> type[np.floating]:
        return np.float64 if self._kept is not None and self._kept.dtype == np.float64 else np.float32


def _on_cpu(values: Any) -> Doubles:
    """Whatever array, in numpy."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()
