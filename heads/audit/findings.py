"""What an audit found in; the findings in the order in which to look at them, and as a table, out."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

#: The kinds, most pressing first, and what people call them.
KINDS = {
    "label-conflict": "one image, two labels",
    "exact-duplicate": "exact duplicates",
    "near-duplicate": "near duplicates",
    "wrong-label": "likely wrong labels",
    "outlier": "outliers",
    "look-alike": "look-alikes",
    "damaged": "damaged images",
    "nearly-one": "classes that are nearly one",
    "few-rows": "classes with few rows",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of ``findings.csv``.

    Attributes:
        kind: one of `KINDS`.
        score: the higher the surer, to be compared within a kind: cosine of features, margin of probabilities,
            deviations beyond what is usual, 1 less the accuracy between two classes, 1 less the share of the largest
            class.
        exclude: whether ``--exclude`` leaves the row out.
        split, id, label: the row, or the class that is meant.
        suggested_label: what the label may be instead.
        other_split, other_id, other_label: the row, or the class, that it is like.
        detail: in a sentence.
    """

    kind: str
    score: float
    exclude: bool = False
    split: str = ""
    id: str = ""
    label: str = ""
    suggested_label: str = ""
    other_split: str = ""
    other_id: str = ""
    other_label: str = ""
    detail: str = ""

    @property
    def is_leak(self) -> bool:
        """Whether the two rows are in different splits, one of them test."""
        return self.split != self.other_split and "test" in (self.split, self.other_split) and bool(self.other_id)


def ranked(findings: Sequence[Finding]) -> list[Finding]:
    """Kind by kind, what leaks into test before the rest, the surest first."""
    order = list(KINDS)
    return sorted(findings, key=lambda f: (order.index(f.kind), not f.is_leak, -f.score, f.split, f.id))


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Write them as CSV (RFC 4180, UTF-8) with a rank; the column exclude says yes or no."""
    columns = ["rank", *(each.name for each in fields(Finding))]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for rank, finding in enumerate(findings, 1):
            told = {"score": f"{finding.score:.4f}", "exclude": "yes" if finding.exclude else "no"}
            writer.writerow({"rank": rank, **asdict(finding), **told})
