"""Support vector machines: linear, with an RBF kernel, and with an approximated one; a task in, heads out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from heads.closed_form import decomposed
from heads.fitting import Fitted, Params, Task, Trial
from heads.kernel_heads import LandmarkHead, SupportVectorHead, rbf
from heads.predictors import ABSENT, Doubles, LinearHead, class_rows
from heads.standardization import Floats, Labels

EXACT_ROWS = 5000  # an RBF SVM on more rows than this is approximated
N_LANDMARKS = 1000
_MAX_ITER = 1000
_TOLERANCE = 2e-4  # of the largest component of the scaled gradient of the mean loss
_ACTIVE = 0.1  # share of rows taken to be inside the margin when scaling
_ROWS = 8192


Eigen = tuple[Doubles, Doubles]
Map = tuple[Floats, Doubles, Floats, Doubles]


def scatter(X: Floats) -> Eigen:
    """Eigenvalues (r,) and eigenvectors (M, r) of the scatter of X (N, M) about its mean: for `squared_hinge`."""
    return decomposed(X, X.mean(axis=0, dtype=np.float64)[None], np.zeros(len(X), np.int64))


def squared_hinge(
    X: Floats, codes: Labels, n_present: int, *, C: float, eigen: Eigen, start: Doubles | None = None
) -> tuple[Doubles, str]:
    """One-vs-rest linear SVMs of all classes at once: minimise |W|^2 / 2 + C * sum of max(0, 1 - y f)^2 by L-BFGS.

    X is (N, M) float32, codes (N,) are in 0..n_present-1, `eigen` is `scatter(X)`. Returns weights and, in the last
    column, biases (which are not penalised), float64 (n_present, M + 1), and a message that is empty when the solver
    converged. `start` warm-starts. This is LinearSVC's loss; liblinear takes minutes for one C on tens of thousands of
    rows. What makes L-BFGS fast is that it works in the eigenbasis of the scatter, where each direction is scaled by
    the curvature it would have if a fixed share of the rows were inside the margin.
    """
    from scipy.optimize import minimize

    n_samples = len(X)
    values, vectors = eigen
    columns = [1] if n_present == 2 else list(range(n_present))  # of two classes one is the other's negative
    signs = np.where(codes[:, None] == np.array(columns), np.float32(1), np.float32(-1))
    penalty = 1.0 / (C * n_samples)
    steps = 1.0 / np.sqrt(penalty + 2.0 * _ACTIVE * values / n_samples)
    bias_step = 1.0 / np.sqrt(2.0 * _ACTIVE)
    size = (len(columns), len(values) + 1)

    def plain(flat: Doubles) -> tuple[Doubles, Doubles]:
        U = flat.reshape(size)
        return (U[:, :-1] * steps) @ vectors.T, U[:, -1] * bias_step

    def objective(flat: Doubles) -> tuple[float, Doubles]:
        weight, bias = plain(flat)
        slack = X @ weight.T.astype(np.float32)
        slack += bias.astype(np.float32)
        slack *= signs
        np.subtract(1, slack, out=slack)
        np.maximum(slack, 0, out=slack)
        loss = 0.5 * penalty * np.sum(weight**2) + np.einsum("ij,ij->", slack, slack, dtype=np.float64) / n_samples
        slack *= signs
        gradient = np.empty(size)
        gradient[:, :-1] = (penalty * weight - (2.0 / n_samples) * (X.T @ slack).T) @ vectors * steps
        gradient[:, -1] = (-2.0 / n_samples) * slack.sum(axis=0, dtype=np.float64) * bias_step
        return float(loss), gradient.ravel()

    first = np.zeros(size)
    if start is not None:
        first[:, :-1] = start[columns, :-1] @ vectors / steps
        first[:, -1] = start[columns, -1] / bias_step
    options = {"maxiter": _MAX_ITER, "maxcor": 20, "gtol": _TOLERANCE, "ftol": 1e-9}
    result = minimize(objective, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    weight, bias = plain(result.x)
    found = np.concatenate([weight, bias[:, None]], axis=1)
    if n_present == 2:
        found = np.concatenate([-found, found])
    # where float32 sums leave the line search nothing to gain, a small gradient is as far as it goes
    converged = result.status == 0 or np.abs(result.jac).max() < 5 * _TOLERANCE
    message = "" if converged else f"L-BFGS stopped after {result.nit} iterations: {result.message}"
    return found, message


@dataclass(frozen=True, kw_only=True)
class LinearSVM:
    """Linear SVM with squared hinge loss, one against the rest, over a grid of C."""

    C: tuple[float, ...]
    natural_ends: dict[str, tuple[float, ...]] = field(default_factory=dict)
    stops_early = True

    def chains(self, task: Task, n_total: int) -> list[list[Params]]:
        return [[{"C": C} for C in self.C]]

    def search(self, chain: list[Params], task: Task, X_val: Floats, y_val: Labels) -> Iterator[Trial]:
        start, eigen = None, scatter(task.Z)
        for params in chain:
            fitted, start = self._fitted(params, task, eigen, start)
            yield Trial(params=params, fitted=fitted, scores=fitted.head.scores(X_val))

    def fit(self, params: Params, task: Task) -> Fitted:
        return self._fitted(params, task, scatter(task.Z), None)[0]

    def note(self, params: Params, task: Task) -> str:
        return ""

    def _fitted(self, params: Params, task: Task, eigen: Eigen, start: Doubles | None) -> tuple[Fitted, Doubles]:
        found, message = squared_hinge(task.Z, task.codes, len(task.present), C=params["C"], eigen=eigen, start=start)
        mean, scale = task.statistics
        weight, bias = class_rows(found[:, :-1], found[:, -1], task.present, task.n_classes)
        head = LinearHead(mean=mean, scale=scale, weight=weight, bias=bias, probabilistic=False)
        return Fitted(head=head, converged=not message, message=message), found


@dataclass(frozen=True, kw_only=True)
class RBFSVM:
    """SVM with the kernel exp(-gamma d^2) over grids of gamma (given times D, the number of features) and C.

    Up to EXACT_ROWS rows it is libsvm's exact one (scikit-learn's SVC, one against one). Above, the kernel is
    approximated by Nystroem's method (Williams and Seeger 2000) with N_LANDMARKS random training rows, and a linear SVM
    with squared hinge loss is fitted on top. The choice is made once, for the search and the refit alike.
    """

    gamma: tuple[float, ...]
    C: tuple[float, ...]
    natural_ends: dict[str, tuple[float, ...]] = field(default_factory=dict)
    stops_early = True

    def chains(self, task: Task, n_total: int) -> list[list[Params]]:
        kernel: Params = {"kernel": "exact"}
        if n_total > EXACT_ROWS:
            kernel = {"kernel": "nystroem", "n_landmarks": min(N_LANDMARKS, len(task.X))}
        n_features = task.X.shape[1]
        return [[{"C": C, "gamma": gamma / n_features, **kernel} for C in self.C] for gamma in self.gamma]

    def search(self, chain: list[Params], task: Task, X_val: Floats, y_val: Labels) -> Iterator[Trial]:
        if chain[0]["kernel"] == "nystroem":
            map_ = landmark_map(task, gamma=chain[0]["gamma"], n_landmarks=chain[0]["n_landmarks"])
            start, eigen = None, scatter(map_[2])
            for params in chain:
                fitted, start = self._landmark(params, task, map_, eigen, start)
                yield Trial(params=params, fitted=fitted, scores=fitted.head.scores(X_val))
        else:
            kernel = rbf(task.Z, task.Z, chain[0]["gamma"]).astype(np.float64)
            for params in chain:
                fitted = self._exact(params, task, kernel)
                yield Trial(params=params, fitted=fitted, scores=fitted.head.scores(X_val))

    def fit(self, params: Params, task: Task) -> Fitted:
        if params["kernel"] == "nystroem":
            map_ = landmark_map(task, gamma=params["gamma"], n_landmarks=params["n_landmarks"])
            return self._landmark(params, task, map_, scatter(map_[2]), None)[0]
        return self._exact(params, task, rbf(task.Z, task.Z, params["gamma"]).astype(np.float64))

    def note(self, params: Params, task: Task) -> str:
        if params["kernel"] == "exact":
            return ""
        return (
            f"more than {EXACT_ROWS:,} training rows, so the kernel is approximated (Nystroem, "
            f"{params['n_landmarks']:,} landmark rows) and a linear SVM is fitted on top"
        )

    def _exact(self, params: Params, task: Task, kernel: Doubles) -> Fitted:
        from sklearn.svm import SVC

        svc = SVC(C=params["C"], kernel="precomputed", cache_size=500).fit(kernel, task.codes)
        mean, scale = task.statistics
        sign = -1.0 if len(task.present) == 2 else 1.0  # scikit-learn turns the sign round for two classes
        head = SupportVectorHead(
            mean=mean,
            scale=scale,
            vectors=task.Z[svc.support_],
            dual_coef=sign * np.asarray(svc.dual_coef_, np.float64),
            intercept=sign * np.asarray(svc.intercept_, np.float64),
            counts=svc.n_support_.astype(np.int64),
            present=task.present,
            gamma=params["gamma"],
            n_classes=task.n_classes,
        )
        converged = int(svc.fit_status_) == 0
        return Fitted(head=head, converged=converged, message="" if converged else "libsvm did not converge")

    def _landmark(
        self, params: Params, task: Task, map_: Map, eigen: Eigen, start: Doubles | None
    ) -> tuple[Fitted, Doubles]:
        landmarks, normalization, features, center = map_
        found, message = squared_hinge(features, task.codes, len(task.present), C=params["C"], eigen=eigen, start=start)
        weight = np.zeros((task.n_classes, len(landmarks)))
        weight[task.present] = found[:, :-1] @ normalization.T
        bias = np.full(task.n_classes, ABSENT)
        bias[task.present] = found[:, -1] - found[:, :-1] @ center
        mean, scale = task.statistics
        head = LandmarkHead(
            mean=mean, scale=scale, landmarks=landmarks, weight=weight, bias=bias, gamma=params["gamma"]
        )
        return Fitted(head=head, converged=not message, message=message), found


def landmark_map(task: Task, *, gamma: float, n_landmarks: int) -> Map:
    """Random training rows (M, D), their Nystroem normalisation (M, r), the centred features (N, r) of the task's rows
    and what was subtracted to centre them (r,).

    Before centring, the features' inner products approximate the kernel. Directions with less than 1e-5 of the largest
    eigenvalue are left out: float32 kernel values do not resolve them.
    """
    chosen = np.random.default_rng(task.seed).choice(len(task.X), min(n_landmarks, len(task.X)), replace=False)
    landmarks = task.Z[np.sort(chosen)]
    values, vectors = np.linalg.eigh(rbf(landmarks, landmarks, gamma).astype(np.float64))
    kept = values > 1e-5 * values[-1]
    normalization = vectors[:, kept] / np.sqrt(values[kept])
    features = np.empty((len(task.X), normalization.shape[1]), np.float32)
    for i in range(0, len(task.X), _ROWS):
        features[i : i + _ROWS] = rbf(task.Z[i : i + _ROWS], landmarks, gamma).astype(np.float64) @ normalization
    center = features.mean(axis=0, dtype=np.float64)
    features -= center.astype(np.float32)
    return landmarks, normalization, features, center
