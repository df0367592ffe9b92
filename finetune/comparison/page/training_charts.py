"""Histories of fine-tunings in; loss and accuracy against epoch, all methods side by side, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from finetune.comparison.page.style import Mark, Picture, Theme, legend_below, picture
from finetune.comparison.page.words import short

History = Sequence[Mapping[str, Any]]
_Curve = tuple[list[int], list[float], list[float], list[float]]

#: A key of a history's entries, the picture's name and title, and the label of its axis.
_SHOWN = (
    ("train_loss", "training-loss", "Training loss", "training loss"),
    ("train_accuracy", "training-accuracy", "Training accuracy", "training accuracy"),
    ("val_accuracy", "validation-accuracy", "Validation accuracy", "validation accuracy"),
    ("test_accuracy", "test-accuracy", "Test accuracy, used for no choice", "test accuracy"),
)
_TEST_NOTE = " Recorded because that was asked for; no rate, epoch or method was chosen by it."


def training_pictures(
    histories: Mapping[str, Sequence[History]], numbers: Mapping[str, int], *, suffix: str = ""
) -> list[Picture]:
    """Draw each measure that the histories have against the epoch.

    Args:
        histories: by method, for each seed the ``history`` of its run; epochs of a second training are left out.
        numbers: of the methods, for their marks.
        suffix: of the pictures' names.
    """
    first = {
        method: [[entry for entry in history if not str(entry["phase"]).startswith("refit:")] for history in seeds]
        for method, seeds in histories.items()
    }
    pictures = []
    for key, name, title, label in _SHOWN:
        curves = {method: curve for method, seeds in first.items() if (curve := _mean_curve(seeds, key))[0]}
        if not curves:
            continue
        several = any(len(seeds) > 1 for seeds in histories.values())
        band = " Lines are means over seeds, bands go from the lowest to the highest." if several else ""
        pictures.append(
            picture(
                name + suffix,
                partial(_draw, curves=curves, numbers=numbers, label=label),
                title=title,
                caption=f"After each epoch.{band}{_TEST_NOTE if key == 'test_accuracy' else ''}",
                alt=f"{title} by epoch. " + " ".join(_told(method, curve) for method, curve in curves.items()),
                height=3.5,
            )
        )
    return pictures


def _mean_curve(seeds: Sequence[History], key: str) -> _Curve:
    """Epochs, and the mean, lowest and highest value over seeds at each."""
    values: dict[int, list[float]] = {}
    for history in seeds:
        for entry in history:
            if entry.get(key) is not None:
                values.setdefault(int(entry["epoch"]), []).append(float(entry[key]))
    epochs = sorted(values)
    each = [values[epoch] for epoch in epochs]
    return epochs, [sum(v) / len(v) for v in each], [min(v) for v in each], [max(v) for v in each]


def _draw(axes: Axes, theme: Theme, *, curves: Mapping[str, _Curve], numbers: Mapping[str, int], label: str) -> None:
    for method, (epochs, mean, low, high) in curves.items():
        mark = Mark(numbers[method])
        axes.plot(epochs, mean, label=short(method), **mark.line(theme))
        axes.fill_between(epochs, low, high, color=mark.color(theme), alpha=0.16, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="epoch", ylabel=label)
    legend_below(axes, theme)


def _told(method: str, curve: _Curve) -> str:
    epochs, mean, _, _ = curve
    if len(epochs) == 1:
        return f"{method}: {mean[0]:.3f} at epoch {epochs[0]}."
    return f"{method}: from {mean[0]:.3f} at epoch {epochs[0]} to {mean[-1]:.3f} at epoch {epochs[-1]}."
