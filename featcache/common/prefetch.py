"""Compute a function's values for items ahead by threads, in the items' order.

Threads rather than processes: decoding, resizing and hashing let go of Python's lock, so that threads are as fast, and
start at once, where a process imports torch anew or inherits what another thread had locked.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def read_ahead(read: Callable[[S, threading.Event], T], items: Iterable[S], *, workers: int) -> Iterator[T]:
    """Yield ``read(item, stop)`` for each item, in order.

    At most ``workers + 1`` values are ready or in the making beside the one that the caller has. What ``read`` raises
    is raised at its turn. However the iterator ends (exhausted, closed, an exception, Ctrl-C), ``stop`` is set and the
    threads have ended when it has: a ``read`` that takes long looks at ``stop`` and raises.

    Args:
        read: takes an item and the event that tells it to stop.
        items: asked for one by one in the caller's thread, no further ahead than they are read.
        workers: threads; with 0, each value is computed when it is asked for, in the caller's thread.
    """
    stop = threading.Event()
    if workers == 0:
        for item in items:
            yield read(item, stop)
        return
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="featcache-read") as pool:
        try:
            for item in items:
                pending.append(pool.submit(read, item, stop))
                if len(pending) > workers + 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            stop.set()
            for future in pending:
                future.cancel()
