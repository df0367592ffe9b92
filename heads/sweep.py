"""Independent pieces of work in; what becomes of each, in order, out: done here, in processes, threads or a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from featcache.common.errors import UsageError, UserError, missing_extra, one_of

Piece = TypeVar("Piece")
Result = TypeVar("Result")

BACKENDS = ("loky", "threading", "dask", "ray")
_CONNECT_S = 10  # until a scheduler that does not answer is given up


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who does the work.

    Attributes:
        jobs: how many at once; of dask its cluster decides.
        backend: joblib's: loky (processes), threading, dask or ray.
        scheduler: of dask, ``tcp://host:port``.

    Raises:
        UsageError: an unknown backend, no jobs, or a scheduler that is missing or not dask's.
    """

    jobs: int = 1
    backend: str = "loky"
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise one_of("backend", self.backend, list(BACKENDS))
        if self.jobs < 1:
            raise UsageError(f"--jobs {self.jobs}: expected a whole number of at least 1")
        if self.backend == "dask" and not self.scheduler:
            raise UsageError("--backend dask needs the cluster's address: add --scheduler tcp://host:port")
        if self.backend != "dask" and self.scheduler:
            raise UsageError(f"--scheduler is of --backend dask, not of {self.backend}: add --backend dask")

    @property
    def alone(self) -> bool:
        """Whether this process does the work itself, piece by piece."""
        return self.jobs == 1 and self.backend in ("loky", "threading")


def sweep(work: Callable[[Piece], Result], pieces: Sequence[Piece], workers: Workers) -> Iterator[Result]:
    """Do the work on each piece; the results come in the order of the pieces, each as soon as those before are there.

    Ray's come all at the end.

    Where several work at once, each has one thread for linear algebra. `work` and the pieces are sent to other
    processes, so they are to be small and to be found there: functions of modules, paths, settings.

    Raises:
        UserError: the extra or the cluster that the backend needs is not there; and whatever the work raises.
    """
    if workers.alone:
        yield from map(work, pieces)
        return
    from joblib import Parallel, delayed

    with _backend(workers):
        how = "list" if workers.backend == "ray" else "generator"  # ray's gives all together
        yield from Parallel(n_jobs=workers.jobs, return_as=how)(
            delayed(_in_one_thread)(work, piece, workers.backend != "threading") for piece in pieces
        )


def _in_one_thread(work: Callable[[Piece], Result], piece: Piece, limit: bool) -> Result:
    if not limit:  # threads share the limit that was set for all of them
        return work(piece)
    from threadpoolctl import threadpool_limits

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what the work is yet to load, such as torch
    with threadpool_limits(1):
        return work(piece)


@contextmanager
def _backend(workers: Workers) -> Iterator[None]:
    from joblib import parallel_config
    from threadpoolctl import threadpool_limits

    if workers.backend == "loky":
        with parallel_config(backend="loky", inner_max_num_threads=1):
            yield
    elif workers.backend == "threading":
        with threadpool_limits(1), parallel_config(backend="threading"):
            yield
    else:
        with _ray() if workers.backend == "ray" else _dask(workers.scheduler or ""):
            yield


@contextmanager
def _dask(scheduler: str) -> Iterator[None]:
    try:
        from dask.distributed import Client
    except ModuleNotFoundError as error:
        raise missing_extra("dask.distributed", "dask") from error
    from joblib import parallel_config

    try:
        client = Client(scheduler, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        mend = "start one with `dask scheduler`, or mend the address"
        raise UserError(f"--scheduler {scheduler}: no dask scheduler answers there; {mend}") from error
    with client, parallel_config(backend="dask", client=client, wait_for_workers_timeout=_CONNECT_S):
        if not client.ncores():
            raise UserError(f"--scheduler {scheduler}: it has no workers; start some with `dask worker {scheduler}`")
        yield


@contextmanager
def _ray() -> Iterator[None]:
    try:
        from ray.util.joblib import register_ray
    except ModuleNotFoundError as error:
        raise missing_extra("ray", "ray") from error
    from joblib import parallel_config

    register_ray()
    with parallel_config(backend="ray"):
        yield
