"""A cache in; all that may be wrong with its data set, as ranked findings and numbers, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featcache.cache.cache_file import Cache
from featcache.common.errors import UserError
from featcache.maintenance.image_provenance import OriginalImages
from heads.audit.audited_rows import AuditedRows, audited_rows
from heads.audit.classes import few_rows, nearly_one
from heads.audit.directions import about_mean, about_origin
from heads.audit.duplicate_findings import duplicate_findings
from heads.audit.duplicates import calibrated, copies, near_pairs, pictures
from heads.audit.findings import KINDS, Finding, ranked
from heads.audit.images_at_hand import ImagesAtHand
from heads.audit.out_of_fold import OutOfFold, out_of_fold
from heads.audit.outliers import outliers
from heads.audit.suspects import suspects

Tell = Callable[[str], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Audit:
    """What an audit came to.

    Attributes:
        rows: that were looked at.
        findings: ranked.
        images: None where they are not at hand.
        notes: sentences for the user on how it was done.
        numbers: thresholds and settings, as JSON.
    """

    rows: AuditedRows
    findings: tuple[Finding, ...]
    images: ImagesAtHand | None
    notes: tuple[str, ...]
    numbers: dict[str, Any]

    def counts(self) -> dict[str, dict[str, int]]:
        """How many findings of each kind, ``all``, ``test_leaks`` (of train and test) and ``excluded``."""
        every = Counter(f.kind for f in self.findings)
        leaks = Counter(f.kind for f in self.findings if f.is_leak)
        out = Counter(f.kind for f in self.findings if f.exclude)
        return {kind: {"all": every[kind], "test_leaks": leaks[kind], "excluded": out[kind]} for kind in KINDS}


def audit(cache: Cache, *, seed: int = 0, tell: Tell = lambda text: None) -> Audit:
    """Look at all rows of a cache, its test rows included: nothing is scored.

    Args:
        cache: of vectors or maps.
        seed: of the folds.
        tell: called with what is begun.

    Raises:
        UserError: no row has features, or a block of them is damaged.
    """
    rows, notes = audited_rows(cache), []
    images: ImagesAtHand | None = None
    try:
        images = ImagesAtHand(rows=rows, originals=OriginalImages.of(cache))
    except UserError as error:
        notes.append(f"images are not at hand, so that near duplicates are told by features alone ({error})")
    X, numbers = about_mean(rows.features), {}
    tell("looking for duplicates")
    calibration = calibrated(X.take(np.unique(copies(rows))))
    numbers["near_duplicates"] = asdict(calibration)
    near = near_pairs(rows, X, calibration, images)
    if near.n_more:
        notes.append(f"{near.n_more:,} further pairs are nearer than usual, too many to compare their pixels")
    picture = pictures(rows, near)
    tell("looking at labels")
    seen = None
    try:
        n_classes = len(rows.class_names)
        seen = out_of_fold(rows.features, rows.labels, picture, n_classes=n_classes, seed=seed, tell=tell)
        notes += seen.notes
    except UserError as error:
        notes.append(f"labels were not looked at: {error}")
    found = duplicate_findings(rows, near, seen)
    if seen is not None:
        found += _label_findings(rows, seen, numbers)
    tell("looking for outliers")
    odd = outliers(about_origin(rows.features), np.unique(picture))
    found += [
        _of_row("outlier", rows, row, float(score), f"{score:.1f} deviations farther from its neighbours than is usual")
        for row, score in zip(odd.rows.tolist(), odd.deviations.tolist(), strict=True)
    ]
    found += _plain_findings(rows)
    return Audit(rows=rows, findings=tuple(ranked(found)), images=images, notes=tuple(notes), numbers=numbers)


def _label_findings(rows: AuditedRows, seen: OutOfFold, numbers: dict[str, Any]) -> list[Finding]:
    names, y = rows.class_names, rows.labels[seen.rows]
    suspected = suspects(seen.probabilities, y)
    accuracy = float((seen.probabilities.argmax(axis=1) == y).mean())
    numbers["labels"] = {
        "out_of_fold_accuracy": accuracy,
        "folds": seen.n_folds,
        "C": seen.C,
        "thresholds": {
            n: None if np.isnan(t) else t for n, t in zip(names, suspected.thresholds.tolist(), strict=True)
        },
    }
    found = []
    for place, suggested, margin in zip(
        suspected.rows.tolist(), suspected.suggested.tolist(), suspected.margin.tolist(), strict=True
    ):
        own, other = seen.probabilities[place, [y[place], suggested]]
        told = (
            f"probability {own:.3f} of {names[y[place]]}, {other:.3f} of {names[suggested]}, by heads that never saw it"
        )
        found.append(_of_row("wrong-label", rows, int(seen.rows[place]), margin, told, suggested=names[suggested]))
    ids = [rows.ids[row] for row in seen.rows.tolist()]
    for pair in nearly_one(seen.probabilities, y, ids):
        low, high = pair.interval
        found.append(
            Finding(
                kind="nearly-one",
                score=1 - pair.accuracy,
                label=names[pair.a],
                other_label=names[pair.b],
                detail=f"told apart in {pair.accuracy:.3f} of {pair.n_rows:,} rows ({low:.3f} to {high:.3f}); a coin: "
                f"0.5; such as {', '.join(pair.examples[:3])}",
            )
        )
    return found


def _plain_findings(rows: AuditedRows) -> list[Finding]:
    found = [
        Finding(
            kind="damaged",
            score=1.0,
            split=each.split,
            id=each.id,
            label=rows.class_names[each.label] if each.label >= 0 else "",
            detail=each.reason,
        )
        for each in rows.damaged
    ]
    train = rows.labels[rows.split == rows.split_names.index("train")]
    largest = int(np.bincount(train[train >= 0], minlength=1).max())
    for label, count in few_rows(train, len(rows.class_names)):
        detail = f"{count:,} training rows, the largest class has {largest:,}"
        name = rows.class_names[label]
        found.append(Finding(kind="few-rows", score=1 - count / largest, split="train", label=name, detail=detail))
    return found


def _of_row(kind: str, rows: AuditedRows, row: int, score: float, told: str, *, suggested: str = "") -> Finding:
    return Finding(
        kind=kind,
        score=score,
        split=rows.split_of(row),
        id=rows.ids[row],
        label=rows.class_of(row),
        suggested_label=suggested,
        detail=told,
    )
