"""Rows that show the same picture in; findings that say which of two may go, and which label is the likelier, out."""

from __future__ import annotations

import numpy as np

from heads.audit.audited_rows import AuditedRows
from heads.audit.duplicates import NearPairs, copies
from heads.audit.findings import Finding
from heads.audit.out_of_fold import OutOfFold


def duplicate_findings(rows: AuditedRows, near: NearPairs, seen: OutOfFold | None) -> list[Finding]:
    """A finding for each further copy of an image, and for each pair that is nearly the same.

    The row named first is the one that may go: of train and test it is the training row, for what is scored should not
    change; of two labels it is that of the less probable one; else it is the later row. Rows that are not in test are
    marked for ``--exclude``, where bytes or pixels say that they are copies.
    """
    return _exact(rows, seen) + _near(rows, near, seen)


def _exact(rows: AuditedRows, seen: OutOfFold | None) -> list[Finding]:
    first = copies(rows)
    by_image = np.argsort(first, kind="stable")
    found = []
    for group in np.split(by_image, np.flatnonzero(np.diff(first[by_image])) + 1):
        if len(group) < 2:
            continue
        stays, *others = sorted(group.tolist(), key=lambda row: _worth(rows, row, seen), reverse=True)
        found += [
            _finding("exact-duplicate", rows, row, stays, 1.0, "the files have the same bytes", sure=True)
            for row in others
        ]
    return found


def _near(rows: AuditedRows, near: NearPairs, seen: OutOfFold | None) -> list[Finding]:
    found = []
    for a, b, cosine, pixels, same in zip(
        near.first.tolist(), near.second.tolist(), near.cosine, near.pixels, near.same, strict=True
    ):
        stays, row = sorted((a, b), key=lambda each: _worth(rows, each, seen), reverse=True)
        told = f"cosine {cosine:.4f}"
        told += ", pixels not compared" if np.isnan(pixels) else f", pixels {pixels:.3f} apart"
        kind = "near-duplicate" if same else "look-alike"
        found.append(_finding(kind, rows, row, stays, float(cosine), told, sure=bool(same and not np.isnan(pixels))))
    return found


def _finding(kind: str, rows: AuditedRows, row: int, stays: int, score: float, told: str, *, sure: bool) -> Finding:
    label, other = int(rows.labels[row]), int(rows.labels[stays])
    conflict = label >= 0 and other >= 0 and label != other and kind != "look-alike"
    return Finding(
        kind="label-conflict" if conflict else kind,
        score=score,
        exclude=sure and not rows.is_test(row),
        split=rows.split_of(row),
        id=rows.ids[row],
        label=rows.class_of(row),
        suggested_label=rows.class_of(stays) if conflict else "",
        other_split=rows.split_of(stays),
        other_id=rows.ids[stays],
        other_label=rows.class_of(stays),
        detail=told,
    )


def _worth(rows: AuditedRows, row: int, seen: OutOfFold | None) -> tuple[bool, float, int]:
    """Of two rows of one picture, the one with more stays."""
    return rows.is_test(row), _believed(rows, row, seen), -row


def _believed(rows: AuditedRows, row: int, seen: OutOfFold | None) -> float:
    """The probability of the row's own label by heads that never saw the picture; -1 where it is not known."""
    if seen is None or rows.labels[row] < 0:
        return -1.0
    place = int(np.searchsorted(seen.rows, row))
    if place == len(seen.rows) or seen.rows[place] != row:
        return -1.0
    return round(float(seen.probabilities[place, rows.labels[row]]), 6)
