"""The history of a fine-tuning in, a picture out. Needs the ``plots`` extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_TRAIN, _VAL, _GREY = "#8a8a8a", "#2b6ca3", "#b9b9b9"


def draw_history(history: Sequence[Mapping[str, Any]], *, best_epoch: int, path: Path) -> Path:
    """Draw loss and accuracy by epoch, of training and validation, with the best epoch and where phases begin.

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
