"""The nine classifiers of `--clf`, each with its grid: a name in, and what can search and fit it out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from heads.closed_form import ClosedForm, centroid_solver, lda_solver, ridge_solver
from heads.fitting import Classifier, Fitted, Params, Task, Trial
from heads.linear_probe import Member, Trained, train_members
from heads.margins import RBFSVM, LinearSVM
from heads.neighbors import NeighborHead, neighbor_votes, normalized
from heads.predictors import Head, LinearHead, MLPHead, class_rows
from heads.standardization import Floats, Labels, standardized


@dataclass(frozen=True, kw_only=True)
class LogReg:
    """Multinomial logistic regression with an L2 penalty (scikit-learn, L-BFGS), warm-started along the grid of C."""

    C: tuple[float, ...]
    max_iter: int = 1000
    natural_ends: dict[str, tuple[float, ...]] = field(default_factory=dict)
    stops_early = True

    def chains(self, task: Task, n_total: int) -> list[list[Params]]:
        return [[{"C": C} for C in self.C]]

    def search(self, chain: list[Params], task: Task, X_val: Floats, y_val: Labels) -> Iterator[Trial]:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(max_iter=self.max_iter, warm_start=True)
        for params in chain:
            fitted = self._fitted(model.set_params(C=params["C"]), task)
            yield Trial(params=params, fitted=fitted, scores=fitted.head.scores(X_val))

    def fit(self, params: Params, task: Task) -> Fitted:
        from sklearn.linear_model import LogisticRegression

        return self._fitted(LogisticRegression(C=params["C"], max_iter=self.max_iter), task)

    def note(self, params: Params, task: Task) -> str:
        return ""

    def _fitted(self, model: object, task: Task) -> Fitted:
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(task.Z, task.codes)  # type: ignore[attr-defined]
        message = ""
        for warning in caught:
            if issubclass(warning.category, ConvergenceWarning):
                message = str(warning.message).splitlines()[0]
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        coef, intercept = model.coef_, model.intercept_  # type: ignore[attr-defined]
        if len(coef) == 1:  # two classes: softmax of (0, z) is the sigmoid of z
            coef, intercept = np.stack([0 * coef[0], coef[0]]), np.array([0.0, intercept[0]])
        weight, bias = class_rows(coef, intercept, task.present, task.n_classes)
        mean, scale = task.statistics
        head = LinearHead(mean=mean, scale=scale, weight=weight, bias=bias, probabilistic=True)
        return Fitted(head=head, converged=not message, message=message)


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """k nearest neighbours by cosine similarity; one search of the most neighbours serves every candidate."""

    k: tuple[int, ...]
    temperature: tuple[float, ...]
    natural_ends: dict[str, tuple[float, ...]] = field(
        default_factory=lambda: {"k": (1,), "temperature": (1.0,)}
    )  # votes all but equal
    stops_early = False

    def chains(self, task: Task, n_total: int) -> list[list[Params]]:
        ks = [k for k in self.k if k <= len(task.X)]
        return [[{"k": k, "temperature": t} for k in ks for t in self.temperature]]

    def search(self, chain: list[Params], task: Task, X_val: Floats, y_val: Labels) -> Iterator[Trial]:
        bank = normalized(task.X)
        widest = self._head(bank, task, max(chain, key=lambda p: p["k"]))
        similarities, labels = widest.neighbors(X_val, widest.k)
        for params in chain:
            k, t = params["k"], params["temperature"]
            scores = neighbor_votes(similarities[:, :k], labels[:, :k], n_classes=task.n_classes, temperature=t)
            yield Trial(params=params, fitted=Fitted(head=self._head(bank, task, params)), scores=scores)

    def fit(self, params: Params, task: Task) -> Fitted:
        return Fitted(head=self._head(normalized(task.X), task, params))

    def note(self, params: Params, task: Task) -> str:
        return ""

    def _head(self, bank: Floats, task: Task, params: Params) -> NeighborHead:
        return NeighborHead(bank=bank, labels=task.y.astype(np.int64), n_classes=task.n_classes, **params)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A linear or one-hidden-layer classifier trained by torch, all members of the grid side by side."""

    members: tuple[Member, ...]
    epochs: int
    min_steps: int = 1000  # small sets get more epochs, up to 100
    natural_ends: dict[str, tuple[float, ...]] = field(default_factory=lambda: {"weight_decay": (0.0,)})
    stops_early = False

    def chains(self, task: Task, n_total: int) -> list[list[Params]]:
        batch_size = 256
        while batch_size > 16 and len(task.X) < 20 * batch_size:
            batch_size //= 2
        steps = -(-len(task.X) // batch_size)
        epochs = max(self.epochs, min(100, -(-self.min_steps // steps)))
        shared = {"batch_size": batch_size, "schedule_epochs": epochs}
        return [[{k: v for k, v in vars(m).items() if v is not None} | shared for m in self.members]]

    def search(self, chain: list[Params], task: Task, X_val: Floats, y_val: Labels) -> Iterator[Trial]:
        known = np.isin(y_val, task.present)  # a class without training rows says nothing about the epochs
        watched = standardized(X_val[known], *task.statistics) if known.any() else None
        trained = train_members(
            task.Z,
            task.codes,
            [_member(params) for params in chain],
            n_classes=len(task.present),
            schedule_epochs=chain[0]["schedule_epochs"],
            batch_size=chain[0]["batch_size"],
            X_val=watched,
            y_val=np.searchsorted(task.present, y_val[known]).astype(np.int64) if known.any() else None,
            seed=task.seed,
            device=task.device,
        )
        for params, member in zip(chain, trained, strict=True):
            fitted = self._fitted(member, task)
            yield Trial(params={**params, "epochs": member.epoch}, fitted=fitted, scores=fitted.head.scores(X_val))

    def fit(self, params: Params, task: Task) -> Fitted:
        (trained,) = train_members(
            task.Z,
            task.codes,
            [_member(params)],
            n_classes=len(task.present),
            schedule_epochs=params["schedule_epochs"],
            batch_size=params["batch_size"],
            epochs=params["epochs"],
            seed=task.seed,
            device=task.device,
            phase="refit",
        )
        return self._fitted(trained, task)

    def note(self, params: Params, task: Task) -> str:
        return ""

    def _fitted(self, trained: Trained, task: Task) -> Fitted:
        mean, scale = task.statistics
        w = trained.weights
        weight, bias = class_rows(w["weight"], w["bias"], task.present, task.n_classes)
        head: Head
        if "hidden_weight" in w:
            hidden, offset = w["hidden_weight"], w["hidden_bias"]
            head = MLPHead(mean=mean, scale=scale, hidden_weight=hidden, hidden_bias=offset, weight=weight, bias=bias)
        else:
            head = LinearHead(mean=mean, scale=scale, weight=weight, bias=bias, probabilistic=True)
        return Fitted(
            head=head,
            converged=trained.finite,
            message="" if trained.finite else "the training diverged: its loss is not finite",
            history=trained.history,
            epoch_seconds=trained.epoch_seconds,
        )


def _member(params: Params) -> Member:
    return Member(**{k: params[k] for k in ("optimizer", "lr", "weight_decay", "hidden") if k in params})


def _decades(first: int, last: int, per_decade: int = 1) -> tuple[float, ...]:
    """Powers of ten from 10^first to 10^last, both included, to two digits."""
    n = abs(last - first) * per_decade + 1
    return tuple(float(f"{10.0**e:.1e}") for e in np.linspace(first, last, n))


def _members(optimizer: str, lrs: list[float], decays: list[float], hidden: int | None = None) -> tuple[Member, ...]:
    return tuple(
        Member(optimizer=optimizer, lr=lr, weight_decay=decay, hidden=hidden) for decay in decays for lr in lrs
    )


CLASSIFIERS: dict[str, Classifier] = {
    "logreg": LogReg(C=_decades(-5, 2, 2)),
    "linear": Probe(
        members=_members("adamw", [1e-4, 1e-3, 1e-2, 1e-1], [1.0, 0.0]) + _members("sgd", [1e-4, 1e-3, 1e-2], [0.0]),
        epochs=20,
    ),
    "svm": LinearSVM(C=_decades(-6, 1)),
    "svm-rbf": RBFSVM(gamma=(0.03, 0.1, 0.3, 1.0), C=(0.1, 1.0, 10.0, 100.0)),
    "ridge": ClosedForm(ridge_solver, [{"alpha": a} for a in _decades(7, -2, 2)], probabilistic=False, natural_ends={}),
    "knn": Neighbors(k=(200, 100, 50, 20, 10, 5, 3, 1), temperature=(1.0, 0.3, 0.1, 0.07, 0.03, 0.01, 0.003)),
    "lda": ClosedForm(
        lda_solver,
        [{"shrinkage": s} for s in (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0001, 0.0)],
        probabilistic=True,
        natural_ends={"shrinkage": (0.0, 1.0)},
    ),
    "centroid": ClosedForm(centroid_solver, [{}], probabilistic=False, natural_ends={}),
    "mlp": Probe(members=_members("adamw", [1e-4, 1e-3, 1e-2], [1.0, 0.1, 0.0], hidden=256), epochs=12),
}
"""Every `--clf` by name."""

NAMES = tuple(CLASSIFIERS)
