"""Minimise multinomial logistic problems for each penalty in turn, and bound how far each is above its minimum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.curvature import InverseHessian, inverse_hessian, worth
from heads.duality_gaps import SoftmaxDual
from heads.predictors import Doubles
from heads.softmax_objective import SoftmaxObjective, Sums
from heads.standardization import Labels

TOLERANCE = 1e-6
MAX_PASSES = 1000
_FACTOR = 100  # by which C grows at most from one start to the next, on the way to the first C
_LOOSE = 1e-2  # tolerance of solutions that are starts alone
_SETTLED = 20  # steps of conjugate gradients, above which the first Hessian is learned anew where that is cheap
_HARD = 50  # steps, above which it is always learned anew
_MOST = 80  # of them for one Newton step
_LOOSEST, _CLOSER = 0.25, 10.0  # share of the squared residual that a Newton step may leave, and that by its gap
_MARGIN = 3.0  # between a gap as the first Hessian has it, corrected as in the step before, and the true one
_LOOSENESS = 100  # what the duality gap may be, in tolerances: it overstates the gap, the more the larger C is
_CLOSER_AIM = 0.1  # of the estimate, where that is within the tolerance and the duality gap is not
_STEP_PASSES = 3  # at least, of a Newton step: probabilities, one product, one trial
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
        estimated_gap: (P,) how far the objective is above the minimum, relative to the objective: an estimate, of what
            the last Newton step was to gain or of what the next one would, no bound; at most the certified gap.
        certified_gap: (P,) an upper bound of it, the duality gap at the end, up to rounding (see `SoftmaxDual`).
        n_passes: passes over the rows, those of smaller C on the way to the first C included.
        messages: (P,) empty if the problem converged: its certified gap is at most `tol`, or its estimated gap is and
            its certified gap is at most 100 `tol`. Else what stopped it, and its certified gap.
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
    newton = _Newton(objective, _Standardisation(means, scales), max_passes=max_passes)
    smallest = 0.1 * objective.n_classes / float(objective.totals.min())
    before = min(smallest, Cs[0])
    while before * _FACTOR < Cs[0]:
        newton.minimise(before, tol=_LOOSE)
        before *= _FACTOR
    for C in Cs:
        yield newton.minimise(C, tol=tol)
        newton.n_passes = 0


class _Newton:
    """The problems' points, and what is known there."""

    def __init__(self, objective: SoftmaxObjective, view: _Standardisation, *, max_passes: int) -> None:
        self.objective, self.view, self.max_passes = objective, view, max_passes
        self.everyone = np.arange(len(objective.totals))
        self.points = np.zeros((len(self.everyone), objective.n_rows, objective.n_features + 1))
        first = view.evaluate(objective, self.points, self.everyone)
        self.losses, self.gradients = first.loss, first.gradient  # without penalties
        self.dual = view.dual(objective, self.gradients)
        self.ratios = np.full(len(self.everyone), np.inf)  # of gaps to what the first Hessian took them for
        self.n_passes = 2
        self.hessian: InverseHessian | None = None
        self.patience = min(max(_SETTLED, worth(objective)), _HARD)

    def minimise(self, C: float, *, tol: float) -> Minima:
        penalties = 1.0 / (C * self.objective.totals)
        gaps, bounds = np.full(len(self.everyone), np.inf), self._bounds(self.everyone, penalties)
        aims, reasons = np.full(len(self.everyone), tol), [""] * len(self.everyone)
        active, learned = np.flatnonzero(~(bounds <= tol)), False
        while len(active) and self.n_passes + _STEP_PASSES <= self.max_passes:
            fresh = self.hessian is None
            if self.hessian is None:
                self.hessian, learned = self.view.hessian(self.objective, self.points, penalties), True
            gradients = self.gradients[active].copy()
            gradients[:, :, :-1] += penalties[active, None, None] * self.points[active, :, :-1]
            turned = self.hessian.solve(-gradients, penalties[active])
            values = self._values(self.losses[active], self.points[active], penalties[active])
            near = -0.5 * (gradients * turned).sum(axis=(1, 2))  # gaps as the first Hessian has them: no pass
            near = np.maximum(near / np.maximum(np.abs(values), 1e-30), 1e-300)
            likely = _MARGIN * self.ratios[active] * near
            guessed = likely <= aims[active]
            gaps[active[guessed]] = likely[guessed]
            if not guessed.any():
                forcing = _forcing(gaps[active], aims[active])
                steps, n_inner = self._solve(active, -gradients, turned, penalties[active], forcing)
                slopes = (gradients * steps).sum(axis=(1, 2))
                gaps[active] = -0.5 * slopes / np.maximum(np.abs(values), 1e-30)
                self.ratios[active] = np.maximum(gaps[active] / near, 1.0)
                stuck = self._search(active, steps, slopes, values, penalties)
                if n_inner > self.patience:
                    self.hessian = None
                if stuck and not fresh:  # what was learned elsewhere may be what misleads
                    self.hessian, stuck = None, set()
                for i in stuck if self.n_passes < self.max_passes else ():
                    reasons[i] = "no step goes down any more"
            before, bounds[active] = bounds[active], self._bounds(active, penalties)
            doubtful = active[(gaps[active] <= aims[active]) & (bounds[active] > _LOOSENESS * tol)]
            if len(doubtful):
                bounds[doubtful] = self._closer_bounds(doubtful, penalties, _LOOSENESS * tol)
            going = active[~_converged(gaps[active], bounds[active], tol)]
            for i, bound in zip(active.tolist(), before.tolist(), strict=True):
                if i not in going or not gaps[i] <= aims[i]:
                    continue
                if not guessed.any() and aims[i] < tol and not bounds[i] < 0.5 * bound:
                    reasons[i] = "rounding hides what is left to gain"
                aims[i] = _CLOSER_AIM * max(gaps[i], 0.0)
                if not learned:  # the estimate is of a Hessian that another penalty or other points taught
                    self.hessian = None
            active = np.array([i for i in going.tolist() if not reasons[i]], np.int64)
        return self._minima(C, penalties, gaps, bounds, reasons, tol)

    def _minima(
        self, C: float, penalties: Doubles, gaps: Doubles, bounds: Doubles, reasons: list[str], tol: float
    ) -> Minima:
        converged = _converged(gaps, bounds, tol)
        gaps = np.where((gaps > 0) & (gaps <= bounds), gaps, bounds)  # rounding may leave an estimate of 0 or less
        messages = [
            f"{reason or f'stopped after {self.n_passes} passes over the rows'}: the objective is at most {bound:.1e} "
            f"(relative) above its minimum, {gap:.1e} by estimate; expected {_LOOSENESS * tol:.0e} and {tol:.0e}"
            for reason, gap, bound in zip(reasons, gaps, bounds, strict=True)
        ]
        return Minima(
            C=C,
            weights=self.points[:, :, :-1].copy(),
            intercepts=self.points[:, :, -1].copy(),
            explained=1 - self.losses / np.maximum(self.objective.null_losses, 1e-30),
            objective=self._values(self.losses, self.points, penalties),
            estimated_gap=gaps,
            certified_gap=bounds,
            n_passes=self.n_passes,
            messages=tuple(np.where(converged, "", messages).tolist()),
        )

    def _values(self, losses: Doubles, points: Doubles, penalties: Doubles) -> Doubles:
        return losses + 0.5 * penalties * (points[:, :, :-1] ** 2).sum(axis=(1, 2))

    def _solve(
        self, active: Labels, residuals: Doubles, turned: Doubles, penalties: Doubles, forcing: Doubles
    ) -> tuple[Doubles, int]:
        """Newton's steps to a share (n,) of the squared residual, all problems in step; how many products that took."""
        assert self.hessian is not None
        points = self.points[active]
        kept = self.view.keep_probabilities(self.objective, points, active)
        self.n_passes += kept is not None
        steps, directions = np.zeros_like(residuals), turned.copy()
        first = sizes = (residuals * turned).sum(axis=(1, 2))
        going = np.arange(len(active))
        n_inner = 0
        while len(going) and n_inner < _MOST and self.n_passes < self.max_passes - 1:
            n_inner += 1
            some = directions[going]
            rows = None if kept is None else kept if len(going) == len(active) else kept[:, going]
            bent = self.view.curve(self.objective, points[going], some, active[going], rows)
            bent[:, :, :-1] += penalties[going, None, None] * some[:, :, :-1]
            self.n_passes += 1
            curvatures = (some * bent).sum(axis=(1, 2))
            lengths = (sizes[going] / np.where(curvatures == 0, 1.0, curvatures))[:, None, None]
            steps[going] += lengths * some
            residuals[going] -= lengths * bent
            turned[going] = self.hessian.solve(residuals[going], penalties[going])
            before, sizes = sizes, (residuals * turned).sum(axis=(1, 2))
            directions = turned + (sizes / np.where(before == 0, 1.0, before))[:, None, None] * directions
            going = going[sizes[going] > forcing[going] * first[going]]
        return steps, n_inner

    def _search(self, active: Labels, steps: Doubles, slopes: Doubles, values: Doubles, penalties: Doubles) -> set[int]:
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
            if not len(left) or self.n_passes >= self.max_passes:
                break
        return set(active[left].tolist())

    def _bounds(self, problems: Labels, penalties: Doubles) -> Doubles:
        """The duality gaps (n,) relative to the objectives; no pass."""
        at = self.points[problems], self.losses[problems], self.gradients[problems], penalties[problems], problems
        return self.dual.gaps(*at)

    def _closer_bounds(self, problems: Labels, penalties: Doubles, enough: float) -> Doubles:
        """Closer ones, by some passes where those can make them `enough`."""
        at = self.points[problems], self.losses[problems], self.gradients[problems], penalties[problems], problems

        def curve(directions: Doubles) -> Doubles:
            self.n_passes += 1
            return self.view.curve(self.objective, at[0], directions, problems, None)

        return self.dual.closer_gaps(*at, curve=curve, enough=enough, most=self.max_passes - self.n_passes)


def _converged(gaps: Doubles, bounds: Doubles, tol: float) -> NDArray[np.bool_]:
    """Whether the gaps that were estimated and bounded are small enough; NaN is not, nor a bound far below 0."""
    return (bounds >= -tol) & ((bounds <= tol) | ((gaps <= tol) & (bounds <= _LOOSENESS * tol)))


def _forcing(gaps: Doubles, aims: Doubles) -> Doubles:
    """How far each system is solved: loosely far from the minimum, closely near it, no closer than its aim needs.

    The squared residual's share is about that of the gap which a step leaves (Eisenstat and Walker 1996).
    """
    return np.minimum(_LOOSEST, np.maximum(_CLOSER * gaps, 0.1 * aims / np.maximum(gaps, 1e-30)))


class _Standardisation:
    """Turns points for each problem's own standardised features into points for the objective's, and gradients back."""

    def __init__(self, means: Doubles | None, scales: Doubles | None) -> None:
        self.means, self.scales = means, scales

    def shared(self, points: Doubles, problems: Labels) -> Doubles:
        """The problems' points as points of the objective's features."""
        if self.means is None or self.scales is None:
            return points
        shared = np.empty_like(points)
        shared[:, :, :-1] = points[:, :, :-1] / self.scales[problems][:, None]
        shared[:, :, -1] = points[:, :, -1] - (shared[:, :, :-1] * self.means[problems][:, None]).sum(axis=2)
        return shared

    def back(self, gradient: Doubles, problems: Labels) -> Doubles:
        """A gradient by the objective's points as one by the problems' own; changed in place."""
        if self.means is not None and self.scales is not None:
            gradient[:, :, :-1] -= gradient[:, :, -1:] * self.means[problems][:, None]
            gradient[:, :, :-1] /= self.scales[problems][:, None]
        return gradient

    def evaluate(self, objective: SoftmaxObjective, points: Doubles, problems: Labels) -> Sums:
        sums = objective(self.shared(points, problems), problems)
        self.back(sums.gradient, problems)
        return sums

    def keep_probabilities(
        self, objective: SoftmaxObjective, points: Doubles, problems: Labels
    ) -> NDArray[np.floating] | None:
        return objective.keep_probabilities(self.shared(points, problems), problems)

    def curve(
        self,
        objective: SoftmaxObjective,
        points: Doubles,
        directions: Doubles,
        problems: Labels,
        kept: NDArray[np.floating] | None,
    ) -> Doubles:
        points, directions = self.shared(points, problems), self.shared(directions, problems)
        return self.back(objective.curve(points, directions, problems, kept), problems)

    def dual(self, objective: SoftmaxObjective, gradients: Doubles) -> SoftmaxDual:
        """What bounds gaps, from the gradients where all points are 0, by one pass."""
        unit = np.zeros_like(gradients)
        unit[:, 0, -1] = 1.0
        bent = self.curve(objective, 0 * unit, unit, np.arange(len(unit)), None)[:, 0]
        return SoftmaxDual.at_zero(gradients, bent[:, :-1] / bent[:, -1:], objective.class_shares)

    def hessian(self, objective: SoftmaxObjective, points: Doubles, penalties: Doubles) -> InverseHessian:
        return inverse_hessian(objective, self.shared(points, np.arange(len(points))), float(penalties.mean()))
