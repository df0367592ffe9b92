"""What Newton's systems are preconditioned with: nearly the inverse Hessian, and rows drawn in proportion to weight."""

from __future__ import annotations

import numpy as np
import pytest

from heads import curvature
from heads.curvature import BlockHessian, DenseBlock, KroneckerHessian, ThinBlock, inverse_hessian, spread_rows
from heads.softmax_objective import SoftmaxObjective

PENALTY = 1e-3


def problem(n_rows: int, n_features: int, n_classes: int) -> tuple[SoftmaxObjective, np.ndarray]:
    """Rows and a point where some are certain and some are not."""
    rng = np.random.default_rng(0)
    y = np.arange(n_rows) % n_classes
    X = rng.standard_normal((n_rows, n_features)) + rng.standard_normal((n_classes, n_features))[y]
    objective = SoftmaxObjective(X=X, codes=y, weights=np.ones((n_rows, 1)), n_classes=n_classes)
    points = rng.standard_normal((1, objective.n_rows, n_features + 1)) / np.sqrt(n_features)
    return objective, points


def hessian_times(objective: SoftmaxObjective, points: np.ndarray, direction: np.ndarray) -> np.ndarray:
    bent = objective.curve(points, direction[None], np.array([0]), None)[0]
    bent[:, :-1] += PENALTY * direction[:, :-1]
    return bent


@pytest.mark.parametrize(("n_rows", "n_features", "kind"), [(600, 20, DenseBlock), (12, 60, ThinBlock)])
def test_of_two_classes_it_is_the_inverse(n_rows: int, n_features: int, kind: type) -> None:
    """One row of weights has no other class to be coupled to."""
    objective, points = problem(n_rows, n_features, 2)
    inverse = inverse_hessian(objective, points, PENALTY)
    assert isinstance(inverse, BlockHessian)
    assert isinstance(inverse.blocks[0], kind)
    gradient = np.random.default_rng(1).standard_normal((1, n_features + 1))
    again = hessian_times(objective, points, inverse.solve(gradient[None], np.array([PENALTY]))[0])
    assert np.linalg.norm(again - gradient) < 0.01 * np.linalg.norm(gradient)  # 0.001 of the intercept's is added


@pytest.mark.parametrize("shape", [(600, 20, 5), (25, 40, 5)])
def test_the_condition_number_falls(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the Hessian after it, on directions that sum to nothing over the classes, beside the Hessian's own."""
    objective, points = problem(*shape)
    n_features, n_classes = shape[1:]
    size = n_classes * (n_features + 1)

    def centred(direction: np.ndarray) -> np.ndarray:
        return direction - direction.mean(axis=0)

    def condition(inverse: curvature.InverseHessian | None) -> float:
        columns = []
        for unit in np.eye(size):
            bent = centred(hessian_times(objective, points, centred(unit.reshape(n_classes, -1))))
            columns.append(
                (bent if inverse is None else centred(inverse.solve(bent[None], np.array([PENALTY]))[0])).ravel()
            )
        values = np.sort(np.abs(np.linalg.eigvals(np.array(columns))))[n_features + 1 :]
        return float(values[-1] / values[0])

    alone, blocks = condition(None), inverse_hessian(objective, points, PENALTY)
    monkeypatch.setattr(curvature, "BLOCK_BYTES", 0)
    kronecker = inverse_hessian(objective, points, PENALTY)
    assert isinstance(blocks, BlockHessian)
    assert isinstance(kronecker, KroneckerHessian)
    assert condition(blocks) < alone / 5
    assert condition(kronecker) < alone / 2


def test_rows_are_drawn_in_proportion_to_weight() -> None:
    rng = np.random.default_rng(0)
    weights = rng.random(5000) ** 12
    rows, inverse_chances = spread_rows(weights, 500)
    assert abs(len(rows) - 500) <= 1
    assert (np.diff(rows) > 0).all()
    assert (inverse_chances >= 1).all()
    heaviest = np.argsort(weights)[-50:]
    assert set(heaviest) <= set(rows)
    assert (inverse_chances[np.isin(rows, heaviest)] == 1).all()
    assert abs((weights[rows] * inverse_chances).sum() / weights.sum() - 1) < 0.01
    values = rng.standard_normal(5000) + 3  # whatever else is summed comes out about right
    estimate = (values[rows] * weights[rows] * inverse_chances).sum()
    assert abs(estimate / (values * weights).sum() - 1) < 0.05


@pytest.mark.parametrize(("weights", "n"), [([1.0, 0.0, 2.0], 3), ([1.0, 0.0, 2.0, 0.0], 2), ([0.0, 0.0], 1)])
def test_rows_without_weight_are_not_drawn(weights: list[float], n: int) -> None:
    rows, inverse_chances = spread_rows(np.array(weights), n)
    np.testing.assert_array_equal(rows, np.flatnonzero(weights))
    np.testing.assert_array_equal(inverse_chances, 1)
