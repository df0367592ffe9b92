"""The pictures: PNGs are written, and what they show lies where the numbers say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from heads.evidence.calibration import reliability
from heads.evidence.metrics import wilson
from heads.evidence.power_law import fit_power_law
from heads.plots import draw_confusion, draw_learning_curve, draw_reliability, draw_selection


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, which the functions do not return."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


def marks(axes: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the line with this label is."""
    (line,) = (line for line in axes.get_lines() if str(line.get_label()).startswith(label))
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_confusion(tmp_path: Path) -> None:
    assert is_png(draw_confusion(np.array([[3, 1], [0, 4]]), ["ants", "bees"], tmp_path / "a.png"))


def test_reliability_marks_each_filled_bin(tmp_path: Path, drawn: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    scores = 2 * rng.normal(size=(400, 3))
    found = reliability(scores, rng.integers(0, 3, 400))
    assert is_png(draw_reliability(found, tmp_path / "a.png"))
    upper, lower = drawn[0].axes
    x, y = np.transpose(upper.containers[0].lines[0].get_xydata())
    filled = found.count > 0
    assert 0 < filled.sum() < 15  # three classes leave bins below 1/3 empty
    np.testing.assert_array_equal(x, found.confidence[filled])
    np.testing.assert_array_equal(y, found.accuracy[filled])
    bars = upper.containers[0].lines[2][0].get_segments()
    expected = [wilson(round(a * n), int(n)) for a, n in zip(y, found.count[filled], strict=True)]
    np.testing.assert_allclose([bar[:, 1] for bar in bars], expected, atol=1e-12)
    assert [patch.get_height() for patch in lower.patches] == found.count.tolist()


def test_selection_marks_the_candidate_chosen(tmp_path: Path, drawn: list[Figure]) -> None:
    values, scores = [100.0, 1.0, 0.01], [0.7, 0.9, 0.8]
    chains = [("lbfgs", values, scores, [0.02] * 3), ("adam", values, [0.6, 0.7, 0.75], [0.02] * 3)]
    assert is_png(draw_selection(chains, chosen=(1.0, 0.9), parameter="alpha", path=tmp_path / "a.png"))
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "alpha"
    x, y = marks(axes, "chosen: 1")
    assert (x.tolist(), y.tolist()) == ([1.0], [0.9])
    x, y = marks(axes, "lbfgs")
    assert (x.tolist(), y.tolist()) == ([0.01, 1.0, 100.0], [0.8, 0.9, 0.7])


def test_a_parameter_that_may_be_0_has_no_log_axis(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_selection([("", [0.0, 1.0], [0.7, 0.8], [0, 0])], chosen=(0.0, 0.7), parameter="s", path=tmp_path / "a.png")
    assert drawn[0].axes[0].get_xscale() == "linear"


@pytest.mark.parametrize("n_sizes", [2, 4])
def test_learning_curve_ends_at_the_forecast(tmp_path: Path, drawn: list[Figure], n_sizes: int) -> None:
    sizes = [100, 200, 400, 800][:n_sizes]
    accuracies = [[1 - n**-0.5, 1 - 1.1 * n**-0.5] for n in sizes]
    errors = 1 - np.ravel(accuracies)
    law = fit_power_law(np.repeat(sizes, 2), errors, n_test=1000)
    intervals = [(a - 0.03, a + 0.02) for a, _ in accuracies]
    path = draw_learning_curve(sizes, accuracies, intervals=intervals, law=law, path=tmp_path / "a.png")
    assert is_png(path)
    (axes,) = drawn[0].axes
    ends = [container.lines[0].get_xydata().tolist() for container in axes.containers]
    np.testing.assert_allclose(ends[0], [[n, np.mean(each)] for n, each in zip(sizes, accuracies, strict=True)])
    assert (law is None) == (n_sizes == 2)
    assert len(ends) == (1 if law is None else 2)
    if law is not None:
        np.testing.assert_allclose(ends[1], [[1600, law.twice.accuracy]])
        np.testing.assert_allclose(marks(axes, "error")[1][-1], law.twice.accuracy)
