"""Start functions and commands in processes of their own that need not import torch again.

A server process imports torch and the three packages once, starts no threads, and forks a child for each call. A child
is a process like any other: it has a pid to signal, streams to read and an exit status.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

#: What the server imports, of this project and of what it is slow to import.
PRELOADED = (
    "torch",
    "torchvision",
    "timm",
    "sklearn.linear_model",
    "featcache.embedding.embedder",
    "finetune.tuned_run",
)

#: Python's ``-c``, for a script that is to heed SIGINT: a shell's background jobs ignore it, and hand that on to their
#: children.
HEED = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(list(PRELOADED))


#: For `kill_all`.
_started: list[Forked] = []


def kill_all() -> None:
    """End what a test that failed has left: Python would wait for it at its own end."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.wait()


class Forked:
    """A forked process, with what tests use of ``subprocess.Popen``.

    Args:
        function: what it calls; pickled by name, so of a module. What it returns becomes the exit status.
        arguments: for the function.
        folder: where it works, and where its streams go, each into a file.
        environment: variables beside those of this process.
    """

    def __init__(
        self,
        function: Callable[..., int | None],
        *arguments: Any,
        folder: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        number = len(list(folder.glob(".stdout-*")))
        self.paths = [folder / f".{stream}-{number}" for stream in ("stdout", "stderr")]
        for path in self.paths:
            path.touch()
        variables = {**os.environ, **(environment or {})}
        self._process = _server.Process(target=_call, args=(function, arguments, folder, self.paths, variables))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        _started.append(self)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 100) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.paths[0].name, timeout)
        return self._process.exitcode

    def communicate(self, timeout: float = 100) -> tuple[str, str]:
        """Wait for its end; what it wrote to stdout and stderr."""
        self.wait(timeout)
        out, err = (path.read_text() for path in self.paths)
        return out, err

    def stdout_line(self, text: str, timeout: float = 60) -> str:
        """Wait until it has printed a line with a text."""
        end = time.monotonic() + timeout
        while True:
            ended = self.poll() is not None  # before the last look at what it printed
            for line in self.paths[0].read_text().splitlines():
                if text in line:
                    return line
            assert not ended, [path.read_text() for path in self.paths]
            assert time.monotonic() < end, [path.read_text() for path in self.paths]
            time.sleep(0.02)

    def send_signal(self, number: signal.Signals) -> None:
        """Nothing if it has ended; its server has then waited for it, and its number may be another's."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def fork_command(command: str, *flags: object, folder: Path, environment: dict[str, str] | None = None) -> Forked:
    """A command of ``bin/``, such as "embed"."""
    return Forked(_command, command, [str(flag) for flag in flags], folder=folder, environment=environment)


def fork_ranks(folder: Path, n_ranks: int, function: Callable[..., int | None], *arguments: object) -> list[Forked]:
    """What torchrun starts, without it; each calls the function."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(n_ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    each = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(n_ranks)]
    return [Forked(function, *arguments, folder=folder, environment=variables) for variables in each]


#: What `embed_slowly` waits for, in the folder where it works.
GO_ON = "go on"


def embed_slowly(flags: list[str]) -> int:
    """bin/embed, which after eight batches waits for the file `GO_ON`, so that it can be ended midway.

    A block counts as soon as it is written, not some seconds later.
    """
    from featcache.build import block_writer
    from featcache.commands import embed as embed_command
    from featcache.embedding.forward_passes import TrunkPasses

    features = TrunkPasses.features
    done: list[Any] = []

    def slow(self: TrunkPasses, images: Any) -> Any:
        done.append(images)
        end = time.monotonic() + 100
        while len(done) > 8 and not Path(GO_ON).exists() and time.monotonic() < end:
            time.sleep(0.02)
        return features(self, images)

    TrunkPasses.features = slow  # type: ignore[method-assign]
    block_writer.COMMIT_SECONDS = 0
    return embed_command.main(flags)


def embed_in_blocks_that_count(flags: list[str]) -> int:
    """bin/embed, a block of which counts as soon as it is written, and which takes its time."""
    from featcache.build import block_writer
    from featcache.commands import embed as embed_command
    from featcache.embedding.forward_passes import TrunkPasses

    features = TrunkPasses.features

    def slower(self: TrunkPasses, images: Any) -> Any:
        time.sleep(0.02)
        return features(self, images)

    TrunkPasses.features = slower  # type: ignore[method-assign]
    block_writer.COMMIT_SECONDS = 0
    return embed_command.main(flags)


def _command(command: str, flags: list[str]) -> int | None:
    import runpy

    path = Path(__file__).resolve().parents[1] / "bin" / command
    sys.argv = [str(path), *flags]
    runpy.run_path(str(path), run_name="__main__")  # ends in SystemExit
    raise AssertionError(command)


def _call(
    function: Callable[..., int | None], arguments: Any, folder: Path, paths: list[Path], variables: dict[str, str]
) -> None:
    """In the child: streams, variables and signals as a shell's child has them."""
    for number, path in enumerate(paths, start=1):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), line_buffering=True, write_through=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), line_buffering=True, write_through=True)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    # a shell's background jobs ignore SIGINT, and hand that on to their children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    torch.set_num_threads(1)
    sys.exit(function(*arguments))
