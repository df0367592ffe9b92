"""Fit the temperature of a chosen head on scores of rows that it was not fitted on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.classifiers import CLASSIFIERS
from heads.evidence.calibration import fit_temperature, of_known_class
from heads.fitting import Params, averaged_scores
from heads.folds import Validation, stratified
from heads.predictors import Scores
from heads.standardization import Labels

#: With fewer validation rows held out, train and validation are scored in folds. The log loss of one fitted number is
#: too high by about 1 / (2 N) nats, which at this N is 0.001.
ENOUGH_ROWS = 500
N_FOLDS = 5
#: A calibration on fewer rows is not judged, nor one on rows that are all right.
_JUDGED_ROWS = 30


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A temperature, and the rows that it was fitted on.

    Attributes:
        temperature: what the scores are divided by.
        n_rows, n_wrong: how many rows, and how many of them the head has wrong.
        n_folds: the folds in which train and validation were scored for this alone; None if the validation scores, of
            held-out rows or of all in turn, were enough.
        n_val: the validation rows that there are.
    """

    temperature: float
    n_rows: int
    n_wrong: int
    n_folds: int | None
    n_val: int

    @property
    def judged(self) -> bool:
        """Whether the rows say how sure the head may be: there are some, and not all are right."""
        return self.n_rows >= _JUDGED_ROWS and self.n_wrong > 0

    @property
    def notes(self) -> list[str]:
        """Sentences for the user."""
        notes = []
        if self.n_folds is not None:
            notes.append(
                f"the temperature is fitted on {self.n_rows:,} rows of train and validation, each scored by one of "
                f"{self.n_folds} heads that did not see it, since there are only {self.n_val:,} validation rows"
            )
        if not self.judged:
            right = "all right" if self.n_wrong == 0 else f"{self.n_wrong:,} of them wrong"
            notes.append(
                f"the calibration cannot be judged: the temperature is fitted on {self.n_rows:,} rows, {right}, which "
                "do not say how sure the head may be; add training images"
            )
        return notes

    def to_json(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "rows": self.n_rows,
            "wrong": self.n_wrong,
            "folds": self.n_folds,
            "judged": self.judged,
        }


def calibrate(
    clf: str, params: Params, validation: Validation, val_scores: Scores, *, probabilistic: bool
) -> Calibration:
    """The temperature of the head that a classifier fits with these parameters.

    Args:
        clf: a name of ``heads.classifiers``.
        params: chosen.
        validation: how they were chosen.
        val_scores: (n, n_classes) of the rows of ``validation.scored``, in that order, by heads that did not see them.
        probabilistic: whether the softmax of the scores is a probability.
    """
    rows, scores, n_folds = np.concatenate(validation.scored), val_scores, None
    n_val = len(rows)
    if validation.kind == "holdout" and n_val < ENOUGH_ROWS:
        folded = _folded(clf, params, validation)
        if folded is not None:
            rows, scores, n_folds = folded
    y = validation.folds.y[rows]
    return Calibration(
        temperature=fit_temperature(scores, y, probabilistic=probabilistic),
        n_rows=int(of_known_class(scores, y).sum()),
        n_wrong=int((of_known_class(scores, y) & (scores.argmax(axis=1) != y)).sum()),
        n_folds=n_folds,
        n_val=n_val,
    )


def _folded(clf: str, params: Params, validation: Validation) -> tuple[Labels, Scores, int] | None:
    """Rows of train and validation, their scores by heads fitted without them, and how many heads there were.

    A class with a single row stays in every training part. None if no class has two rows, or a score is not finite.
    """
    folds = validation.folds
    counts = np.bincount(folds.y)
    shared = np.flatnonzero(counts[folds.y] > 1)
    n_folds = min(N_FOLDS, int(counts.max()))
    if n_folds < 2:
        return None
    _, parts, _ = stratified(folds.y[shared], n_folds, seed=folds.seed)
    scored = [shared[part] for part in parts]
    scores = []
    for part in scored:
        task = folds.task(np.setdiff1d(np.arange(len(folds.y)), part))
        scores.append(averaged_scores(CLASSIFIERS[clf].fit(params, task).head, folds.X.take(part)))
    together = np.concatenate(scores)
    return (np.concatenate(scored), together, n_folds) if np.isfinite(together).all() else None
