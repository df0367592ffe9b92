"""Support vector machines: linear, with an RBF kernel, and with an approximated one; rows in, heads out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from heads.fitting import Fitted, Fold, Folds, Params, Task, Trial, averaged_scores, fold_by_fold
from heads.grids import continued
from heads.kernel_heads import LandmarkHead, SupportVectorHead, rbf
from heads.predictors import ABSENT, Doubles, LinearHead, Scores, class_rows
from heads.spectra import Spectrum, spectrum_about_mean
from heads.squared_hinge import squared_hinge
from heads.standardization import Floats

EXACT_ROWS = 5000  # an RBF SVM on more rows than this is approximated
N_LANDMARKS = 1000
_ROWS = 8192

Map = tuple[Floats, Doubles, Floats, Doubles]


def row_counts(task: Task) -> Doubles | None:
    """What each row counts in a sum that a penalty is weighed against, (n_samples,): a view 1 / n_views, or None: 1."""
    if task.weights is None:
        return None if task.n_views == 1 else np.full(len(task.y), 1.0 / task.n_views)
    return task.weights / task.n_views


@dataclass(frozen=True, kw_only=True)
class LinearSVM:
    """Linear SVM with squared hinge loss, one against the rest, over a grid of C.

    With row weights each row's loss is multiplied by its own, whatever its class is set against: LinearSVC's
    `sample_weight`, and of two classes its `class_weight`.
    """

    C: tuple[float, ...]
    natural_ends: dict[str, tuple[float, ...]] = field(default_factory=dict)
    stops_early = True

    def chains(self, n_train: int, n_features: int, n_total: int) -> list[list[Params]]:
        return [[{"C": C} for C in self.C]]

    def search(self, chain: list[Params], folds: Folds) -> Iterator[Trial]:
        return fold_by_fold(self._search, chain, folds)

    def fit(self, params: Params, task: Task) -> Fitted:
        return self._fitted(params, task, spectrum_about_mean(task.Z, row_counts(task)), None)[0]

    def note(self, params: Params, task: Task) -> str:
        return ""

    def beyond(self, best: Params, name: str, up: bool) -> list[Params]:
        return continued(self.C, best, name, up=up) if name == "C" else []

    def _search(self, chain: list[Params], fold: Fold) -> Iterator[tuple[Fitted, Scores]]:
        start, eigen = None, spectrum_about_mean(fold.task.Z, row_counts(fold.task))
        for params in chain:
            fitted, start = self._fitted(params, fold.task, eigen, start)
            yield fitted, averaged_scores(fitted.head, fold.X_val)

    def _fitted(self, params: Params, task: Task, eigen: Spectrum, start: Doubles | None) -> tuple[Fitted, Doubles]:
        found, message = squared_hinge(
            task.Z,
            task.codes,
            len(task.present),
            C=params["C"],
            eigen=eigen,
            weights=row_counts(task),
            start=start,
        )
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

    def chains(self, n_train: int, n_features: int, n_total: int) -> list[list[Params]]:
        kernel: Params = {"kernel": "exact"}
        if n_total > EXACT_ROWS:
            kernel = {"kernel": "nystroem", "n_landmarks": min(N_LANDMARKS, n_train)}
        return [[{"C": C, "gamma": gamma / n_features, **kernel} for C in self.C] for gamma in self.gamma]

    def search(self, chain: list[Params], folds: Folds) -> Iterator[Trial]:
        # views are rows as well, and chains were made of the number of images
        if chain[0]["kernel"] == "exact" and folds.X.n_views > 1 and len(folds.y) * folds.X.n_views > EXACT_ROWS:
            n_train = min(len(train) for train in folds.train) * folds.X.n_views
            chain = [p | {"kernel": "nystroem", "n_landmarks": min(N_LANDMARKS, n_train)} for p in chain]
        return fold_by_fold(self._search, chain, folds)

    def fit(self, params: Params, task: Task) -> Fitted:
        if params["kernel"] == "nystroem":
            map_ = landmark_map(task, gamma=params["gamma"], n_landmarks=params["n_landmarks"])
            return self._landmark(params, task, map_, spectrum_about_mean(map_[2], row_counts(task)), None)[0]
        return self._exact(params, task, rbf(task.Z, task.Z, params["gamma"]).astype(np.float64))

    def note(self, params: Params, task: Task) -> str:
        if params["kernel"] == "exact":
            return ""
        return (
            f"more than {EXACT_ROWS:,} training rows, so the kernel is approximated (Nystroem, "
            f"{params['n_landmarks']:,} landmark rows) and a linear SVM is fitted on top"
        )

    def beyond(self, best: Params, name: str, up: bool) -> list[Params]:
        grid = {"C": self.C, "gamma": self.gamma}.get(name)
        return continued(grid, best, name, up=up) if grid else []

    def _search(self, chain: list[Params], fold: Fold) -> Iterator[tuple[Fitted, Scores]]:
        task, gamma = fold.task, chain[0]["gamma"]
        if chain[0]["kernel"] == "nystroem":
            map_ = landmark_map(task, gamma=gamma, n_landmarks=chain[0]["n_landmarks"])
            start, eigen = None, spectrum_about_mean(map_[2], row_counts(task))
            for params in chain:
                fitted, start = self._landmark(params, task, map_, eigen, start)
                yield fitted, averaged_scores(fitted.head, fold.X_val)
        else:
            kernel = rbf(task.Z, task.Z, gamma).astype(np.float64)
            for params in chain:
                fitted = self._exact(params, task, kernel)
                yield fitted, averaged_scores(fitted.head, fold.X_val)

    def _exact(self, params: Params, task: Task, kernel: Doubles) -> Fitted:
        from sklearn.svm import SVC

        svc = SVC(C=params["C"], kernel="precomputed", cache_size=500)
        svc.fit(kernel, task.codes, sample_weight=row_counts(task))
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
        self, params: Params, task: Task, map_: Map, eigen: Spectrum, start: Doubles | None
    ) -> tuple[Fitted, Doubles]:
        landmarks, normalization, features, center = map_
        found, message = squared_hinge(
            features,
            task.codes,
            len(task.present),
            C=params["C"],
            eigen=eigen,
            weights=row_counts(task),
            start=start,
        )
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
