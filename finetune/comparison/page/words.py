"""Numbers in, the way that the page writes them out."""

from __future__ import annotations

from featcache.common.printable import printable

NONE = "–"
_MINUS = "−"


def accuracy(share: float | None) -> str:
    """A share, or a loss, to three digits."""
    return NONE if share is None else f"{share:.3f}"


def interval(ends: tuple[float, float] | None) -> str:
    """An interval of shares."""
    return NONE if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def points(share: float | None, *, digits: int = 1) -> str:
    """A difference of shares as percentage points with its sign."""
    if share is None:
        return NONE
    told = f"{abs(100 * share):.{digits}f}"
    return told if float(told) == 0 else f"{'+' if share > 0 else _MINUS}{told}"


def points_interval(ends: tuple[float, float]) -> str:
    """An interval of differences, as percentage points."""
    return f"{points(ends[0])} to {points(ends[1])}"


def p_value(p: float | None) -> str:
    """A p-value, to the digits that matter."""
    if p is None:
        return NONE
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def parameters(count: int | None) -> str:
    """How many, to three digits."""
    if count is None:
        return NONE
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def megabytes(size: float | None) -> str:
    """A size in units of 10^6 bytes."""
    if size is None:
        return NONE
    return f"{size / 1e3:.3g} GB" if size >= 999.5 else f"{size:.3g} MB"


def duration(seconds: float | None) -> str:
    """A time in the unit that suits it."""
    if seconds is None:
        return NONE
    if seconds == 0:
        return "0 s"
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1000 * seconds:.0f} ms"


def short(name: str, longest: int = 22) -> str:
    """A name fit for an axis: printable, and cut where it is long."""
    told = printable(name)
    return told if len(told) <= longest else told[: longest - 1] + "…"
