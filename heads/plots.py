"""Numbers of a run in, pictures out. Needs the ``plots`` extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from heads.evidence.calibration import Reliability
from heads.evidence.metrics import wilson
from heads.evidence.power_law import PowerLaw

_BLUE, _PALE, _ORANGE, _GREY = "#2b6ca3", "#9cc3e2", "#d1602b", "#8a8a8a"
_CHAINS = (_BLUE, _ORANGE, "#3f8f5f", "#8a5aa8", "#b3912b", "#4a4a4a")
_DPI = 150


def draw_confusion(matrix: NDArray[Any], class_names: Sequence[str], path: Path) -> Path:
    """Draw a confusion matrix.

    Args:
        matrix: (n_classes, n_classes) counts; rows are true classes.
        class_names: by label.
        path: of the PNG.
    """
    from sklearn.metrics import ConfusionMatrixDisplay

    side = 2.5 + 0.45 * len(class_names)
    figure = Figure(figsize=(side, side), layout="constrained")
    FigureCanvasAgg(figure)
    display = ConfusionMatrixDisplay(matrix, display_labels=list(class_names))
    display.plot(ax=figure.subplots(), cmap="Blues", colorbar=False, xticks_rotation="vertical")
    figure.savefig(path, dpi=_DPI)
    return path


def draw_reliability(reliability: Reliability, path: Path) -> Path:
    """Draw how often predictions were right against the probability they were made with, and how many rows there were.

    Args:
        reliability: bins with NaN where they are empty.
        path: of the PNG.
    """
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    edges = np.linspace(0.0, 1.0, len(reliability.count) + 1)
    filled = reliability.count > 0
    upper.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="calibrated")
    accuracy, count = reliability.accuracy[filled], reliability.count[filled]
    ends = np.array([wilson(round(a * n), n) for a, n in zip(accuracy.tolist(), count.tolist(), strict=True)])
    upper.errorbar(
        reliability.confidence[filled],
        accuracy,
        yerr=np.abs(ends.T - accuracy),
        fmt="o",
        color=_BLUE,
        ecolor=_PALE,
        elinewidth=2,
        label="this head, 95 % interval",
    )
    upper.set(ylabel="share that was right", xlim=(0, 1), ylim=(0, 1.02))
    upper.set_title(f"Expected calibration error {reliability.ece:.4f}", fontsize=11)
    upper.legend(loc="best", frameon=False)
    lower.bar(edges[:-1], reliability.count, width=np.diff(edges), align="edge", color=_BLUE, edgecolor="white")
    lower.set(xlabel="probability of the predicted class", ylabel="rows")
    _tidy(upper, lower)
    figure.savefig(path, dpi=_DPI)
    return path


def draw_selection(
    chains: Sequence[tuple[str, Sequence[float], Sequence[float], Sequence[float]]],
    *,
    chosen: tuple[float, float],
    parameter: str,
    path: Path,
    score: str = "validation accuracy",
) -> Path:
    """Draw the validation score against the hyper-parameter, one line a chain, and mark the candidate chosen.

    Args:
        chains: for each its label (may be empty), and of its candidates the values of the parameter, mean scores and
            standard errors.
        chosen: value and mean score of the candidate chosen.
        parameter: its name. The axis is logarithmic where all values are above 0.
        path: of the PNG.
        score: what the scores are.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_prop_cycle(color=_CHAINS)
    for label, values, scores, errors in chains:
        order = np.argsort(values)
        x, y, e = (np.asarray(each, np.float64)[order] for each in (values, scores, errors))
        (line,) = axes.plot(x, y, "o-", markersize=4, linewidth=1.5, label=label or None)
        axes.fill_between(x, y - e, y + e, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.plot(
        *([part] for part in chosen),
        marker="o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor="black",
        markeredgewidth=1.8,
        linestyle="none",
        label=f"chosen: {chosen[0]:g}",
    )
    if all(value > 0 for _, values, _, _ in chains for value in values):
        axes.set_xscale("log")
    axes.set(xlabel=parameter, ylabel=f"{score} (band: standard error)")
    axes.legend(frameon=False)
    _tidy(axes)
    figure.savefig(path, dpi=_DPI)
    return path


def draw_learning_curve(
    sizes: Sequence[int],
    accuracies: Sequence[Sequence[float]],
    *,
    intervals: Sequence[tuple[float, float]],
    law: PowerLaw | None,
    path: Path,
) -> Path:
    """Draw test accuracy against the number of training rows, and where it is going.

    Args:
        sizes: of the training sets, ascending.
        accuracies: for each size, those of its seeds.
        intervals: for each size, the 95 % interval of the mean over seeds.
        law: drawn up to twice the largest size with its forecast there, where given.
        path: of the PNG.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    means = np.array([np.mean(each) for each in accuracies])
    reach = np.abs(np.asarray(intervals, np.float64).T - means)
    axes.errorbar(
        sizes, means, yerr=reach, fmt="_", markersize=14, color=_BLUE, capsize=3, label="mean of seeds, 95 % interval"
    )
    flat = [(n, accuracy) for n, each in zip(sizes, accuracies, strict=True) for accuracy in each]
    axes.plot(*zip(*flat, strict=True), "o", color=_GREY, markersize=3.5, alpha=0.8, label="one seed")
    ticks = list(sizes)
    if law is not None:
        x = np.geomspace(min(sizes), law.twice.n, 200)
        power = f"{law.a:.3g} n$^{{-{law.b:.3g}}}$" + (f" + {law.c:.3g}" if law.c > 0 else "")
        axes.plot(x, 1.0 - law.predict(x), "--", color=_BLUE, linewidth=1.2, label=f"error = {power}")
        low, high = law.twice.accuracy - law.twice.low, law.twice.high - law.twice.accuracy
        axes.errorbar(
            [law.twice.n],
            [law.twice.accuracy],
            yerr=[[low], [high]],
            fmt="D",
            color=_ORANGE,
            capsize=3,
            label=f"twice the data: {law.twice.accuracy:.3f} ({law.twice.low:.3f}–{law.twice.high:.3f})",
        )
        ticks.append(law.twice.n)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30)
    axes.set_xticks([], minor=True)
    axes.set(xlabel="training rows", ylabel="test accuracy")
    axes.legend(frameon=False, loc="lower right")
    _tidy(axes)
    figure.savefig(path, dpi=_DPI)
    return path


def _tidy(*each: Axes) -> None:
    for axes in each:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
