"""Values computed ahead: in order, few at a time, with errors at their turn, and no thread left behind."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from featcache.common.prefetch import read_ahead

WORKERS = [0, 1, 3]


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("featcache-read")]


def slow_first(index: int, _stop: threading.Event) -> int:
    """The sooner it is asked for, the longer it takes."""
    time.sleep(0.004 * (5 - index % 5))
    return index


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("count", [0, 1, 2, 17])
def test_values_come_in_order(workers: int, count: int) -> None:
    assert list(read_ahead(slow_first, range(count), workers=workers)) == list(range(count))


@pytest.mark.parametrize("workers", [1, 3])
def test_so_many_are_read_ahead_and_no_more(workers: int) -> None:
    begun: list[int] = []
    most = 0

    def read(index: int, _stop: threading.Event) -> int:
        begun.append(index)
        return index

    for index in read_ahead(read, range(20), workers=workers):
        time.sleep(0.02)  # a slow consumer
        ahead = len(begun) - (index + 1)
        assert ahead <= workers + 1
        most = max(most, ahead)
    assert most == workers + 1
    assert sorted(begun) == list(range(20))


def test_workers_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=10)
    assert list(read_ahead(lambda index, _stop: together.wait() >= 0, range(3), workers=3)) == [True] * 3


def test_without_workers_it_is_the_callers_thread_that_reads_and_only_when_asked() -> None:
    seen: list[tuple[int, int]] = []
    values = read_ahead(lambda index, _stop: seen.append((index, threading.get_ident())), range(5), workers=0)
    next(values)
    next(values)
    assert seen == [(0, threading.get_ident()), (1, threading.get_ident())]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_is_raised_at_its_turn(workers: int, error: type[BaseException]) -> None:
    def read(index: int, _stop: threading.Event) -> int:
        if index == 4:
            raise error("the fifth")
        return index

    values = read_ahead(read, range(50), workers=workers)
    assert [next(values) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(error, match="the fifth"):
        next(values)
    assert next(values, None) is None


def patient(stopped: list[int]) -> object:
    """Reads the first at once and would take for ever over the others."""

    def read(index: int, stop: threading.Event) -> int:
        if index and stop.wait(60):
            stopped.append(index)
            raise InterruptedError
        return index

    return read


@pytest.mark.parametrize("workers", [1, 3])
def test_closing_early_stops_what_is_in_the_making(workers: int) -> None:
    stopped: list[int] = []
    values = read_ahead(patient(stopped), range(1000), workers=workers)
    assert next(values) == 0
    time.sleep(0.05)
    values.close()
    assert sorted(stopped) == list(range(1, workers + 1))


def test_an_error_of_the_caller_stops_it_too() -> None:
    stopped: list[int] = []

    def divide() -> None:
        for value in read_ahead(patient(stopped), range(1000), workers=2):
            time.sleep(0.05)
            _ = 1 // value

    with pytest.raises(ZeroDivisionError):
        divide()
    assert sorted(stopped) == [1, 2]


def test_ctrl_c_stops_it_while_it_waits() -> None:
    stopped: list[int] = []
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(read_ahead(patient(stopped), range(1000), workers=2))
    finally:
        signal.signal(signal.SIGINT, handler)
    timer.join()
    assert sorted(stopped) == [1, 2]


@pytest.mark.parametrize("workers", WORKERS)
def test_items_are_asked_for_no_further_ahead_than_they_are_read(workers: int) -> None:
    asked: list[int] = []
    items = (asked.append(index) or index for index in range(10**9))
    values = read_ahead(lambda index, _stop: index, items, workers=workers)
    assert [next(values) for _ in range(5)] == list(range(5))
    assert len(asked) <= 5 + workers + 1
    values.close()


def test_nothing_is_started_before_the_first_is_asked_for() -> None:
    begun: list[int] = []
    values = read_ahead(lambda index, _stop: begun.append(index), range(5), workers=2)
    time.sleep(0.05)
    values.close()
    assert not begun
