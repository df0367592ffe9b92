"""Cached features in, scored classifier heads out: selection, metrics and runs. Imports no torch, no scikit-learn.

The public names, estimators for scikit-learn's pipelines, load when first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heads.estimators import (
        CentroidClassifier,
        CosineNeighborsClassifier,
        LinearProbeClassifier,
        LinearSVMClassifier,
        MLPProbeClassifier,
        RBFSVMClassifier,
        RidgePathClassifier,
        ShrunkLDAClassifier,
    )
    from heads.logistic import LogisticClassifier, LogisticPath

_LOGISTIC = ("LogisticClassifier", "LogisticPath")

__all__ = [
    "CentroidClassifier",
    "CosineNeighborsClassifier",
    "LinearProbeClassifier",
    "LinearSVMClassifier",
    "LogisticClassifier",
    "LogisticPath",
    "MLPProbeClassifier",
    "RBFSVMClassifier",
    "RidgePathClassifier",
    "ShrunkLDAClassifier",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("heads.logistic" if name in _LOGISTIC else "heads.estimators"), name)


def __dir__() -> list[str]:
    return list(__all__)
