"""Numbers of a run in, pictures out. Needs the ``plots`` extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray


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
    figure.savefig(path, dpi=150)
    return path
