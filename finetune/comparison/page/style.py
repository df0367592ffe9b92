"""What draws on axes in, a picture for light and for dark pages out, in one style. Needs matplotlib."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

#: Narrow, so that on a phone, where a picture is as wide as the screen, its letters are about as large as the text's.
WIDTH = 4.2
_DPI = 220


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours: of the page behind, of text and axes, of the grid, and of series, in order."""

    paper: str
    ink: str
    muted: str
    grid: str
    series: tuple[str, ...]
    ramp: tuple[str, str]


#: Okabe and Ito's palette (2008, "Color universal design"), darkened or lightened until each colour has a contrast of
#: at least 3 to 1 with the page; markers and dashes tell series apart where colours do not.
LIGHT = Theme(
    paper="#ffffff",
    ink="#1c2733",
    muted="#5b6875",
    grid="#dfe4e9",
    series=("#0072b2", "#c24e00", "#00855f", "#a9467f", "#2a8fc4", "#a87400", "#6b4fa0", "#555f69"),
    ramp=("#f4f8fb", "#005b8f"),
)
DARK = Theme(
    paper="#171d24",
    ink="#e6eaee",
    muted="#9aa6b2",
    grid="#303943",
    series=("#5ab4ee", "#ff9655", "#3fcfa2", "#e79bc6", "#a8dcfa", "#efc04f", "#b9a4ec", "#b9c2cb"),
    ramp=("#1d2630", "#74c2f5"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "*")
DASHES: tuple[object, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.5, 1.2, 1.5)))


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as the page shows it.

    Attributes:
        name: of its file, without the ending.
        title, caption: what it shows, and how to read it.
        alt: its numbers in words.
        light, dark: PNG files.
        width, height: in CSS pixels.
    """

    name: str
    title: str
    caption: str
    alt: str
    light: bytes
    dark: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Mark:
    """How a series is drawn: the same colour, marker and dashes in every picture."""

    number: int

    def color(self, theme: Theme) -> str:
        return theme.series[self.number % len(theme.series)]

    @property
    def marker(self) -> str:
        return MARKERS[self.number % len(MARKERS)]

    @property
    def dashes(self) -> object:
        # Where a colour comes again, its dashes differ.
        return DASHES[(self.number + self.number // len(LIGHT.series)) % len(DASHES)]

    def line(self, theme: Theme, *, hollow: bool = False) -> dict[str, Any]:
        """What ``Axes.plot`` takes for a line with markers."""
        face = theme.paper if hollow else self.color(theme)
        return {
            "color": self.color(theme), "marker": self.marker, "linestyle": self.dashes, "markerfacecolor": face,
        }  # fmt: skip

    def point(self, theme: Theme, *, hollow: bool = False) -> dict[str, Any]:
        """What ``Axes.plot`` takes for a single point."""
        line = self.line(theme, hollow=hollow)
        return {**line, "linestyle": "none", "markersize": 7.5, "markeredgewidth": 1.6}


def picture(
    name: str,
    draw: Callable[[Axes, Theme], None],
    *,
    title: str,
    caption: str,
    alt: str,
    height: float = 3.1,
) -> Picture:
    """Draw a picture for light pages and once more for dark ones.

    Args:
        name: of its file.
        draw: draws on the axes that it is given, in the theme's colours.
        title, caption, alt: as in `Picture`.
        height: in inches; it is `WIDTH` wide.
    """
    light, dark = (_png(draw, theme, height) for theme in (LIGHT, DARK))
    size = {"width": round(WIDTH * 96), "height": round(height * 96)}
    return Picture(name=name, title=title, caption=caption, alt=alt, light=light, dark=dark, **size)


def legend_below(axes: Axes, theme: Theme, *, columns: int = 3) -> None:
    """A legend under the axes, where it hides nothing."""
    _, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    columns = max(1, min(columns, len(labels), 60 // (max(map(len, labels)) + 6)))
    axes.figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        labelcolor=theme.ink,
        handlelength=2.2,
        columnspacing=1.4,
    )


def _png(draw: Callable[[Axes, Theme], None], theme: Theme, height: float) -> bytes:
    settings: Any = {
        "font.size": 9.5,
        "text.parse_math": False,  # names of classes are names, whatever they hold
        "text.color": theme.ink,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.ink,
        "axes.facecolor": theme.paper,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "lines.linewidth": 1.7,
        "lines.markersize": 4.5,
        "legend.fontsize": 9,
    }
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for it; the page has the name
        figure = Figure(figsize=(WIDTH, height), dpi=_DPI, layout="constrained", facecolor=theme.paper)
        canvas: Any = FigureCanvasAgg(figure)
        draw(figure.subplots(), theme)
        canvas.draw()  # savefig would draw it twice
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", dpi=(_DPI, _DPI))
    return buffer.getvalue()
