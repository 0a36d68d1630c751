"""Runs independent work units in processes. Results do not depend on how many there are; order is that of the units."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import Any, TypeVar

from tqdm import tqdm

Unit = TypeVar("Unit")
Result = TypeVar("Result")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_ONE_THREAD = {**dict.fromkeys(_THREADS, "1"), "OMP_WAIT_POLICY": "PASSIVE"}


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def map_units(
    work: Callable[[Unit], Result],
    units: Sequence[Unit],
    num_workers: int | None = None,
    title: str = "",
    weight: Callable[[Unit], int] = lambda unit: 1,
    progress: bool = True,
) -> list[Result]:
    """[work(unit) for unit in units], in up to num_workers processes (None = one per core) of one thread each.

    work must be picklable (a module-level function or a functools.partial of one). weight(unit) is what it adds to the
    progress bar. A failing unit raises its error here, and units that have not started are dropped.
    """
    count = min(num_workers or available_cores(), len(units))
    interval = 0.1 if sys.stderr.isatty() else 10.0  # seconds between updates: few lines in a log file
    with tqdm(total=sum(map(weight, units)), desc=title, disable=not progress, mininterval=interval) as bar:
        results: dict[int, Result] = {}
        for index, result in _run(work, units, count):
            results[index] = result
            bar.update(weight(units[index]))
    return [results[i] for i in range(len(units))]


def _run(work: Callable[[Any], Any], units: Sequence[Any], count: int) -> Iterator[tuple[int, Any]]:
    if count <= 1:
        for index, unit in enumerate(units):
            yield index, work(unit)
        return
    futures = {_pool(count).submit(work, unit): index for index, unit in enumerate(units)}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        _pool.cache_clear()
        raise RuntimeError("a worker process died, perhaps out of memory: give fewer with num_workers") from error
    finally:
        for future in futures:
            future.cancel()


@lru_cache(maxsize=1)
def _pool(count: int) -> ProcessPoolExecutor:
    """The worker processes. They stay, with what they have imported and loaded, for the next units."""
    saved = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)  # children inherit it
    try:
        pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
        for future in [pool.submit(os.getpid) for _ in range(count)]:  # starts them
            future.result()
        return pool
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
