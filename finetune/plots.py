"""The history of a fine-tuning, or a range test, in, a picture out. Needs the ``plots`` extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from finetune.rate_finder import FoundRates

_TRAIN, _VAL, _TEST, _GREY = "#8a8a8a", "#2b6ca3", "#b5542f", "#b9b9b9"


def draw_history(history: Sequence[Mapping[str, Any]], *, best_epoch: int, path: Path) -> Path:
    """Draw loss and accuracy by epoch, of training and validation, with the best epoch and where phases begin.

    Where the history has test rows scored in every epoch, their curve is drawn too, marked as used for nothing.

    Args:
        history: as in ``run.json``; epochs of a second training, which have no validation, are left out.
        best_epoch: by validation.
        path: of the PNG.
    """
    entries = [entry for entry in history if entry["val_loss"] is not None]
    epochs = [entry["epoch"] for entry in entries]
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, colour in (("train", _TRAIN), ("val", _VAL)):
            axes.plot(epochs, [entry[f"{split}_{what}"] for entry in entries], "o-", ms=3, color=colour, label=split)
        tested = [entry for entry in entries if "test_loss" in entry]
        if tested:
            scored = [entry[f"test_{what}"] for entry in tested]
            label = "test (used for nothing)"
            axes.plot([entry["epoch"] for entry in tested], scored, ":", color=_TEST, label=label)
        for earlier, later in pairwise(entries):
            if earlier["phase"] != later["phase"]:
                axes.axvline(later["epoch"] - 0.5, color=_GREY, linestyle=":", linewidth=1)
        axes.axvline(best_epoch, color=_VAL, linewidth=0.8, alpha=0.5, label=f"best epoch, {best_epoch}")
        axes.set(xlabel="epoch", ylabel=what)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    return path


def draw_rates(found: FoundRates, *, path: Path) -> Path:
    """Draw loss by learning rate, as it was and smoothed, with the rates that it suggests.

    Args:
        found: by a range test.
        path: of the PNG.
    """
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, ".", ms=3, color=_GREY, label="each step")
    axes.plot(found.rates, found.smoothed, color=_VAL, label="smoothed")
    for name, style in (("steepest", ":"), ("valley", "-"), ("minimum_tenth", "--")):
        rate = getattr(found, name)
        label = f"{name.replace('_tenth', ' / 10')}, {rate:.2g}"
        axes.axvline(rate, color=_TRAIN, linestyle=style, linewidth=1, label=label)
    low, high = min(found.smoothed), max(found.smoothed)
    axes.set(xscale="log", xlabel="learning rate of the head", ylabel="loss")
    axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    return path
