"""A comparison in; the tables that its page shows out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune.comparison.page import words
from finetune.comparison.results import Comparison, Difference, TableRow


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: its name, whether it holds text, and how it is sorted first."""

    name: str
    text: bool = False
    first: Literal["ascending", "descending"] = "ascending"


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """What a cell says, what it is sorted by (nothing where there is no value), and small lines below."""

    told: str
    value: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row; ``chosen`` where it is one of the two that the verdict is about."""

    cells: tuple[TableCell, ...]
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """A table, its caption, and a name for those who hear it."""

    label: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Line, ...]


def results_table(comparison: Comparison) -> PageTable:
    """Every row of the comparison's table, those without a finished run too."""
    rows = comparison.table
    several_backbones = len({row.backbone for row in rows}) > 1
    several_sizes = len({row.fraction for row in rows}) > 1
    several_seeds = any(row.n_seeds > 1 for row in rows)
    columns = [
        Column(name="Method", text=True),
        *([Column(name="Backbone", text=True)] if several_backbones else []),
        *([Column(name="Training images", first="descending")] if several_sizes else []),
        Column(name="Parameters trained"),
        Column(name="Test accuracy", first="descending"),
        Column(name="Train–test gap"),
        Column(name="Test loss"),
        Column(name="Time to embed"),
        Column(name="Time to fit"),
        Column(name="Time an epoch"),
        Column(name="Peak memory"),
        Column(name="On disk"),
    ]
    spread = " Below that, the lowest and highest of the seeds." if several_seeds else ""
    caption = (
        f"Accuracy on the test images, with its 95 % interval over images.{spread} The gap is training accuracy less "
        "test accuracy, in points; loss is in nats; fitting includes the search. Marked are the best head and the best "
        "fine-tuning by validation accuracy."
    )
    lines = []
    for row in rows:
        cells = [
            TableCell(told=row.method, value=row.method, details=_kind(row)),
            *([TableCell(told=row.backbone, value=row.backbone)] if several_backbones else []),
            *([_number(row.n_train, f"{row.n_train or 0:,}")] if several_sizes else []),
            _number(
                row.trainable_params, words.parameters(row.trainable_params), f"of {words.parameters(row.total_params)}"
            ),
            _accuracy(row),
            _number(row.gap, words.points(row.gap)),
            _number(row.test_loss, words.accuracy(row.test_loss)),
            _number(row.embed_s, words.duration(row.embed_s)),
            _number(row.fit_s, words.duration(row.fit_s)),
            _number(row.epoch_s, words.duration(row.epoch_s)),
            _number(row.peak_rss_mb, words.megabytes(row.peak_rss_mb)),
            _number(row.disk_bytes, words.megabytes(None if row.disk_bytes is None else row.disk_bytes / 1e6)),
        ]
        lines.append(Line(cells=tuple(cells), chosen=_chosen(comparison, row)))
    return PageTable(label="Results", caption=caption, columns=tuple(columns), rows=tuple(lines))


def differences_table(comparison: Comparison) -> PageTable:
    """Every paired difference."""
    each = comparison.differences
    several = len({d.backbone for d in each} | {d.against_backbone for d in each}) > 1
    seeds = any(d.n_seeds > 1 for d in each)
    columns = (
        Column(name="Method", text=True),
        *((Column(name="Backbone", text=True),) if several else ()),
        Column(name="Difference, points", first="descending"),
        Column(name="95 % interval", first="descending"),
        *((Column(name="p over images and seeds"),) if seeds else ()),
        Column(name="McNemar’s p, first seed" if seeds else "McNemar’s p"),
        Column(name="Holm’s p"),
        Column(name="Outcome", text=True),
    )
    against = f"{each[0].against}, {each[0].against_backbone}" if several else each[0].against
    caption = (
        f"Test accuracy less that of {against}, the head with the highest validation accuracy, on the same images. "
        "Holm’s p allows for the number of methods; from 0.05 on the difference is not significant, which does not "
        "mean that there is none: the interval tells how large it may be."
    )
    return PageTable(
        label="Differences",
        caption=caption,
        columns=columns,
        rows=tuple(Line(cells=_difference_cells(one, several=several, seeds=seeds)) for one in each),
    )


def _difference_cells(one: Difference, *, several: bool, seeds: bool) -> tuple[TableCell, ...]:
    return (
        TableCell(told=one.method, value=one.method),
        *((TableCell(told=one.backbone, value=one.backbone),) if several else ()),
        _number(one.difference, words.points(one.difference)),
        _number(one.ci95[0], words.points_interval(one.ci95)),
        *((_number(one.p, words.p_value(one.p)),) if seeds else ()),
        _number(one.mcnemar_p, words.p_value(one.mcnemar_p)),
        _number(one.holm_p, words.p_value(one.holm_p)),
        TableCell(told=one.outcome, value=one.outcome),
    )


def _kind(row: TableRow) -> tuple[str, ...]:
    kind = "cached head" if row.kind == "head" else "fine-tuned"
    if row.accuracy is None:
        return (kind, "failed")
    seeds = (f"{row.n_seeds} seeds",) if row.n_seeds > 1 else ()
    return (kind, *seeds, *(() if row.comparable else ("not comparable",)))


def _accuracy(row: TableRow) -> TableCell:
    details = [] if row.accuracy_ci95 is None else [words.interval(row.accuracy_ci95)]
    if row.seed_spread is not None and row.n_seeds > 1:
        details.append(f"seeds {words.interval(row.seed_spread)}")
    return _number(row.accuracy, words.accuracy(row.accuracy), *details)


def _number(value: float | None, told: str, *details: str) -> TableCell:
    if value is None:
        return TableCell(told=words.NONE, value="")
    return TableCell(told=told, value=f"{value:.12g}", details=details)


def _chosen(comparison: Comparison, row: TableRow) -> bool:
    verdict, fraction = comparison.verdict, comparison.compared_fraction
    best = ((verdict.best_head_backbone, verdict.best_head), (verdict.best_tuned_backbone, verdict.best_tuned))
    return row.accuracy is not None and row.fraction == fraction and (row.backbone, row.method) in best
