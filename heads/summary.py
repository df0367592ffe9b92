"""Records of runs of several seeds in; mean and spread of their test accuracy, by classifier, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from heads.evidence.metrics import wilson


def spread_of(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sd (of a sample; None for one value), min and max."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "min": float(min(values)), "max": float(max(values))}


def seeds_summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By method seeds; test_accuracy and val_accuracy as `spread_of` them; val_is_of_best_epoch; accuracy_ci95.

    The spread is over seeds: splits of train and validation, folds and initialisations. accuracy_ci95 is Wilson's
    interval of the mean over test images, which more seeds do not make shorter.
    """
    told = {}
    for method in dict.fromkeys(record["method"] for record in records):
        own = [record for record in records if record["method"] == method]
        test = spread_of([record["metrics"]["test"]["accuracy"] for record in own])
        n_test = own[0]["dataset"]["n_test"]
        told[method] = {
            "seeds": [record["seed"] for record in own],
            "test_accuracy": test,
            "val_accuracy": spread_of([record["metrics"]["val"]["accuracy"] for record in own]),
            "val_is_of_best_epoch": any(record["selection"]["val_is_of_best_epoch"] for record in own),
            "accuracy_ci95": list(wilson(round(test["mean"] * n_test), n_test)),
        }
    return told
