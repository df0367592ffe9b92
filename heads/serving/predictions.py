"""Class scores of images in; what is said of each image, as lines of CSV, of JSON, or of a table, out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from featcache.common.printable import printable

FORMATS = ("csv", "jsonl", "table")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is said of one image.

    Attributes:
        path: as it was given, or as its folder was.
        ranked: the likeliest classes and their probabilities (or scores), the likeliest first; empty where the image
            has no features.
        abstained: whether its class is left open.
        neighbors: ids of the nearest training images, the nearest first.
        error: why the image has no features, or nothing.
    """

    path: str
    ranked: tuple[tuple[str, float], ...] = ()
    abstained: bool = False
    neighbors: tuple[str, ...] = ()
    error: str = ""

    @property
    def class_name(self) -> str:
        """The likeliest class, or nothing."""
        return "" if self.abstained or not self.ranked else self.ranked[0][0]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a line holds.

    Attributes:
        value: what the number beside a class is: ``probability``, or ``score`` where a head has no probabilities.
        top: so many classes are shown.
        neighbors: so many ids.
        class_width: of the longest class name, for tables.
    """

    value: str
    top: int = 1
    neighbors: int = 0
    class_width: int = 8


class Writer(Protocol):
    """One of the formats."""

    def header(self) -> str:
        """What the file begins with."""

    def line(self, prediction: Prediction) -> str:
        """What is written of one image, the line's end included."""


def writer_of(format_name: str, layout: Layout) -> Writer:
    """The writer of one of ``FORMATS``."""
    writers: dict[str, Callable[[Layout], Writer]] = {"csv": CsvWriter, "jsonl": JsonWriter, "table": TableWriter}
    return writers[format_name](layout)


@dataclass(frozen=True)
class CsvWriter:
    """RFC 4180, with line ends of one character.

    Columns: path, class, probability; with several classes class_1, probability_1 and so on (the first one is there
    also where the class is left open); neighbor_1 and so on; error.
    """

    layout: Layout

    def header(self) -> str:
        value, top = self.layout.value, self.layout.top
        ranked = [f"{name}_{k}" for k in range(1, top + 1) for name in ("class", value)] if top > 1 else []
        neighbors = [f"neighbor_{k}" for k in range(1, self.layout.neighbors + 1)]
        return _csv_line(["path", "class", value, *ranked, *neighbors, "error"])

    def line(self, prediction: Prediction) -> str:
        pairs = [(name, _shown(value)) for name, value in prediction.ranked]
        ranked = [cell for pair in pairs for cell in pair] if self.layout.top > 1 else []
        ranked += [""] * (2 * self.layout.top * (self.layout.top > 1) - len(ranked))
        neighbors = [*prediction.neighbors, *[""] * (self.layout.neighbors - len(prediction.neighbors))]
        first = pairs[0][1] if pairs else ""
        return _csv_line([prediction.path, prediction.class_name, first, *ranked, *neighbors, prediction.error])


@dataclass(frozen=True)
class JsonWriter:
    """A JSON object a line; ``class`` is null where it is left open, ``error`` where there is none."""

    layout: Layout

    def header(self) -> str:
        return ""

    def line(self, prediction: Prediction) -> str:
        value = self.layout.value
        pairs = [{"class": name, value: float(_shown(number))} for name, number in prediction.ranked]
        told: dict[str, Any] = {
            "path": prediction.path,
            "class": prediction.class_name or None,
            value: pairs[0][value] if pairs else None,
        }
        if self.layout.top > 1:
            told["top"] = pairs
        if self.layout.neighbors:
            told["neighbors"] = list(prediction.neighbors)
        return json.dumps({**told, "error": prediction.error or None}) + "\n"


@dataclass(frozen=True)
class TableWriter:
    """For eyes: class, probability and path in columns; what a terminal could act on is spelled out."""

    layout: Layout

    def header(self) -> str:
        return f"{'class':{self.layout.class_width}}  {self.layout.value:>11}  path\n"

    def line(self, prediction: Prediction) -> str:
        width = self.layout.class_width
        if prediction.error:
            return printable(f"{'–':{width}}  {'–':>11}  {prediction.path}: {prediction.error}") + "\n"
        value = prediction.ranked[0][1]
        told = f"{prediction.class_name or '?':{width}}  {value:>11.4f}  {prediction.path}"
        if self.layout.top > 1:
            told += "  (" + ", ".join(f"{name} {number:.4f}" for name, number in prediction.ranked) + ")"
        if prediction.neighbors:
            told += f"  near {', '.join(prediction.neighbors)}"
        return printable(told) + "\n"


def _shown(value: float) -> str:
    """Six digits: more than two stacks agree on."""
    return f"{value:.6g}"


def _csv_line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
