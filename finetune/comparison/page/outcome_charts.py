"""Points of a comparison in; accuracy and loss as bars, differences, and accuracy against seconds and size, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from finetune.comparison.page.points import Point, named
from finetune.comparison.page.style import Mark, Picture, Theme, legend_below, picture
from finetune.comparison.page.words import duration, short
from finetune.comparison.results import Difference, Interval

_KINDS = "Outlined bars are heads on cached features, filled ones were fine-tuned."
#: Where the axis of seconds may have ticks.
_DURATIONS = (1e-3, 1e-2, 0.1, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10_800, 36_000, 86_400, 259_200)


def accuracy_picture(points: Sequence[Point]) -> Picture:
    """Draw test accuracy as bars, with its interval over images."""
    points = sorted(points, key=lambda point: point.accuracy, reverse=True)
    values, ends = [point.accuracy for point in points], [point.accuracy_ci95 for point in points]
    told = (f"{p.name}: {p.accuracy:.3f} ({p.accuracy_ci95[0]:.3f} to {p.accuracy_ci95[1]:.3f})." for p in points)
    return picture(
        "accuracy",
        partial(_draw_bars, points=points, values=values, ends=ends, label="test accuracy"),
        title="Test accuracy",
        caption=f"Whiskers are 95 % intervals over the test images. {_KINDS}",
        alt=f"Bars of test accuracy with 95 % intervals. {' '.join(told)}",
        height=_height(len(points)),
    )


def loss_picture(points: Sequence[Point]) -> Picture | None:
    """Draw test loss as bars; None where no method has one."""
    with_loss = sorted(((p.test_loss, p) for p in points if p.test_loss is not None), key=lambda pair: pair[0])
    if not with_loss:
        return None
    without = [point.name for point in points if point.test_loss is None]
    lacking = f" Without probabilities, so without loss: {', '.join(without)}." if without else ""
    values, shown = [loss for loss, _ in with_loss], [point for _, point in with_loss]
    return picture(
        "loss",
        partial(_draw_bars, points=shown, values=values, ends=None, label="test loss (cross-entropy, nats)"),
        title="Test loss",
        caption=f"Lower is better; it also counts how sure a model was.{lacking}",
        alt=f"Bars of test loss. {' '.join(f'{point.name}: {loss:.3f}.' for loss, point in with_loss)}",
        height=_height(len(shown)),
    )


def difference_picture(differences: Sequence[Difference], numbers: Mapping[str, int]) -> Picture:
    """Draw each method's accuracy less the best head's, with its interval.

    Args:
        differences: against one reference.
        numbers: of the methods, for their marks.
    """
    several = len({each.backbone for each in differences} | {each.against_backbone for each in differences}) > 1
    names = [named(each.backbone, each.method, several=several) for each in differences]
    against = named(differences[0].against_backbone, differences[0].against, several=several)
    told = (
        f"{name}: {100 * each.difference:+.1f} ({100 * each.ci95[0]:+.1f} to {100 * each.ci95[1]:+.1f})"
        f"{'' if each.significant else ', not significant'}."
        for name, each in zip(names, differences, strict=True)
    )

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axvline(0, color=theme.muted, linewidth=1.2)
        for y, each in enumerate(differences):
            mark = Mark(numbers[each.method])
            style = {"color": mark.color(theme), "solid_capstyle": "round"}
            axes.plot([100 * end for end in each.ci95], [y, y], linewidth=2.4, alpha=0.75, **style)  # type: ignore[arg-type]
            axes.plot([100 * each.difference], [y], **mark.point(theme, hollow=not each.significant))
        _name_rows(axes, names)
        axes.set_xlabel(f"points of test accuracy above {short(against)}")

    return picture(
        "differences",
        draw,
        title="Difference from the best head",
        caption="Lines are 95 % intervals on the same test images. Hollow marks are not significant, which leaves both "
        "signs possible.",
        alt=f"Test accuracy less that of {against}, in points. {' '.join(told)}",
        height=_height(len(differences)),
    )


def cost_picture(points: Sequence[Point], *, suffix: str = "") -> Picture:
    """Draw test accuracy against the seconds that a method takes from images to a model, with the Pareto front.

    Args:
        points: of one backbone and one training size.
        suffix: of the picture's name.
    """
    seconds = [max(point.seconds, 1e-3) for point in points]
    front = [points[i] for i in pareto_front(seconds, [point.accuracy for point in points])]
    best = ", ".join(point.method for point in front)
    told = (f"{p.method}: {p.accuracy:.3f} in {duration(p.seconds)}." for p in sorted(points, key=lambda p: p.seconds))

    def draw(axes: Axes, theme: Theme) -> None:
        axes.set_xscale("log")
        low, high = min(seconds) / 1.6, max(seconds) * 1.6
        x, y = [max(point.seconds, 1e-3) for point in front], [point.accuracy for point in front]
        style = {"color": theme.muted, "drawstyle": "steps-post", "linewidth": 1.2, "linestyle": "--", "zorder": 1}
        axes.plot([*x, high], [*y, y[-1]], **style)  # type: ignore[arg-type]
        for point, each in zip(points, seconds, strict=True):
            mark = Mark(point.number).point(theme, hollow=point.kind == "head")
            axes.plot([each], [point.accuracy], label=short(point.method), **mark)
        ticks = [tick for tick in _DURATIONS if low <= tick <= high]
        ticks = ticks[:: 1 + len(ticks) // 7] if len(ticks) > 1 else [min(seconds), max(seconds)]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
        axes.set(xlabel="time to embed and to fit", ylabel="test accuracy", xlim=(low, high))
        legend_below(axes, theme)

    return picture(
        f"cost{suffix}",
        draw,
        title="Accuracy against time",
        caption="From images to a model: embedding, fitting and the search. The dashed line is the Pareto front: "
        f"nothing is both quicker and more accurate than {best}. Hollow marks are heads.",
        alt=f"Test accuracy against time. {' '.join(told)} On the Pareto front: {best}.",
        height=3.8,
    )


def pareto_front(seconds: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """Which points have no other that is as quick and as accurate, and better in one of both; quickest first."""
    front: list[int] = []
    for i in sorted(range(len(seconds)), key=lambda i: (seconds[i], -accuracies[i])):
        if not front or accuracies[i] > accuracies[front[-1]]:
            front.append(i)
    return front


def size_picture(points: Sequence[Point], *, suffix: str = "") -> Picture:
    """Draw test accuracy against the number of training rows, one line a method.

    Args:
        points: of one backbone.
        suffix: of the picture's name.
    """
    lines: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.n_train):
        lines.setdefault(point.method, []).append(point)
    told = (f"{name}: {', '.join(f'{p.accuracy:.3f} at {p.n_train:,}' for p in line)}." for name, line in lines.items())

    def draw(axes: Axes, theme: Theme) -> None:
        axes.set_xscale("log")
        for method, line in lines.items():
            mark, hollow = Mark(line[0].number), line[0].kind == "head"
            x, y = [point.n_train for point in line], np.array([point.accuracy for point in line])
            reach = np.abs(np.array([point.accuracy_ci95 for point in line]).T - y)
            axes.errorbar(x, y, yerr=reach, fmt="none", ecolor=mark.color(theme), elinewidth=1, alpha=0.4)
            axes.plot(x, y, label=short(method), **mark.line(theme, hollow=hollow))
        ticks = sorted({point.n_train for point in points})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="training images", ylabel="test accuracy")
        legend_below(axes, theme)

    return picture(
        f"size{suffix}",
        draw,
        title="Accuracy against training size",
        caption="Whiskers are 95 % intervals over the test images. Hollow marks are heads.",
        alt=f"Test accuracy by number of training images. {' '.join(told)}",
        height=3.8,
    )


def _draw_bars(
    axes: Axes,
    theme: Theme,
    *,
    points: Sequence[Point],
    values: Sequence[float],
    ends: Sequence[Interval] | None,
    label: str,
) -> None:
    """Horizontal bars, the first on top, each with its value behind its end."""
    rows = range(len(points))
    colors = [Mark(point.number).color(theme) for point in points]
    faces = [(color, 0.0 if point.kind == "head" else 0.4) for point, color in zip(points, colors, strict=True)]
    axes.barh(rows, values, height=0.62, color=faces, edgecolor=colors, linewidth=1.5)
    tips = list(values) if ends is None else [high for _, high in ends]
    if ends is not None:
        reach = np.abs(np.array(ends).T - np.array(values))
        axes.errorbar(values, rows, xerr=reach, fmt="none", ecolor=theme.ink, elinewidth=1.3)
    longest = max(*tips, 1e-9)
    for row, value, tip in zip(rows, values, tips, strict=True):
        axes.text(tip + 0.02 * longest, row, f"{value:.3f}", va="center", fontsize=9)
    axes.set_xlim(0, 1.2 * longest)
    _name_rows(axes, [point.name for point in points])
    axes.set_xlabel(label)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _height(n_rows: int) -> float:
    return 0.9 + 0.3 * n_rows
