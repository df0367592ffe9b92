"""How a head is to be chosen and fitted: what a user asks for in, one small value that any worker can take out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from featcache.common.errors import UsageError, one_of
from heads.classifiers import CLASSIFIERS

#: The classifiers whose result depends on the seed by more than the rows that validate it.
RANDOM = ("linear", "svm-rbf", "mlp")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A classifier, how its hyper-parameters are chosen, and what becomes of the one that wins.

    Attributes:
        clf: a name of ``heads.classifiers``.
        cv: None validates on held-out rows (the set's own, or those carved from train), a number on so many stratified
            folds of all rows but test, "loo" by leaving out each row in turn, exactly.
        nested: also estimate the whole procedure on so many outer folds.
        rule: "best" takes the highest score, "one-se" the most strongly regularised candidate whose score is within one
            standard error of it (Breiman et al. 1984, section 3.4.3; Hastie et al., Elements of Statistical Learning,
            section 7.10).
        select_by: "accuracy" or "balanced-accuracy", the mean recall of the classes.
        class_weight: None, or "balanced": each class then counts alike in the fit.
        refit: whether the final head is fitted on all rows but test.
        calibrate: whether the head's scores are divided by a temperature; see ``heads.calibrating``.
        val_fraction: the share that is held out of the inner rows of nested validation.
        seed: of folds and everything random in the fit.
        device: where the classifiers that torch trains run.

    Raises:
        UsageError: a name is unknown, a number too small, or what was asked for excludes each other.
    """

    clf: str
    cv: int | Literal["loo"] | None = None
    nested: int | None = None
    rule: str = "best"
    select_by: str = "accuracy"
    class_weight: str | None = None
    refit: bool = True
    calibrate: bool = False
    val_fraction: float = 0.1
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.clf not in CLASSIFIERS:
            raise one_of("classifier", self.clf, list(CLASSIFIERS))
        for name, value, known in (
            ("rule", self.rule, ["best", "one-se"]),
            ("select-by", self.select_by, ["accuracy", "balanced-accuracy"]),
            ("class weight", self.class_weight or "balanced", ["balanced"]),
        ):
            if value not in known:
                raise one_of(name, value, known)
        for flag, folds in (("--cv", self.cv), ("--nested", self.nested)):
            if isinstance(folds, int) and folds < 2:
                raise UsageError(f"{flag} {folds}: expected at least 2 folds")
        if self.cv is not None and not self.refit:
            raise UsageError(
                "--no-refit keeps the one head that saw no validation rows, and --cv has several: drop one"
            )
        if self.cv == "loo" and not hasattr(CLASSIFIERS[self.clf], "leave_one_out"):
            able = ", ".join(name for name, each in CLASSIFIERS.items() if hasattr(each, "leave_one_out"))
            raise UsageError(f"--cv loo: {self.clf} has no exact leave-one-out (as {able} have): give --cv 10")
        if self.calibrate and self.clf == "knn":
            raise UsageError("--calibrate: knn chooses a temperature on the validation rows as it is; leave one out")
        if not 0 < self.val_fraction < 1:
            raise UsageError(f"--val-fraction {self.val_fraction:g}: expected a number between 0 and 1")
