"""Pieces of work done here, in processes, in threads and on a real dask cluster: the same results in the same order."""

from __future__ import annotations

import os
import socket
import sys

import pytest
from threadpoolctl import threadpool_info

from featcache.common.errors import UsageError, UserError
from heads.sweep import Workers, sweep


def squared(number: int) -> int:
    if number < 0:
        raise UserError(f"{number} is negative")
    return number**2


def process_and_threads(_piece: int) -> tuple[int, int]:
    import numpy as np

    _ = np.ones((2, 2)) @ np.ones((2, 2))
    return os.getpid(), max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")


@pytest.mark.parametrize("workers", [Workers(), Workers(jobs=2), Workers(jobs=2, backend="threading")], ids=str)
def test_results_come_in_the_order_of_the_pieces(workers: Workers) -> None:
    assert list(sweep(squared, range(5), workers)) == [0, 1, 4, 9, 16]
    with pytest.raises(UserError, match="-1 is negative"):
        list(sweep(squared, [1, -1], workers))


def test_each_of_several_workers_has_one_thread() -> None:
    for workers in (Workers(jobs=2), Workers(jobs=2, backend="threading")):
        told = list(sweep(process_and_threads, range(4), workers))
        assert {threads for _, threads in told} == {1}
        assert ({os.getpid()} == {process for process, _ in told}) == (workers.backend == "threading")
    assert next(sweep(process_and_threads, [0], Workers()))[0] == os.getpid()


def test_a_dask_cluster_does_the_work(cluster: str) -> None:
    workers = Workers(backend="dask", scheduler=cluster)
    assert list(sweep(squared, range(5), workers)) == [0, 1, 4, 9, 16]
    told = list(sweep(process_and_threads, range(8), workers))
    assert os.getpid() not in {process for process, _ in told}
    assert len({process for process, _ in told}) == 2
    assert {threads for _, threads in told} == {1}
    with pytest.raises(UserError, match="-1 is negative"):
        list(sweep(squared, [1, -1], workers))


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr("heads.sweep._CONNECT_S", 0.3)
    with pytest.raises(UserError, match=rf"--scheduler {address}: no dask scheduler answers there; start one"):
        list(sweep(squared, [1], Workers(backend="dask", scheduler=address)))


@pytest.mark.parametrize(("backend", "module"), [("dask", "dask.distributed"), ("ray", "ray.util.joblib")])
def test_a_missing_extra_names_its_installation(backend: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    workers = Workers(backend=backend, scheduler="tcp://127.0.0.1:1" if backend == "dask" else None, jobs=2)
    with pytest.raises(UserError, match=rf"pip install 'featcache\[{backend}\]'"):
        list(sweep(squared, [1], workers))


def test_what_makes_no_sense_is_refused() -> None:
    for message, settings in {
        "--jobs 0: expected": {"jobs": 0},
        "unknown backend 'lokky': did you mean loky": {"backend": "lokky"},
        "--backend dask needs the cluster's address": {"backend": "dask"},
        "--scheduler is of --backend dask, not of loky": {"scheduler": "tcp://a:1"},
    }.items():
        with pytest.raises(UsageError, match=message):
            Workers(**settings)  # type: ignore[arg-type]
