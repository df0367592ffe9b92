"""The solvers as scikit-learn estimators: scikit-learn's own checks, its estimators as referees, and --clf's own heads."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from selecting import Digits
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks

import heads
from heads.classifiers import CLASSIFIERS
from heads.features import ArrayFeatures
from heads.fitting import Task
from heads.head_classifier import HeadClassifier

QUICK: list[HeadClassifier] = [
    heads.RidgePathClassifier(),
    heads.LinearSVMClassifier(C=0.1),
    heads.RBFSVMClassifier(),
    heads.CosineNeighborsClassifier(),
    heads.ShrunkLDAClassifier(),
    heads.CentroidClassifier(),
    heads.LinearProbeClassifier(lr=0.1, epochs=5, batch_size=32),
    heads.MLPProbeClassifier(hidden=16, lr=0.01, epochs=5, batch_size=32),
]


@parametrize_with_checks(QUICK)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks that want an array API skip by a warning
        check(estimator)
