"""Runs independent work units in processes, local ones or those of a Ray cluster; lost workers are replaced.

Results do not depend on how many processes there are or where they run; their order is that of the units.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

Unit = TypeVar("Unit")
Result = TypeVar("Result")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_STARTING_S = 120.0  # that a worker may take to begin, before the time of its unit counts
_ONE_THREAD = {**dict.fromkeys(_THREADS, "1"), "OMP_WAIT_POLICY": "PASSIVE"}


class WorkerError(ChildProcessError):
    """Units that were not done because their workers died or stalled at every try. lost: {index of the unit: why}."""

    def __init__(self, lost: dict[int, str], total: int) -> None:
        first, why = next(iter(lost.items()))
        super().__init__(f"{len(lost)} of {total} work units were not done: of the first, unit {first}, the worker {why}")
        self.lost = lost


@dataclass(frozen=True)
class Done:
    """The result of a unit."""

    result: Any


@dataclass(frozen=True)
class Raised:
    """The error that a unit raised, and its traceback in the worker."""

    error: Exception
    where: str


@dataclass(frozen=True)
class Lost:
    """A worker that did not live to return a result, and why."""

    why: str


Outcome = Done | Raised | Lost


class Begun:
    """The unit has reached its worker, which has started and imported what it needs."""


class Crew(Protocol):
    """Up to `size` processes that each work on one unit at a time."""

    size: int

    def start(self, work: Callable[[Any], Any], unit: Any) -> Any:
        """A handle of the unit, begun in a process that is free."""

    def wait(self, handles: Sequence[Any], timeout: float | None) -> dict[Any, Outcome | Begun]:
        """News of the units, of at least one if timeout (s) is None."""

    def kill(self, handle: Any) -> None:
        """End the process that works on the unit."""


class Executor(Protocol):
    """Where units run, and how long and how often each is tried."""

    @property
    def timeout_s(self) -> float | None:
        """Seconds that a unit may take before its worker counts as stalled and is killed; None = any."""

    @property
    def retries(self) -> int:
        """How often a unit is tried again, in a new worker, after its worker died or stalled."""

    def crew(self, num_workers: int | None) -> Crew:
        """Up to num_workers processes; None = one per core."""


@dataclass(frozen=True)
class Local:
    """Processes of this machine. They stay, with what they have imported and loaded, for the next units.

    timeout_s, retries: see Executor.
    """

    timeout_s: float | None = None
    retries: int = 2

    def crew(self, num_workers: int | None) -> Crew:
        """See Executor."""
        return _LocalCrew(num_workers or available_cores())


@dataclass(frozen=True)
class Ray:
    """Processes of a Ray cluster, which see the same files under the same names and have robopolicy installed.

    address: of the cluster ("auto" = the one this machine belongs to); None = one started here for the purpose.
    timeout_s, retries: see Executor.
    """

    address: str | None = None
    timeout_s: float | None = None
    retries: int = 2

    def crew(self, num_workers: int | None) -> Crew:
        """See Executor. Raises ValueError when ray is not installed."""
        return _RayCrew(self.address, num_workers)


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
    executor: Executor | None = None,
    note: Callable[[Result], str] | None = None,
    unit_name: str = "it",
) -> list[Result]:
    """[work(unit) for unit in units], in up to num_workers processes (None = one per core) of one thread each.

    work must be picklable (a module-level function or a functools.partial of one). weight(unit) is what it adds to the
    progress bar, in things called unit_name; note(result) is shown beside it. num_workers=0 works in this process.

    Raises:
        WorkerError: once all other units are done, when the workers of some died or stalled at every try.
        Exception: what a unit raised, at once; units that have not started are dropped, workers under way are ended.
    """
    interval = 0.1 if sys.stderr.isatty() else 10.0  # seconds between updates: few lines in a log file
    results: dict[int, Result] = {}
    lost: dict[int, str] = {}
    total = sum(map(weight, units))
    with tqdm(total=total, desc=title, disable=not progress, mininterval=interval, unit=unit_name, smoothing=0.1) as bar:
        for index, outcome in _run(work, units, executor or Local(), num_workers):
            if isinstance(outcome, Lost):
                lost[index] = outcome.why
                continue
            results[index] = outcome.result
            if note:
                bar.set_postfix_str(note(outcome.result), refresh=False)
            bar.update(weight(units[index]))
    if lost:
        raise WorkerError(dict(sorted(lost.items())), len(units))
    return [results[i] for i in range(len(units))]


def _run(
    work: Callable[[Any], Any], units: Sequence[Any], executor: Executor, num_workers: int | None
) -> Iterator[tuple[int, Done | Lost]]:
    """(index, outcome) of every unit as they come, after retries."""
    if num_workers == 0:
        for index, unit in enumerate(units):
            yield index, Done(work(unit))
        return
    waiting, tries, patience = deque(range(len(units))), Counter[int](), executor.timeout_s or float("inf")
    busy: dict[Any, tuple[int, float]] = {}  # {handle: (index of the unit, when it is late)}
    crew = executor.crew(num_workers) if units else None
    try:
        while crew and (waiting or busy):
            while waiting and len(busy) < crew.size:
                index = waiting.popleft()
                busy[crew.start(work, units[index])] = index, time.monotonic() + _STARTING_S + patience
            first = min(late for _, late in busy.values()) - time.monotonic()
            news = crew.wait(list(busy), None if first == float("inf") else max(0.0, first))
            for handle in [handle for handle, (_, late) in busy.items() if handle not in news and time.monotonic() > late]:
                crew.kill(handle)
                news[handle] = Lost(f"took longer than timeout_s={executor.timeout_s:g}")
            for handle, outcome in news.items():
                index, _ = busy.pop(handle)
                if isinstance(outcome, Begun):
                    busy[handle] = index, time.monotonic() + patience
                    continue
                if isinstance(outcome, Raised):
                    raise outcome.error from RuntimeError(f"in a worker:\n{outcome.where}")
                if isinstance(outcome, Lost) and tries[index] < executor.retries:
                    tries[index] += 1
                    waiting.append(index)
                    logger.warning("unit %d: the worker %s; try %d of %d", index, outcome.why, *_of(tries[index], executor))
                else:
                    yield index, outcome
    finally:
        for handle in busy:
            crew.kill(handle)  # type: ignore[union-attr]


def _of(tried: int, executor: Executor) -> tuple[int, int]:
    return tried + 1, executor.retries + 1


def _attempt(work: Callable[[Any], Any], unit: Any) -> Done | Raised:
    """What becomes of a unit in this process, in a form that another one can read."""
    try:
        return Done(work(unit))
    except Exception as error:
        where = traceback.format_exc()
        try:
            ForkingPickler.loads(ForkingPickler.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return Raised(error, where)


class _Worker:
    """A process that works on what comes through its pipe."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other,), daemon=True)
        with one_thread():
            self.process.start()
        other.close()  # the worker's end is its own: when it dies, ours reads the end of file


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process at the other end decides
    tqdm.set_lock(threading.RLock())  # its own one is a semaphore, which a process that is ended leaves behind
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # it is gone
        while True:
            work, unit = pipe.recv()
            pipe.send(Begun())
            outcome = _attempt(work, unit)
            try:
                pipe.send(outcome)
            except (TypeError, AttributeError, ValueError) as error:
                pipe.send(Raised(TypeError(f"the result cannot be sent to another process: {error}"), ""))


_free: list[_Worker] = []  # workers without work


class _LocalCrew:
    def __init__(self, size: int) -> None:
        self.size = size

    def start(self, work: Callable[[Any], Any], unit: Any) -> _Worker:
        worker = None
        while worker is None:
            worker = _free.pop() if _free else _Worker()
            if not worker.process.is_alive():
                worker = None
        with contextlib.suppress(BrokenPipeError):  # it has just died: wait() will find out
            worker.pipe.send((work, unit))
        return worker

    def wait(self, handles: Sequence[_Worker], timeout: float | None) -> dict[_Worker, Outcome | Begun]:
        ready = set(wait([worker.pipe for worker in handles], timeout))
        return {worker: self._news(worker) for worker in handles if worker.pipe in ready}

    def _news(self, worker: _Worker) -> Outcome | Begun:
        try:
            outcome = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(10)
            code = worker.process.exitcode or 0
            cause = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
            self.kill(worker)
            return Lost(cause + (", perhaps for want of memory" if code == -signal.SIGKILL else ""))
        if not isinstance(outcome, Begun):
            _free.append(worker)
        return outcome

    def kill(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Child processes started within inherit one thread each."""
    saved = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _RayCrew:
    def __init__(self, address: str | None, num_workers: int | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise ValueError("executor=ray needs ray, which is not installed: pip install 'robopolicy[ray]'") from error
        if not ray.is_initialized():
            path = {"PYTHONPATH": os.environ["PYTHONPATH"]} if os.environ.get("PYTHONPATH") else {}
            options: dict[str, Any] = {"address": address} if address else {"num_cpus": num_workers, "include_dashboard": False}
            ray.init(**options, runtime_env={"env_vars": {**_ONE_THREAD, **path}}, logging_level=logging.WARNING)
        self._ray = ray
        self.size = num_workers or int(ray.cluster_resources().get("CPU", 1))
        self._attempt = ray.remote(num_cpus=1, max_retries=0)(_attempt)
        self._shared: tuple[Any, Any] = (None, None)

    def start(self, work: Callable[[Any], Any], unit: Any) -> Any:
        if self._shared[0] is not work:  # sent once, not with every unit
            self._shared = work, self._ray.put(work)
        return self._attempt.remote(self._shared[1], unit)

    def wait(self, handles: Sequence[Any], timeout: float | None) -> dict[Any, Outcome | Begun]:
        ready, _ = self._ray.wait(list(handles), num_returns=1, timeout=timeout)
        return {handle: self._outcome(handle) for handle in ready}

    def _outcome(self, handle: Any) -> Outcome:
        try:
            return self._ray.get(handle)
        except self._ray.exceptions.RayTaskError as error:  # the unit cannot be read there: no retry would help
            return Raised(RuntimeError(str(error)), "")
        except self._ray.exceptions.RayError as error:
            return Lost(f"was lost ({type(error).__name__})")

    def kill(self, handle: Any) -> None:
        self._ray.cancel(handle, force=True)
