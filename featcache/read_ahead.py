"""A function of an index in; its values for 0, 1, 2 … out, in that order, computed ahead by threads.

Threads rather than processes: decoding, resizing and hashing let go of Python's lock, so that threads are as fast, and
start at once, where a process imports torch anew or inherits what another thread had locked.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(read: Callable[[int, threading.Event], T], count: int, *, workers: int) -> Iterator[T]:
    """Yield ``read(0, stop)`` to ``read(count - 1, stop)`` in order.

    At most ``workers + 1`` values are ready or in the making beside the one that the caller has. What ``read`` raises
    is raised at its turn. However the iterator ends (exhausted, closed, an exception, Ctrl-C), ``stop`` is set and the
    threads have ended when it has: a ``read`` that takes long looks at ``stop`` and raises.

    Args:
        read: takes an index and the event that tells it to stop.
        count: of the values.
        workers: threads; with 0, each value is computed when it is asked for, in the caller's thread.
    """
    stop = threading.Event()
    if workers == 0:
        for index in range(count):
            yield read(index, stop)
        return
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="featcache-read") as pool:
        try:
            for index in range(count):
                pending.append(pool.submit(read, index, stop))
                if len(pending) > workers + 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            stop.set()
            for future in pending:
                future.cancel()
