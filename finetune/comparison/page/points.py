"""A comparison in; its rows that have numbers, as points that pictures show, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.comparison.results import Comparison, Interval, Kind


@dataclass(frozen=True, kw_only=True)
class Point:
    """A row of the table with at least one finished run.

    Attributes:
        name: what pictures call it: the method, with the backbone where there are several.
        number: of its method, in order of appearance; it decides colour and marker.
        backbone, method, kind, fraction, n_train, accuracy, accuracy_ci95, test_loss: as in `TableRow`.
        seconds: to embed and to fit, the search included, from images to a model.
    """

    name: str
    number: int
    backbone: str
    method: str
    kind: Kind
    fraction: float
    n_train: int
    accuracy: float
    accuracy_ci95: Interval
    test_loss: float | None
    seconds: float


def points_of(comparison: Comparison) -> list[Point]:
    """The comparable rows with a finished run, in the table's order."""
    several = len({row.backbone for row in comparison.table}) > 1
    numbers = method_numbers(comparison)
    points = []
    for row in comparison.table:
        if row.accuracy is None or row.accuracy_ci95 is None or row.n_train is None or not row.comparable:
            continue
        points.append(
            Point(
                name=named(row.backbone, row.method, several=several),
                number=numbers[row.method],
                backbone=row.backbone,
                method=row.method,
                kind=row.kind,
                fraction=row.fraction,
                n_train=row.n_train,
                accuracy=row.accuracy,
                accuracy_ci95=row.accuracy_ci95,
                test_loss=row.test_loss,
                seconds=(row.embed_s or 0.0) + (row.fit_s or 0.0),
            )
        )
    return points


def method_numbers(comparison: Comparison) -> dict[str, int]:
    """A number for each method, in order of appearance in the table."""
    methods = dict.fromkeys(row.method for row in comparison.table)
    return {method: number for number, method in enumerate(methods)}


def named(backbone: str, method: str, *, several: bool) -> str:
    """The method, with its backbone where there are several."""
    return f"{method}, {backbone}" if several else method


def at_fraction(points: Sequence[Point], fraction: float) -> list[Point]:
    """Those of one share of the training rows."""
    return [point for point in points if point.fraction == fraction]
