"""The nine classifiers of `--clf`, each with its grid: a name in, and what can search and fit it out."""

from __future__ import annotations

from heads.closed_form import ClosedForm, centroid_left_out, centroid_solver
from heads.discriminants import lda_left_out, lda_solver
from heads.fitting import Classifier
from heads.grids import decades
from heads.linear_probe import Member
from heads.logreg import LogReg
from heads.margins import RBFSVM, LinearSVM
from heads.neighbor_search import Neighbors
from heads.probes import Probe
from heads.ridge import ridge_left_out, ridge_solver


def _members(optimizer: str, lrs: list[float], decays: list[float], hidden: int | None = None) -> tuple[Member, ...]:
    return tuple(
        Member(optimizer=optimizer, lr=lr, weight_decay=decay, hidden=hidden) for decay in decays for lr in lrs
    )


CLASSIFIERS: dict[str, Classifier] = {
    "logreg": LogReg(C=decades(-5, 2, 2)),
    "linear": Probe(
        members=_members("adamw", [1e-4, 1e-3, 1e-2, 1e-1], [1.0, 0.0]) + _members("sgd", [1e-4, 1e-3, 1e-2], [0.0]),
        epochs=20,
    ),
    "svm": LinearSVM(C=decades(-6, 1)),
    "svm-rbf": RBFSVM(gamma=(0.03, 0.1, 0.3, 1.0), C=(0.1, 1.0, 10.0, 100.0)),
    "ridge": ClosedForm(solver=ridge_solver, left_out=ridge_left_out, name="alpha", grid=decades(7, -2, 2)),
    "knn": Neighbors(k=(200, 100, 50, 20, 10, 5, 3, 1), temperature=(1.0, 0.3, 0.1, 0.07, 0.03, 0.01, 0.003)),
    "lda": ClosedForm(
        solver=lda_solver,
        left_out=lda_left_out,
        name="shrinkage",
        grid=(1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0001, 0.0),
        probabilistic=True,
        natural_ends={"shrinkage": (0.0, 1.0)},
    ),
    "centroid": ClosedForm(solver=centroid_solver, left_out=centroid_left_out, weightless=True),
    "mlp": Probe(members=_members("adamw", [1e-4, 1e-3, 1e-2], [1.0, 0.1, 0.0], hidden=256), epochs=12),
}
"""Every `--clf` by name."""

NAMES = tuple(CLASSIFIERS)
