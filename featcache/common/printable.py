"""Escape control characters, so that a file's text can be printed."""

from __future__ import annotations


def printable(text: object) -> str:
    """Spell out whatever a terminal could act on or a line could break at.

    That is control characters, escapes and marks of direction: an escape comes out as a backslash and ``x1b``.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
