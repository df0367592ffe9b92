"""Features and labels in, a head of the project's own solvers out: what its scikit-learn estimators share."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import special
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from heads.classifiers import CLASSIFIERS
from heads.features import ArrayFeatures
from heads.fitting import Fitted, Params, Task, check_weights
from heads.predictors import Doubles, Head, LinearHead
from heads.standardization import Floats

_ROWS = 256  # scored at once, always so many: what a row scores does not depend on its neighbours


class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of ``bin/fit-head``, ``CLF`` there, for one choice of its parameters.

    Features are read as float32 and standardised by the training rows' mean and deviation. Learns `classes_`
    (n_classes,), `head_`, `n_features_in_` and, of features with names, `feature_names_in_`.
    """

    CLF: ClassVar[str]

    @abstractmethod
    def _chosen(self, n_samples: int, n_features: int) -> Params:
        """The parameters as the solver takes them. Raises ValueError where one makes no sense."""

    def fit(self, X: Any, y: Any) -> HeadClassifier:
        """Fit to X (n_samples, n_features) and y (n_samples,).

        Raises ValueError for what scikit-learn refuses, and for a class of weight 0 or less. Warns (ConvergenceWarning)
        if the solver did not converge.
        """
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class, {self.classes_[0]!r}; expected at least two classes")
        weights, class_weight = None, getattr(self, "class_weight", None)
        if class_weight is not None:
            weights = compute_class_weight(class_weight, classes=self.classes_, y=y)[codes]
            check_weights(weights, codes, self.classes_)
        task = Task(
            X=ArrayFeatures(X),
            y=codes.astype(np.int64),
            n_classes=len(self.classes_),
            weights=weights,
            seed=getattr(self, "random_state", 0),
            device=getattr(self, "device", "cpu"),
        )
        fitted = self._fitted(self._chosen(*X.shape), task)
        if not fitted.converged:
            warnings.warn(fitted.message, ConvergenceWarning, stacklevel=2)
        self._keep(fitted.head)
        return self

    def decision_function(self, X: Any) -> Doubles:
        """Scores (n_samples, n_classes), or (n_samples,) of the second of two classes less that of the first."""
        scores = self._scores(self._checked(X))
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> NDArray[Any]:
        """The class of the highest score of each row (n_samples,)."""
        scores = self._scores(self._checked(X))
        return self.classes_[scores.argmax(axis=1)]

    def _fitted(self, params: Params, task: Task) -> Fitted:
        return CLASSIFIERS[self.CLF].fit(params, task)

    def _keep(self, head: Head) -> None:
        self.head_ = head

    def _checked(self, X: Any) -> Floats:
        check_is_fitted(self)
        return validate_data(self, X, reset=False, dtype=np.float32)

    def _scores(self, X: Floats) -> Doubles:
        """(n_samples, n_classes), in blocks of one shape."""
        padded = np.zeros((-(-len(X) // _ROWS) * _ROWS, X.shape[1]), np.float32)
        padded[: len(X)] = X
        blocks = [self.head_.scores(padded[start : start + _ROWS]) for start in range(0, len(padded), _ROWS)]
        return np.concatenate(blocks)[: len(X)].astype(np.float64)


class LinearHeadClassifier(HeadClassifier):
    """One whose head is linear: `coef_` (n_classes, n_features) and `intercept_` (n_classes,) of X as it is handed in.

    Both are float64 and have one row for two classes: that of the second less that of the first.
    """

    def _keep(self, head: Head) -> None:
        assert isinstance(head, LinearHead)
        self.head_ = head
        coef = head.weight.astype(np.float64) / head.scale
        intercept = head.bias - coef @ head.mean
        is_binary = len(self.classes_) == 2
        self.coef_ = coef[1:] - coef[:1] if is_binary else coef
        self.intercept_ = intercept[1:] - intercept[:1] if is_binary else intercept

    def _scores(self, X: Floats) -> Doubles:
        scores = X @ self.coef_.T + self.intercept_
        return np.concatenate([0 * scores, scores], axis=1) if len(self.classes_) == 2 else scores


class Probabilities:
    """What estimators have whose head is probabilistic."""

    def predict_log_proba(self, X: Any) -> Doubles:
        """Log-probabilities (n_samples, n_classes)."""
        return special.log_softmax(self._scores(self._checked(X)), axis=1)  # type: ignore[attr-defined]

    def predict_proba(self, X: Any) -> Doubles:
        """Probabilities (n_samples, n_classes)."""
        return special.softmax(self._scores(self._checked(X)), axis=1)  # type: ignore[attr-defined]


def positive(**given: float) -> None:
    """Raises ValueError unless the number is above 0."""
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"{name} is {value!r}; expected a number above 0")
