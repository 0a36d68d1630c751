"""Batches made ready by a thread while the network computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K")


def prefetched(load: Callable[[K], T], keys: Iterable[K], num_ahead: int) -> Generator[T, None, None]:
    """load(key) of every key, in order; up to `num_ahead` of them are loaded ahead by one thread (0: no thread).

    What `load` raises is raised here, in its turn. Closing the iterator drops what has not begun and waits for the rest.
    """
    if not num_ahead:
        yield from map(load, keys)
        return
    pool, ahead = ThreadPoolExecutor(1, "feed"), deque[Future[T]]()
    try:
        for key in keys:
            ahead.append(pool.submit(load, key))
            if len(ahead) > num_ahead:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
