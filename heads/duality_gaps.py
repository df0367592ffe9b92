"""Bound how far a fit lies above its optimum: its objective less the value of a feasible point of the dual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from heads.predictors import Doubles
from heads.standardization import Floats, Labels

_LEVELLING = 10  # products at most, to level the mean probabilities of a dual point
_SLACKS = 1 << 24  # of rows and classes, taken at once


@dataclass(frozen=True, eq=False, kw_only=True)
class SoftmaxDual:
    """What the bound of P multinomial problems needs of their rows: weighted means, float64.

    Attributes:
        features: (P, D) mean features.
        class_features: (P, R, D) mean of the features times the indicator of each class that has a row of weights.
        class_shares: (P, K) each class's share of the weight, more than 0.
    """

    features: Doubles
    class_features: Doubles
    class_shares: Doubles

    @classmethod
    def at_zero(cls, gradients: Doubles, features: Doubles, class_shares: Doubles) -> SoftmaxDual:
        """From the gradients (P, R, D + 1) where all points are 0, so that each class has probability 1 / K."""
        class_features = features[:, None] / class_shares.shape[1] - gradients[:, :, :-1]
        return cls(features=features, class_features=class_features, class_shares=class_shares)

    def gaps(
        self,
        points: Doubles,
        losses: Doubles,
        gradients: Doubles,
        penalties: Doubles,
        problems: Labels,
        costs: Doubles | float = 0.0,
    ) -> Doubles:
        """Upper bounds (n,) of some problems' objectives minus their minima, relative to the objectives.

        Of the problems (n,) the arguments are points and gradients of the mean loss, without the penalty, (n, R, D +
        1), mean losses and penalties (n,); the bound is as exact as these are, and NaN where one is. The dual point of
        row i is q_i = (1 - t) p_i + t r, p_i being its probabilities. The intercepts have no penalty, so that a dual
        point is feasible only if the mean of q is the classes' shares; r = mean p - e / t with e = mean p - shares sees
        to that, and t = max e / mean p is the least for which r is not negative. The dual is the mean entropy of q
        minus |mean (q - y) x|^2 / (2 penalty); entropy is concave. `costs` are what another p than the points' own
        takes off the entropy beyond its linear terms.
        """
        from scipy import special

        W, b, shares = points[:, :, :-1], points[:, :, -1], self.class_shares[problems]
        off = gradients[:, :, -1]  # e, of the classes that have a row of weights
        if off.shape[1] == shares.shape[1]:
            excess = off = off - off.mean(axis=1, keepdims=True)  # probabilities sum to 1, but for rounding
        else:
            excess = np.concatenate([-off, off], axis=1)
        mean_p = np.maximum(shares + excess, np.finfo(np.float64).tiny)
        t = np.maximum((excess / mean_p).max(axis=1), 0.0)
        r = np.maximum(mean_p - excess / np.where(t > 0, t, 1.0)[:, None], 0.0)
        toward = r[:, -W.shape[1] :, None] * self.features[problems, None] - self.class_features[problems]
        mixed = (1 - t)[:, None, None] * gradients[:, :, :-1] + t[:, None, None] * toward
        slopes = mixed + penalties[:, None, None] * W
        gaps = (
            (slopes**2).sum(axis=(1, 2)) / (2 * penalties)
            + (1 - t) * (b * off).sum(axis=1)
            + t * (losses - (W * toward).sum(axis=(1, 2)) - special.entr(r).sum(axis=1))
            + costs
        )
        values = losses + 0.5 * penalties * (W**2).sum(axis=(1, 2))
        return np.asarray(gaps / np.maximum(values, 1e-30))

    def closer_gaps(
        self,
        points: Doubles,
        losses: Doubles,
        gradients: Doubles,
        penalties: Doubles,
        problems: Labels,
        *,
        curve: Callable[[Doubles], Doubles],
        enough: float,
        most: int,
    ) -> Doubles:
        """The same of dual points p (1 - v + p . v) whose means differ less from the classes' shares.

        The shifts v (n, R) are found by conjugate gradients on the intercepts' Hessian H, with at most `most` calls of
        `curve`, which multiplies the whole Hessian with directions (n, R, D + 1); it is not called where that cannot
        bring a bound to `enough`. The dual point is not negative if v spans at most 1, and its entropy is at least the
        linear terms less v . H v: what float32 rounds in a gradient then costs next to nothing.
        """
        at = points, losses
        bounds, left = self.gaps(*at, gradients, penalties, problems), gradients.copy()
        if left.shape[1] > 1:
            left[:, :, -1] -= left[:, :, -1].mean(axis=1, keepdims=True)
        level = left.copy()
        level[:, :, -1] = 0
        if not ((bounds > enough) & (self.gaps(*at, level, penalties, problems) <= enough)).any():
            return bounds
        excess, directions = left[:, :, -1].copy(), np.zeros_like(left)
        directions[:, :, -1], shifts = excess, np.zeros_like(excess)
        for _ in range(min(_LEVELLING, left.shape[1], most)):
            bent = curve(directions)
            curvatures, sizes = (directions * bent)[:, :, -1].sum(axis=1), (left[:, :, -1] ** 2).sum(axis=1)
            lengths = np.divide(sizes, curvatures, out=np.zeros_like(sizes), where=curvatures > 0)[:, None]
            shifts += lengths * directions[:, :, -1]
            left -= lengths[:, :, None] * bent
            costs = np.maximum((shifts * (excess - left[:, :, -1])).sum(axis=1), 0.0)
            spans = np.abs(shifts[:, 0]) if shifts.shape[1] == 1 else np.ptp(shifts, axis=1)
            closer = self.gaps(*at, left, penalties, problems, costs)
            bounds = np.where(spans <= 1, np.fmin(closer, bounds), bounds)
            if (bounds <= enough).all():
                break
            shares = np.divide((left[:, :, -1] ** 2).sum(axis=1), sizes, out=np.zeros_like(sizes), where=sizes > 0)
            directions[:, :, -1] = left[:, :, -1] + shares[:, None] * directions[:, :, -1]
        return bounds


def squared_hinge_gaps(
    X: Floats, signs: Floats, weights: Doubles, biases: Doubles, *, C: float, row_weights: Doubles | None = None
) -> tuple[Doubles, Doubles]:
    """Upper bounds (K,) of how far one-against-the-rest problems are above their minima, relative to their objectives.

    The second result is the objectives (K,). Each is |w|^2 / 2 + C * sum of row_weights * max(0, 1 - y f)^2, f = w . x
    + b, the intercept not penalised. X is (N, D), signs y (N, K), weights (K, D), biases (K,), row_weights (N,), 1 by
    default. The dual point is alpha = 2 C row_weights slack, the heavier side scaled down so that sum alpha y = 0, and
    all scaled so that the dual, sum alpha - sum alpha^2 / (4 C row_weights) - |sum alpha y x|^2 / 2, is highest. If no
    row of one side has slack, the bound is 1.
    """
    gaps, values = np.empty((2, len(weights)))
    width = max(1, _SLACKS // len(X))
    for start in range(0, len(weights), width):
        some = slice(start, start + width)
        sign = signs[:, some]
        slack = np.maximum(1 - sign * (X @ weights[some].T.astype(np.float32) + biases[some].astype(np.float32)), 0)
        alpha = slack if row_weights is None else slack * row_weights.astype(np.float32)[:, None]  # divided by 2 C
        value = 0.5 * (weights[some] ** 2).sum(axis=1) + C * np.einsum("ij,ij->j", slack, alpha, dtype=np.float64)
        sides = [np.where(sign == side, alpha, 0).sum(axis=0, dtype=np.float64) for side in (1, -1)]
        lighter = np.minimum(*sides)
        kept = [np.divide(lighter, side, out=np.zeros_like(side), where=side > 0) for side in sides]
        level = np.where(sign == 1, *kept).astype(np.float32)
        alpha = alpha * level  # which may be `slack` itself
        pulls = (X.T @ (alpha * sign)).astype(np.float64)
        linear = 4 * C * lighter
        square = C * np.einsum("ij,ij->j", alpha * level, slack, dtype=np.float64) + 2 * C**2 * (pulls**2).sum(axis=0)
        best = np.divide(linear**2, 4 * square, out=np.zeros_like(linear), where=square > 0)
        values[some] = value
        gaps[some] = np.divide(value - best, value, out=np.zeros_like(value), where=value != 0)
    return gaps, values
