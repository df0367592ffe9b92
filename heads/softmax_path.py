"""An objective and penalties in; every problem's minimum for each penalty in turn, with a certificate, out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.curvature import InverseHessian, inverse_hessian, worth
from heads.predictors import Doubles
from heads.softmax_objective import SoftmaxObjective, Sums

TOLERANCE = 1e-6
MAX_PASSES = 1000
_FACTOR = 100  # by which C grows at most from one start to the next, on the way to the first C
_LOOSE = 1e-2  # tolerance of solutions that are starts alone
_SETTLED = 20  # steps of conjugate gradients, above which the first Hessian is learned anew where that is cheap
_HARD = 50  # steps, above which it is always learned anew
_MOST = 80  # of them for one Newton step
_LOOSEST, _CLOSER = 0.25, 10.0  # share of the squared residual that a Newton step may leave, and that by its gap
_MARGIN = 3.0  # between a gap as the first Hessian has it, corrected as in the step before, and the true one
_HALVINGS = 12
_ENOUGH = 1e-4  # share of the linear decrease that a step must keep (Armijo)
_NOISE = 2e-8  # of the loss: what float32 sums do not resolve


@dataclass(frozen=True, eq=False, kw_only=True)
class Minima:
    """The problems' minima for one C.

    Attributes:
        C: as in scikit-learn: C times the sum of losses plus half the squared weights.
        weights: (P, R, D) float64, of standardised features; intercepts: (P, R).
        explained: (P,) share of the loss of the best intercepts alone that is gone, 1 being a perfect fit.
        objective: (P,) mean loss plus the penalty divided by C and the number of rows.
        estimated_gap: (P,) what the last Newton step was to gain, relative; what is left is less.
        certified_gap: (P,) upper bound of it, the duality gap at the end.
        n_passes: passes over the rows.
        messages: (P,) why a problem did not converge, or nothing.
    """

    C: float
    weights: Doubles
    intercepts: Doubles
    explained: Doubles
    objective: Doubles
    estimated_gap: Doubles
    certified_gap: Doubles
    n_passes: int
    messages: tuple[str, ...]


def softmax_path(
    objective: SoftmaxObjective,
    Cs: Sequence[float],
    *,
    means: Doubles | None = None,
    scales: Doubles | None = None,
    tol: float = TOLERANCE,
    max_passes: int = MAX_PASSES,
) -> Iterator[Minima]:
    """Minimise all problems together, for ascending Cs, each from where the one before ended.

    Newton's method, its systems solved by preconditioned conjugate gradients (Nocedal and Wright 2006, algorithm 7.1);
    one pass over the rows serves all problems that are not done. `means` and `scales` (P, D) standardise the features
    of the objective anew for each problem. The first C is approached from smaller ones, solved loosely.
    """
    newton = _Newton(objective, _Standardisation(means, scales))
    smallest = 0.1 * objective.n_classes / float(objective.totals.min())
    before = min(smallest, Cs[0])
    while before * _FACTOR < Cs[0]:
        newton.minimise(before, tol=_LOOSE, max_passes=max_passes)
        before *= _FACTOR
    for C in Cs:
        yield newton.minimise(C, tol=tol, max_passes=max_passes)


class _Newton:
    """The problems' points, and what is known there."""

    def __init__(self, objective: SoftmaxObjective, view: _Standardisation) -> None:
        self.objective, self.view = objective, view
        self.everyone = np.arange(len(objective.totals))
        self.points = np.zeros((len(self.everyone), objective.n_rows, objective.n_features + 1))
        first = view.evaluate(objective, self.points, self.everyone)
        self.losses, self.gradients = first.loss, first.gradient  # without penalties
        self.ratios = np.full(len(self.everyone), np.inf)  # of gaps to what the first Hessian took them for
        self.n_passes = 1
        self.hessian: InverseHessian | None = None
        self.patience = min(max(_SETTLED, worth(objective)), _HARD)

    def minimise(self, C: float, *, tol: float, max_passes: int) -> Minima:
        penalties = 1.0 / (C * self.objective.totals)
        gaps, messages = np.full(len(self.everyone), np.inf), [""] * len(self.everyone)
        active = self.everyone
        while len(active) and self.n_passes < max_passes:
            penalty = penalties[active, None, None]
            fresh = self.hessian is None
            if self.hessian is None:
                self.hessian = self.view.hessian(self.objective, self.points, penalties)
            gradients = self.gradients[active].copy()
            gradients[:, :, :-1] += penalty * self.points[active, :, :-1]
            turned = self.hessian.solve(-gradients, penalties[active])
            values = self._values(self.losses[active], self.points[active], penalties[active])
            near = -0.5 * (gradients * turned).sum(axis=(1, 2))  # gaps as the first Hessian has them: no pass
            near = np.maximum(near / np.maximum(np.abs(values), 1e-30), 1e-300)
            likely = _MARGIN * self.ratios[active] * near
            gaps[active] = np.where(likely <= tol, likely, gaps[active])
            if (likely <= tol).any():
                active = active[likely > tol]
                continue
            forcing = _forcing(gaps[active], tol)
            steps, n_inner = self._solve(active, -gradients, turned, penalties[active], self.hessian, forcing)
            slopes = (gradients * steps).sum(axis=(1, 2))
            gaps[active] = -0.5 * slopes / np.maximum(np.abs(values), 1e-30)
            self.ratios[active] = np.maximum(gaps[active] / near, 1.0)
            stuck = self._search(active, steps, slopes, values, penalties)
            if stuck and not fresh:  # what was learned elsewhere may be what misleads
                self.hessian, stuck = None, set()
            for i in sorted(stuck):
                if gaps[i] > 100 * tol:
                    messages[i] = f"no step goes down any more at an estimated gap of {gaps[i]:.1e}"
            active = np.array([i for i in active.tolist() if gaps[i] > tol and i not in stuck], np.int64)
            if n_inner > self.patience:
                self.hessian = None
        for i in active.tolist():
            messages[i] = f"stopped after {self.n_passes} passes at an estimated gap of {gaps[i]:.1e}"
        n_passes, self.n_passes = self.n_passes, 0
        values = self._values(self.losses, self.points, penalties)
        return Minima(
            C=C,
            weights=self.points[:, :, :-1].copy(),
            intercepts=self.points[:, :, -1].copy(),
            explained=1 - self.losses / np.maximum(self.objective.null_losses, 1e-30),
            objective=values,
            estimated_gap=gaps,
            certified_gap=self._duality_gaps(penalties) / np.maximum(np.abs(values), 1e-30),
            n_passes=n_passes,
            messages=tuple(messages),
        )

    def _values(self, losses: Doubles, points: Doubles, penalties: Doubles) -> Doubles:
        return losses + 0.5 * penalties * (points[:, :, :-1] ** 2).sum(axis=(1, 2))

    def _solve(
        self,
        active: NDArray[np.int64],
        residuals: Doubles,
        turned: Doubles,
        penalties: Doubles,
        hessian: InverseHessian,
        forcing: Doubles,
    ) -> tuple[Doubles, int]:
        """Newton's steps to a share (n,) of the squared residual, all problems in step; how many products that took."""
        points = self.points[active]
        kept = self.view.keep_probabilities(self.objective, points, active)
        self.n_passes += kept is not None
        steps, directions = np.zeros_like(residuals), turned.copy()
        first = sizes = (residuals * turned).sum(axis=(1, 2))
        going = np.arange(len(active))
        n_inner = 0
        while len(going) and n_inner < _MOST:
            n_inner += 1
            some = directions[going]
            rows = None if kept is None else kept if len(going) == len(active) else kept[:, going]
            bent = self.view.curve(self.objective, points[going], some, active[going], rows)
            bent[:, :, :-1] += penalties[going, None, None] * some[:, :, :-1]
            self.n_passes += 1
            lengths = (sizes[going] / (some * bent).sum(axis=(1, 2)))[:, None, None]
            steps[going] += lengths * some
            residuals[going] -= lengths * bent
            turned[going] = hessian.solve(residuals[going], penalties[going])
            before, sizes = sizes, (residuals * turned).sum(axis=(1, 2))
            directions = turned + (sizes / before)[:, None, None] * directions
            going = going[sizes[going] > forcing[going] * first[going]]
        return steps, n_inner

    def _search(
        self, active: NDArray[np.int64], steps: Doubles, slopes: Doubles, values: Doubles, penalties: Doubles
    ) -> set[int]:
        """Go as far along the steps as the objective falls; the problems where no step was short enough."""
        left, length = np.arange(len(active)), 1.0
        for _ in range(_HALVINGS):
            here = active[left]
            trial = self.points[here] + length * steps[left]
            sums = self.view.evaluate(self.objective, trial, here)
            self.n_passes += 1
            found = self._values(sums.loss, trial, penalties[here])
            fine = found <= values[left] + _ENOUGH * length * slopes[left] + _NOISE * np.abs(values[left])
            self.points[here[fine]], self.losses[here[fine]] = trial[fine], sums.loss[fine]
            self.gradients[here[fine]] = sums.gradient[fine]
            left, length = left[~fine], length / 2
            if not len(left):
                break
        return set(active[left].tolist())

    def _duality_gaps(self, penalties: Doubles) -> Doubles:
        """With the dual point p - y: |gradient|^2 / (2 penalty) + intercepts . their gradient; (P,)."""
        slopes = self.gradients[:, :, :-1] + penalties[:, None, None] * self.points[:, :, :-1]
        unpenalised = np.abs((self.points[:, :, -1] * self.gradients[:, :, -1]).sum(axis=1))
        return (slopes**2).sum(axis=(1, 2)) / (2 * penalties) + unpenalised


def _forcing(gaps: Doubles, tol: float) -> Doubles:
    """How far each system is solved: loosely far from the minimum, closely near it, and no closer than `tol` needs.

    The share of the squared residual is about what a step leaves of the gap where the objective is quadratic (Eisenstat
    and Walker 1996).
    """
    return np.minimum(_LOOSEST, np.maximum(_CLOSER * gaps, 0.1 * tol / np.maximum(gaps, 1e-30)))


class _Standardisation:
    """Turns points for each problem's own standardised features into points for the objective's, and gradients back."""

    def __init__(self, means: Doubles | None, scales: Doubles | None) -> None:
        self.means, self.scales = means, scales

    def shared(self, points: Doubles, problems: NDArray[np.int64]) -> Doubles:
        """The problems' points as points of the objective's features."""
        if self.means is None or self.scales is None:
            return points
        shared = np.empty_like(points)
        shared[:, :, :-1] = points[:, :, :-1] / self.scales[problems][:, None]
        shared[:, :, -1] = points[:, :, -1] - (shared[:, :, :-1] * self.means[problems][:, None]).sum(axis=2)
        return shared

    def back(self, gradient: Doubles, problems: NDArray[np.int64]) -> Doubles:
        """A gradient by the objective's points as one by the problems' own; changed in place."""
        if self.means is not None and self.scales is not None:
            gradient[:, :, :-1] -= gradient[:, :, -1:] * self.means[problems][:, None]
            gradient[:, :, :-1] /= self.scales[problems][:, None]
        return gradient

    def evaluate(self, objective: SoftmaxObjective, points: Doubles, problems: NDArray[np.int64]) -> Sums:
        sums = objective(self.shared(points, problems), problems)
        self.back(sums.gradient, problems)
        return sums

    def keep_probabilities(
        self, objective: SoftmaxObjective, points: Doubles, problems: NDArray[np.int64]
    ) -> NDArray[np.floating] | None:
        return objective.keep_probabilities(self.shared(points, problems), problems)

    def curve(
        self,
        objective: SoftmaxObjective,
        points: Doubles,
        directions: Doubles,
        problems: NDArray[np.int64],
        kept: NDArray[np.floating] | None,
    ) -> Doubles:
        shared = self.shared(points, problems), self.shared(directions, problems)
        return self.back(objective.curve(*shared, problems, kept), problems)

    def hessian(self, objective: SoftmaxObjective, points: Doubles, penalties: Doubles) -> InverseHessian:
        everyone = np.arange(len(points))
        return inverse_hessian(objective, self.shared(points, everyone), float(penalties.mean()))
