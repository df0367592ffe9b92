"""The flag ``--exclude`` of commands that choose rows in; what it names out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featcache.commands.console import Parser
    from heads.exclusion import Exclusion


def add_exclude_flag(parser: Parser) -> None:
    """Add ``--exclude FILE``."""
    parser.add_argument(
        "--exclude",
        type=Path,
        metavar="FILE",
        help="leave out the rows that it names: an id a line, or bin/audit's findings.csv (those with exclude: yes)",
    )


def exclusion_of(arguments: argparse.Namespace) -> Exclusion | None:
    """What the file names, or None where none was given. Raises UserError where it can't be read."""
    from heads.exclusion import read_exclusion

    return None if arguments.exclude is None else read_exclusion(arguments.exclude)
