"""Finished runs in; their confusion matrices, and validation scores against what was chosen by them, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from finetune.comparison.page.style import WIDTH, Mark, Picture, Theme, legend_below, picture
from finetune.comparison.page.words import short
from heads.evidence.confusions import most_confused
from heads.publishing import lines_along
from heads.runs import Run

#: Matrices of more classes have no numbers in their cells, and of more still no names at their sides.
_WITH_NUMBERS, _WITH_NAMES = 12, 30
_TOLD = 5


def confusion_picture(run: Run, *, name: str, method: str) -> Picture:
    """Draw how many test rows of each class were predicted as which.

    Args:
        run: its predictions.
        name: of the picture.
        method: what made it.
    """
    names = run.record["dataset"]["class_names"]
    labels, scores = run.predictions["test_labels"], run.predictions["test_scores"]
    predicted = scores.argmax(axis=1)
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    pairs = most_confused(labels, predicted, run.predictions["test_ids"], len(names), limit=_TOLD)
    told = "; ".join(f"{p.count} of class {names[p.true]} taken for {names[p.predicted]}" for p in pairs)
    right = int(np.trace(counts))
    return picture(
        name,
        lambda axes, theme: _draw_confusion(axes, theme, counts, names),
        title=f"Confusions of {method}",
        caption="Rows are true classes, columns predicted ones; the darker, the larger the share of the row.",
        alt=f"Confusion matrix of {method}: {right:,} of {len(labels):,} test images are right. "
        + (f"Most frequent mistakes: {told}." if told else "There are no mistakes."),
        height=3.5 if len(names) <= 3 else WIDTH,
    )


def selection_picture(run: Run, *, method: str) -> Picture | None:
    """Draw the validation score of a head's candidates; None where there was nothing to choose.

    Args:
        run: of a head.
        method: its name.
    """
    selection = run.record["selection"]
    balanced = selection.get("select_by") == "balanced-accuracy"
    key, score = ("val_balanced_accuracy", "balanced accuracy") if balanced else ("val_accuracy", "accuracy")
    scored = [each for each in selection["candidates"] if each.get(key) is not None]
    chosen = run.record["params"]
    for parameter, value in chosen.items():
        numeric = parameter != "epochs" and isinstance(value, int | float)
        lines = lines_along(parameter, scored, key) if numeric else []
        if any(len(values) > 1 for _, values, _, _ in lines):
            break
    else:
        return None

    def draw(axes: Axes, theme: Theme) -> None:
        for number, (label, values, scores, errors) in enumerate(lines):
            order = np.argsort(values)
            x, y, e = (np.asarray(each, np.float64)[order] for each in (values, scores, errors))
            mark = Mark(number)
            axes.fill_between(x, y - e, y + e, color=mark.color(theme), alpha=0.14, linewidth=0)
            axes.plot(x, y, label=short(label, 30) if len(lines) > 1 else None, **mark.line(theme))
        axes.axvline(chosen[parameter], color=theme.muted, linestyle=":", linewidth=1.4)
        _scale(axes, [value for _, values, _, _ in lines for value in values])
        axes.set(xlabel=f"{parameter} (dotted: chosen, {chosen[parameter]:g})", ylabel=f"validation {score}")
        legend_below(axes, theme)

    n = sum(len(values) for _, values, _, _ in lines)
    best = max(max(scores) for _, _, scores, _ in lines)
    return picture(
        "selection",
        draw,
        title=f"Choosing {parameter} of {method}",
        caption=f"Bands are standard errors. {selection['how'][:1].upper()}{selection['how'][1:]}.",
        alt=f"Validation {score} of {n} candidates by {parameter}; the highest is {best:.3f}, chosen was "
        f"{parameter} {chosen[parameter]:g}.",
        height=3.7 if len(lines) > 1 else 3.1,
    )


def trials_picture(
    trials: Mapping[str, Sequence[tuple[float, float]]], numbers: Mapping[str, int], *, suffix: str = ""
) -> Picture:
    """Draw the validation accuracy of the learning rates that fine-tuning tried.

    Args:
        trials: by method, rates of the head and the validation accuracy that each came to.
        numbers: of the methods, for their marks.
        suffix: of the picture's name.
    """

    def draw(axes: Axes, theme: Theme) -> None:
        for method, tried in trials.items():
            rates, scores = zip(*sorted(tried), strict=True)
            axes.plot(rates, scores, label=short(method), **Mark(numbers[method]).line(theme))
        _scale(axes, [rate for tried in trials.values() for rate, _ in tried])
        axes.set(xlabel="learning rate of the head", ylabel="validation accuracy")
        legend_below(axes, theme)

    told = (
        f"{method}: {', '.join(f'{score:.3f} at {rate:.2g}' for rate, score in sorted(tried))}."
        for method, tried in trials.items()
    )
    return picture(
        f"rates{suffix}",
        draw,
        title="Trials of learning rates",
        caption="Of the first seed. The rate with the highest validation accuracy was taken.",
        alt=f"Validation accuracy by learning rate. {' '.join(told)}",
        height=3.7,
    )


def range_test_picture(
    tests: Mapping[str, Mapping[str, Any]], numbers: Mapping[str, int], *, suffix: str = ""
) -> Picture:
    """Draw the smoothed loss of range tests against the learning rate, and where each suggestion lies.

    Args:
        tests: by method, what `finetune.rate_finder.FoundRates.to_json` told.
        numbers: of the methods, for their marks.
        suffix: of the picture's name.
    """

    def draw(axes: Axes, theme: Theme) -> None:
        for method, test in tests.items():
            mark = Mark(numbers[method])
            line = {**mark.line(theme), "marker": "none"}
            axes.plot(test["rates"], test["smoothed"], label=short(method), **line)
            near = int(np.argmin(np.abs(np.log(np.array(test["rates"]) / test["suggested"]))))
            axes.plot([test["rates"][near]], [test["smoothed"][near]], **mark.point(theme))
        _scale(axes, [rate for test in tests.values() for rate in test["rates"]])
        axes.set(xlabel="learning rate of the head", ylabel="smoothed training loss")
        legend_below(axes, theme)

    told = " ".join(f"{method}: {test['suggested']:.2g}." for method, test in tests.items())
    return picture(
        f"range-tests{suffix}",
        draw,
        title="Learning-rate range tests",
        caption="Some steps, each at a higher rate than the one before; marks are the rates that they suggest.",
        alt=f"Smoothed training loss against a rising learning rate. Suggested rates: {told}",
        height=3.7,
    )


def _draw_confusion(axes: Axes, theme: Theme, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap=LinearSegmentedColormap.from_list("ramp", theme.ramp), vmin=0, vmax=1, aspect="equal")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    places = range(len(names))
    if len(names) <= _WITH_NUMBERS:
        for true in places:
            for predicted in places:
                if count := int(counts[true, predicted]):
                    color = theme.paper if shares[true, predicted] > 0.5 else theme.ink
                    axes.text(predicted, true, f"{count:,}", ha="center", va="center", color=color, fontsize=8.5)
    if len(names) <= _WITH_NAMES:
        told = [short(name, 14) for name in names]
        size: dict[str, Any] = {"fontsize": 9 if len(names) <= _WITH_NUMBERS else 6}
        turned = 0 if max(map(len, told)) * len(told) <= 40 else 90
        axes.set_xticks(places, told, rotation=turned, **size)
        axes.set_yticks(places, told, **size)
    else:
        axes.xaxis.set_major_locator(NullLocator())
        axes.yaxis.set_major_locator(NullLocator())
    axes.set(xlabel="predicted", ylabel="true")


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where all values are above 0."""
    if values and min(values) > 0 and max(values) > min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(
            LogLocator(subs=(1.0, 3.0) if max(values) / min(values) < 300 else (1.0,), numticks=7)
        )
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_locator(NullLocator())
