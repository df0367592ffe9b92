"""Records of runs, curves and rankings in; titles, columns and cells of the tables that ``bin/fit-head`` shows out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from heads.evidence.confusions import Confusion
from heads.evidence.metrics import PerClass
from heads.standardization import Labels

ALL_CONFUSIONS = 20  # of more classes than this only the most confused pairs are shown


class Table(NamedTuple):
    """What ``Console.table`` takes."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def metrics_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Each run's test metrics; a star marks a validation accuracy that is its best epoch's."""
    columns = (
        "head",
        "accuracy",
        "95 % interval",
        "top 5",
        "balanced",
        "macro F1",
        "log loss",
        "ECE",
        "val acc.",
        "fit s",
    )
    several = len({record["seed"] for record in records}) > 1
    lines = []
    for record in records:
        test, val = record["metrics"]["test"], record["metrics"]["val"]
        scores = [test[key] for key in ("top5", "balanced_accuracy", "macro_f1", "log_loss", "ece")]
        lines.append(
            (
                f"{record['method']}, seed {record['seed']}" if several else record["method"],
                f"{test['accuracy']:.4f}",
                interval(test["accuracy_ci95"]),
                *("–" if score is None else f"{score:.4f}" for score in scores),
                f"{val['accuracy']:.4f}{'*' if record['selection'].get('val_is_of_best_epoch') else ''}",
                f"{record['cost']['fit_s']:.1f}",
            )
        )
    first = records[0]
    name = f"{first['dataset']['name']}, {first['encoder']['backbone']}"
    return Table(f"{name}: test metrics on {first['dataset']['n_test']:,} rows", columns, lines)


def seeds_table(summary: Mapping[str, Any]) -> Table:
    """Each classifier's test accuracy over seeds, and over test images."""
    columns = ("head", "seeds", "mean accuracy", "sd over seeds", "lowest–highest", "95 % interval over images")
    lines = []
    for method, told in summary.items():
        spread = told["test_accuracy"]
        lines.append(
            (
                method,
                str(len(told["seeds"])),
                f"{spread['mean']:.4f}",
                _number(spread["sd"]),
                interval((spread["min"], spread["max"])),
                interval(told["accuracy_ci95"]),
            )
        )
    return Table(
        "test accuracy over seeds, and over test images",
        columns,
        lines,
    )


def comparisons_table(title: str, told: Sequence[Mapping[str, Any]]) -> Table:
    """Differences in test accuracy, each with its interval and p-values."""
    columns = ("run", "difference", "95 % interval", "McNemar's p", "Holm's p", "verdict")
    lines = [
        (
            each["run"],
            f"{each['difference']:+.4f}",
            " to ".join(f"{end:+.4f}" for end in each["ci95"]),
            f"{each['p_value']:.2g}",
            f"{each['p_holm']:.2g}",
            each["verdict"],
        )
        for each in told
    ]
    return Table(title, columns, lines)


def calibration_table(calibration: Mapping[str, Any]) -> Table:
    """Log-loss and ECE before and after."""
    lines = []
    for split in ("val", "test"):
        before, after = calibration[split]["before"], calibration[split]["after"]
        lines.append((split, *(f"{part[key]:.4f}" for key in ("log_loss", "ece") for part in (before, after))))
    columns = ("split", "log loss before", "after", "ECE before", "after")
    return Table(f"calibration: scores divided by {calibration['temperature']:.3g}", columns, lines)


def ranking_table(dataset: str, clf: str, entries: Sequence[Mapping[str, Any]]) -> Table:
    """Caches by validation accuracy."""
    columns = (
        "cache",
        "backbone",
        "up to",
        "features",
        "val acc.",
        "test acc. (not used for the order)",
        "95 % interval",
        "fit s",
    )
    lines = [
        (
            entry["cache"],
            entry["backbone"],
            f"{entry['cut']}, averaged" if entry["pooled"] else entry["cut"],
            f"{entry['features']:,}",
            f"{entry['val_accuracy']:.4f}",
            f"{entry['test_accuracy']:.4f}",
            interval(entry["test_accuracy_ci95"]),
            f"{entry['fit_s']:.1f}",
        )
        for entry in entries
    ]
    return Table(f"{dataset}: caches by the validation accuracy of a quick head ({clf})", columns, lines)


def curve_table(curve: Mapping[str, Any]) -> Table:
    """Test accuracy by the number of training rows."""
    columns = ("training rows", "size", "mean accuracy", "sd over seeds", "lowest–highest", "95 % interval over images")
    lines = []
    for size in curve["sizes"]:
        spread = size["accuracy"]
        lines.append(
            (
                f"{size['n_train']:,}",
                f"{size['shots']} a class" if size["shots"] is not None else f"{size['fraction']:g}",
                f"{spread['mean']:.4f}",
                _number(spread["sd"]),
                interval((spread["min"], spread["max"])),
                interval(size["accuracy_ci95"]),
            )
        )
    name, n_test, n_seeds = curve["dataset"]["name"], curve["dataset"]["n_test"], len(curve["seeds"])
    how = f"{curve['method']}, {n_seeds} seed{'s' if n_seeds > 1 else ''}, {n_test:,} test rows"
    return Table(f"{name}, {curve['encoder']['backbone']}: {how}", columns, lines)


def report_tables(
    class_names: Sequence[str], each: PerClass, matrix: Labels, pairs: Sequence[Confusion]
) -> Iterator[Table]:
    """The classes one by one, their confusion matrix where there are few, and the most confused pairs."""
    shares = np.stack([each.precision, each.recall, each.f1], axis=1)
    lines = [
        (name, *(f"{share:.4f}" for share in shares[label]), f"{each.support[label]:,}")
        for label, name in enumerate(class_names)
    ]
    yield Table("test, by class", ("class", "precision", "recall", "F1", "rows"), lines)
    if len(class_names) <= ALL_CONFUSIONS:
        numbers = [(name, *map(str, line)) for name, line in zip(class_names, matrix.tolist(), strict=True)]
        yield Table("confusion matrix: rows are true classes, columns predicted ones", ("", *class_names), numbers)
    if pairs:
        mistakes = [
            (class_names[p.true], class_names[p.predicted], f"{p.count:,}", f"{p.share:.4f}", ", ".join(p.examples))
            for p in pairs
        ]
        yield Table("most confused", ("class", "taken for", "rows", "share of the class", "for example"), mistakes)


def interval(ends: Sequence[float]) -> str:
    """The two ends of an interval."""
    return f"{ends[0]:.4f}–{ends[1]:.4f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
