"""Logistic regression as estimators: features and labels in; coefficients for every C of a path, or for one, out."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from heads.fitting import check_weights
from heads.predictors import Doubles
from heads.softmax_objective import SMALL, SoftmaxObjective
from heads.softmax_path import MAX_PASSES, TOLERANCE, softmax_path


class LogisticPath(BaseEstimator):  # type: ignore[misc]
    """L2-penalised multinomial logistic regression for every C of a path.

    Minimises C * sum of losses + |W|^2 / 2, scikit-learn's objective, for each C, warm-started along the path
    (Friedman, Hastie and Tibshirani 2010, J. Stat. Softw. 33). Products are in float32, of small X in float64.

    Parameters:
        Cs: inverse penalties, more than 0; solved from the smallest on.
        class_weight: None, "balanced", or a dict of weights by class.
        tol: how far above its minimum the objective may be by estimate, relative to it; of small X at most 1e-12. A
            fit has converged if its certified gap is at most `tol`, or if its estimated gap is and the certified one is
            at most 100 `tol`: the certified gap overstates, the more the larger C is.
        max_iter: most passes over the rows for each C; two come before the first step, each step takes three or more.
        device: "cpu", or what torch calls a GPU.

    Attributes:
        classes_: (n_classes,).
        coefs_: (n_Cs, n_classes, n_features) float64, (n_Cs, 1, n_features) for two classes.
        intercepts_: (n_Cs, n_classes) float64, (n_Cs, 1) for two.
        objectives_: (n_Cs,) mean loss plus penalty / (C n_samples).
        gaps_: (n_Cs,) how far each objective is above its minimum, relative to it: an estimate, no bound.
        certified_gaps_: (n_Cs,) upper bounds of the same, duality gaps, up to the rounding of sums over the rows.
        n_iter_: (n_Cs,) passes over the rows.
        n_features_in_: of X.
    """

    def __init__(
        self,
        *,
        Cs: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0),
        class_weight: Any = None,
        tol: float = TOLERANCE,
        max_iter: int = MAX_PASSES,
        device: str = "cpu",
    ) -> None:
        self.Cs, self.class_weight, self.tol, self.max_iter, self.device = Cs, class_weight, tol, max_iter, device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LogisticPath:
        """Fit to X (n_samples, n_features), y (n_samples,) and, where given, what each row counts, 0 or more.

        Raises ValueError for what scikit-learn refuses, and for a class of weight 0. Warns (ConvergenceWarning) for
        each C that did not converge, with the bound of how far from its minimum it is.
        """
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        if not len(self.Cs) or min(self.Cs) <= 0:
            raise ValueError(f"Cs is {self.Cs!r}, expected numbers above 0")
        _fit_path(self, X, y, sample_weight, tuple(self.Cs))
        return self


class LogisticClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The path's solver for one C: an ordinary estimator, with scikit-learn's LogisticRegression's objective.

    Parameters are those of `LogisticPath`. Attributes: classes_, coef_ (n_classes, n_features) and intercept_
    (n_classes,), one row for two classes; gap_, certified_gap_, n_iter_, n_features_in_.
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        class_weight: Any = None,
        tol: float = TOLERANCE,
        max_iter: int = MAX_PASSES,
        device: str = "cpu",
    ) -> None:
        self.C, self.class_weight, self.tol, self.max_iter, self.device = C, class_weight, tol, max_iter, device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LogisticClassifier:
        """As `LogisticPath.fit`."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        if not self.C > 0:
            raise ValueError(f"C is {self.C!r}, expected a number above 0")
        path = LogisticPath(class_weight=self.class_weight, tol=self.tol, max_iter=self.max_iter, device=self.device)
        _fit_path(path, X, y, sample_weight, (self.C,))
        self.classes_, self.coef_, self.intercept_ = path.classes_, path.coefs_[0], path.intercepts_[0]
        self.gap_, self.certified_gap_ = float(path.gaps_[0]), float(path.certified_gaps_[0])
        self.n_iter_ = int(path.n_iter_[0])
        return self

    def decision_function(self, X: Any) -> Doubles:
        """Scores (n_samples, n_classes), or (n_samples,) of the second class of two."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_log_proba(self, X: Any) -> Doubles:
        """Log-probabilities (n_samples, n_classes)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        return special.log_softmax(scores, axis=1)

    def predict_proba(self, X: Any) -> Doubles:
        """Probabilities (n_samples, n_classes)."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> NDArray[Any]:
        """The likeliest class of each row (n_samples,)."""
        check_is_fitted(self)
        return self.classes_[self.predict_log_proba(X).argmax(axis=1)]


def _fit_path(path: LogisticPath, X: NDArray[Any], y: NDArray[Any], sample_weight: Any, Cs: tuple[float, ...]) -> None:
    """Set the learned attributes of a path."""
    path.classes_, codes = np.unique(y, return_inverse=True)
    n_classes = len(path.classes_)
    if n_classes < 2:
        raise ValueError(f"y holds one class, {path.classes_[0]!r}; expected at least two classes")
    weights = np.array(_check_sample_weight(sample_weight, X, dtype=np.float64))
    if path.class_weight is not None:
        weights *= compute_class_weight(path.class_weight, classes=path.classes_, y=y)[codes]
    check_weights(weights, codes, path.classes_)
    center = np.average(X, axis=0, weights=weights)  # the intercepts absorb it, and float32 needs it
    in_double = X.size <= SMALL and not path.device.startswith("mps")  # which has no float64
    objective = SoftmaxObjective(
        X=(X - center).astype(np.float64 if in_double else np.float32),
        codes=codes.astype(np.int64),
        weights=weights[:, None],
        n_classes=n_classes,
        device=path.device,
    )
    order = np.argsort(Cs, kind="stable")
    tol = min(path.tol, objective.finest) if in_double else path.tol
    found = list(softmax_path(objective, [Cs[i] for i in order], tol=tol, max_passes=path.max_iter))
    back = [found[place] for place in np.argsort(order, kind="stable")]
    path.coefs_ = np.stack([minima.weights[0] for minima in back])
    path.intercepts_ = np.stack([minima.intercepts[0] for minima in back]) - path.coefs_ @ center
    path.objectives_ = np.array([minima.objective[0] for minima in back])
    path.gaps_ = np.array([minima.estimated_gap[0] for minima in back])
    path.certified_gaps_ = np.array([minima.certified_gap[0] for minima in back])
    path.n_iter_ = np.array([minima.n_passes for minima in back])
    for minima in back:
        if minima.messages[0]:
            warnings.warn(f"C = {minima.C:g}: {minima.messages[0]}", ConvergenceWarning, stacklevel=3)
