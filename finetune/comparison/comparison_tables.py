"""A comparison in; titles, columns and cells of the tables that ``bin/compare`` shows, with the notes below, out."""

from __future__ import annotations

from collections.abc import Iterator

from finetune.comparison.results import LEFT_OUT, Comparison, TableRow
from heads.fit_head_tables import Table, interval


def results_table(comparison: Comparison) -> Table:
    """What each method came to, and what it cost."""
    rows = comparison.table
    several = {
        "backbone": len({row.backbone for row in rows}) > 1,
        "rows": len({row.fraction for row in rows}) > 1,
        "seeds": max(row.n_seeds + row.n_failed for row in rows) > 1,
    }
    columns = ["method"]
    columns += [name for name in ("backbone", "rows") if several[name]]
    columns += ["trains", "accuracy", "95 % over images"]
    columns += ["over seeds"] if several["seeds"] else []
    columns += ["train - test", "test loss", "embed s", "fit s", "epoch s", "peak MB", "disk MB"]
    lines = []
    for row in rows:
        line = [row.method]
        line += [row.backbone] if several["backbone"] else []
        line += [_share(row)] if several["rows"] else []
        line += [_count(row.trainable_params), _number(row.accuracy), _ends(row.accuracy_ci95)]
        if row.accuracy is None:
            line[-2] = "left out" if all(note.startswith(LEFT_OUT) for note in row.notes) else "failed"
        line += [f"{_ends(row.seed_spread)} ({row.n_seeds})"] if several["seeds"] else []
        line += [_number(row.gap), _number(row.test_loss), _number(row.embed_s, 1), _number(row.fit_s, 1)]
        line += [_number(row.epoch_s, 2), _number(row.peak_rss_mb, 0)]
        line.append(_number(None if row.disk_bytes is None else row.disk_bytes / 1e6, 1))
        lines.append(tuple(line))
    told, seeds = comparison.dataset, max(row.n_seeds for row in rows)
    over = f", {seeds} seeds" if seeds > 1 else ""
    what = f"{told['name']}: {told['n_train']:,} training, {told['n_val']:,} validation, {told['n_test']:,} test images"
    return Table(f"{what}{over}", tuple(columns), lines)


def differences_table(comparison: Comparison) -> Table:
    """Each method's test accuracy less that of the best head."""
    differences = comparison.differences
    several = len({row.backbone for row in comparison.table}) > 1
    lines = [
        (
            f"{each.method}, {each.backbone}" if several else each.method,
            f"{each.difference:+.4f}",
            " to ".join(f"{end:+.4f}" for end in each.ci95),
            f"{each.mcnemar_p:.2g}",
            f"{each.p:.2g}",
            f"{each.holm_p:.2g}",
            each.outcome,
        )
        for each in differences
    ]
    first = differences[0]
    against = f"{first.against}, {first.against_backbone}" if several else first.against
    title = f"test accuracy less that of {against}, the cached head of highest validation accuracy"
    return Table(title, ("method", "difference", "95 % interval", "McNemar's p", "p", "Holm's p", ""), lines)


def notes_of(comparison: Comparison) -> Iterator[str]:
    """What is to be known of single rows of the table."""
    several = len({row.backbone for row in comparison.table}) > 1
    sizes = len({row.fraction for row in comparison.table}) > 1
    for row in comparison.table:
        if row.notes:
            where = f"{row.method}{f', {row.backbone}' if several else ''}{f', {_share(row)} rows' if sizes else ''}"
            yield f"{where}: {'; '.join(row.notes)}"


def _share(row: TableRow) -> str:
    return f"{100 * row.fraction:g} %" if row.n_train is None else f"{row.n_train:,}"


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _ends(ends: tuple[float, float] | None) -> str:
    return "–" if ends is None else interval(ends)
