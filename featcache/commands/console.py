"""What all commands share: flags, messages, progress, tables, and what becomes of errors.

Exit status 0 is done, 2 wrong usage, 1 anything else. An error is one line on stderr. With ``--json`` stdout holds one
JSON object and nothing else; all else is told on stderr.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from featcache.common.errors import RankEndedError, UsageError, UserError
from featcache.common.printable import printable
from featcache.common.ranks import ALONE, Ranks
from featcache.tables.subset import Subset


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def new_parser(prog: str, description: str) -> Parser:
    """A parser with the flags that every command has."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    common = parser.add_argument_group("common")
    common.add_argument("--cache-dir", type=Path, default=Path("features"), help="folder of the caches (features)")
    common.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of the runs (runs)")
    common.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    common.add_argument("--json", action="store_true", help="print one JSON object on stdout, nothing else")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_subset_flags(parser: Parser) -> None:
    """The flags that choose rows, the same at embedding and at fitting."""
    group = parser.add_argument_group("rows")
    group.add_argument("--classes", type=names, default=(), help="keep these classes: cat,dog,horse")
    group.add_argument("--per-class", type=int, metavar="N", help="so many training rows of each class")
    group.add_argument("--fraction", type=float, metavar="F", help="this share of the training rows of each class")
    group.add_argument(
        "--take", choices=("first", "random"), default="random", help="which rows those two take (random)"
    )
    group.add_argument("--limit", type=limits, default={}, help="the first rows of a split: train=2000,test=500")


def subset_of(arguments: argparse.Namespace) -> Subset:
    """The subset that the flags describe."""
    return Subset(
        classes=arguments.classes,
        per_class=arguments.per_class,
        fraction=arguments.fraction,
        limit=arguments.limit,
        take=arguments.take,
        seed=arguments.seed,
    )


def names(text: str) -> tuple[str, ...]:
    """``a,b,c`` as a tuple."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def limits(text: str) -> dict[str, int]:
    """``train=2000,test=500`` as a dictionary."""
    try:
        pairs = [pair.split("=") for pair in names(text)]
        return {split: int(count) for split, count in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form train=2000,test=500") from error


def numbers(text: str) -> tuple[float, ...]:
    """``0.5,0.5,0.5`` as a tuple."""
    try:
        return tuple(float(number) for number in names(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0.5,0.5,0.5") from error


class Console:
    """Where a command tells things: notes on stdout, or on stderr where stdout is for JSON or, by ``stdout_is_data``,
    for other data; ``quiet`` tells nothing.
    """

    def __init__(self, *, json_wanted: bool, quiet: bool = False, stdout_is_data: bool = False) -> None:
        self.json_wanted = json_wanted
        self.quiet = quiet
        self.notes_on_stderr = json_wanted or stdout_is_data

    def note(self, text: str) -> None:
        """A line for the user; what a terminal could act on is spelled out, for files may hold anything."""
        if self.quiet:
            return
        print(printable(text), file=sys.stderr if self.notes_on_stderr else sys.stdout, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; its first column is aligned left, the others right. Texts are spelled out as in ``note``."""
        if self.quiet:
            return
        from rich.box import SIMPLE_HEAD
        from rich.console import Console as RichConsole
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(printable(title)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for i, column in enumerate(columns):
            table.add_column(Text(printable(column)), justify="right" if i else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        stream = sys.stderr if self.notes_on_stderr else sys.stdout
        # as wide as its cells ask for: a terminal wraps a line that is too long, cells that are cut tell nothing
        natural = RichConsole(width=10_000).measure(table).maximum
        RichConsole(file=stream, width=natural, highlight=False).print(table)

    def candidate(self, label: str) -> Callable[[dict[str, Any]], None]:
        """Tells of a search's candidates on stderr, those that took over a second."""

        def tell(candidate: dict[str, Any]) -> None:
            if candidate["seconds"] > 1 and not self.quiet:
                params = ", ".join(f"{name} {value}" for name, value in candidate["params"].items())
                seconds, accuracy = candidate["seconds"], candidate["val_accuracy"]
                told = "not finite" if accuracy is None else f"{accuracy:.4f}"
                print(f"{label}: {params}: val accuracy {told} ({seconds:.1f} s)", file=sys.stderr, flush=True)

        return tell

    def result(self, value: dict[str, Any]) -> None:
        """The JSON object, where it is wanted."""
        if self.json_wanted and not self.quiet:
            print(json.dumps(value, allow_nan=False), flush=True)

    @contextmanager
    def progress(self, label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        """A function to call with what is done and what there is: a bar on a terminal, else a line now and then."""
        if self.quiet:
            yield lambda done, total: None
        elif sys.stderr.isatty():
            with _bar(label, unit) as update:
                yield update
        else:
            yield _Lines(label, unit)


@contextmanager
def _bar(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    from rich import progress
    from rich.console import Console as RichConsole

    bar = progress.Progress(
        "{task.description}",
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
        console=RichConsole(stderr=True),
    )
    meter = _Meter()
    with bar:
        task = bar.add_task(label, total=None, rate="")

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, rate=f"{meter.rate(done):,.0f} {unit}/s")

        yield update


class _Meter:
    """The rate since the first call, which tells what was done before."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None

    def rate(self, done: int) -> float:
        now = time.monotonic()
        if self.first is None:
            self.first = (done, now)
        return (done - self.first[0]) / max(now - self.first[1], 1e-9)


class _Lines:
    """Progress for a log: a line every ten seconds, with the rate and the time left."""

    def __init__(self, label: str, unit: str, interval: float = 10.0) -> None:
        self.label, self.unit, self.interval = label, unit, interval
        self.meter = _Meter()
        self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        rate = self.meter.rate(done)
        if time.monotonic() - self.last >= self.interval and rate > 0:
            self.last = time.monotonic()
            left = f"{(total - done) / rate:,.0f} s left"
            print(f"{self.label}: {done:,}/{total:,} ({rate:,.1f} {self.unit}/s, {left})", file=sys.stderr, flush=True)


def run(
    parser: Parser,
    command: Callable[[argparse.Namespace, Console], dict[str, Any]],
    argv: Sequence[str] | None,
    *,
    on_interrupt: str,
    ranks: Ranks = ALONE,
    stdout_is_data: bool = False,
) -> int:
    """Parse the flags, run the command, and turn its end into an exit status.

    Args:
        command: does the work and returns the JSON object.
        argv: the flags; None takes the process's.
        on_interrupt: how to go on after Ctrl-C, and where another rank ended, unless the exception itself says it.
        ranks: the processes that run the command together, of which the first tells; an error is told by who has it.
        stdout_is_data: whether the command itself writes to stdout, so that notes go to stderr.
    """
    arguments = parser.parse_args(argv)
    console = Console(json_wanted=arguments.json, quiet=not ranks.is_first, stdout_is_data=stdout_is_data)
    try:
        with _terminated_as_interrupted():
            console.result(command(arguments, console))
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; there is nobody to tell
        return 1
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  one line for whatever came
        if arguments.debug:
            traceback.print_exc()
        who = "" if ranks.is_alone else f"rank {ranks.rank}: "
        sys.stderr.write(f"{parser.prog}: error: {who}{_message(error, on_interrupt)}\n")  # whole, beside other ranks'
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _message(error: BaseException, on_interrupt: str) -> str:
    """What an error comes to in one line."""
    text = printable(" ".join(str(error).split()))
    if isinstance(error, RankEndedError):
        return f"another rank ended before its work was done; {text or on_interrupt}"
    if isinstance(error, UserError):
        return text
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {text or on_interrupt}"
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: run pip install -e . in featcache's folder"
    return f"{type(error).__name__}: {text[:200]} (run with --debug for the traceback)"


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, with what is done kept."""

    def interrupt(_signal: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
