"""Several environments in step, in processes of one thread each or in this one, with the seed of every episode given.

gymnasium's vector environments reset by themselves; a run that must resume exactly has to know each episode's seed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from robopolicy.executor import one_thread
from robopolicy.spec import Array, Observation

STALLED_S = 900.0  # a process that has not answered for so long hangs; the longest answer is an episode that is played again


@dataclass
class Step:
    """What a step of one environment brought. truncated: by its time limit, or by a fault, which `info` names."""

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """How an episode begins: its seed and the options of reset(); replay: actions that are executed at once, to resume it."""

    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    replay: tuple[Array, ...] = ()


class _Group:
    """Environments of one process."""

    def __init__(self, make: Callable[[], Any], count: int) -> None:
        self.envs = [make() for _ in range(count)]

    def reset(self, starts: Mapping[int, Start]) -> dict[int, Observation]:
        found: dict[int, Observation] = {}
        for index, start in starts.items():
            env = self.envs[index]
            found[index], _ = env.reset(seed=start.seed, options=dict(start.options) or None)
            for action in start.replay:
                found[index], *_ = env.step(action)
        return found

    def step(self, actions: Mapping[int, Array]) -> dict[int, Step]:
        found = {}
        for index, action in actions.items():
            observation, reward, terminated, truncated, info = self.envs[index].step(action)
            found[index] = Step(observation, float(reward), bool(terminated), bool(truncated), info)
        return found

    def close(self) -> None:
        for env in self.envs:
            env.close()


class VectorEnv:
    """`count` environments, each made by `make` (picklable); the i-th lives in process i modulo num_workers, all in this one
    with num_workers=0.

    What happens does not depend on num_workers. Close it, or use it as a context manager.
    """

    def __init__(self, make: Callable[[], Any], count: int, num_workers: int = 0) -> None:
        self.count = count
        self.num_workers = min(num_workers, count)
        self._places = [(i % max(self.num_workers, 1), i // max(self.num_workers, 1)) for i in range(count)]
        sizes = [sum(worker == w for worker, _ in self._places) for w in range(max(self.num_workers, 1))]
        if self.num_workers:
            self._members: list[Any] = [_Remote(make, size) for size in sizes]
        else:
            self._members = [_Here(_Group(make, sizes[0]))]

    def reset(self, starts: Mapping[int, Start]) -> dict[int, Observation]:
        """First observations of the environments {index: how its episode starts}."""
        return self._ask("reset", starts)

    def step(self, actions: Sequence[Array] | Mapping[int, Array]) -> dict[int, Step]:
        """One step of all environments, or of those {index: action}."""
        return self._ask("step", actions if isinstance(actions, Mapping) else dict(enumerate(actions)))

    def _ask(self, what: str, arguments: Mapping[int, Any]) -> dict[int, Any]:
        asked: dict[int, dict[int, Any]] = {}
        for index, argument in arguments.items():
            worker, local = self._places[index]
            asked.setdefault(worker, {})[local] = argument
        for worker, some in asked.items():
            self._members[worker].send(what, some)
        answers = {worker: self._members[worker].receive() for worker in asked}
        return {index: answers[self._places[index][0]][self._places[index][1]] for index in arguments}

    def close(self) -> None:
        """End the processes. Safe to call twice."""
        for member in self._members:
            member.close()
        self._members = []

    def __enter__(self) -> VectorEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Here:
    def __init__(self, group: _Group) -> None:
        self._group = group

    def send(self, what: str, arguments: Any) -> None:
        self._answer = getattr(self._group, what)(arguments)

    def receive(self) -> Any:
        return self._answer

    def close(self) -> None:
        self._group.close()


class _Remote:
    def __init__(self, make: Callable[[], Any], count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, count), daemon=True)
        with one_thread():
            self._process.start()
        other.close()

    def send(self, what: str, arguments: Any) -> None:
        with self._alive():
            self._pipe.send((what, arguments))

    def receive(self) -> Any:
        with self._alive():
            if not self._pipe.poll(STALLED_S):
                self._process.kill()
                raise ChildProcessError(f"an environment's process did not answer for {STALLED_S:g} s: resume the run")
            answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """Raises ChildProcessError where the process at the other end of the pipe is gone."""
        try:
            yield
        except (EOFError, ConnectionError) as error:
            self._process.join(10)
            raise ChildProcessError(f"an environment's process exited with {self._process.exitcode}; resume the run") from error

    def close(self) -> None:
        with contextlib.suppress(ConnectionError):
            self._pipe.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
        self._pipe.close()


def _serve(pipe: Connection, make: Callable[[], Any], count: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process at the other end decides
    group: _Group | None = None
    with contextlib.suppress(EOFError, ConnectionResetError, BrokenPipeError):
        while (message := pipe.recv()) is not None:
            try:
                group = group or _Group(make, count)
                pipe.send(getattr(group, message[0])(message[1]))
            except Exception as error:
                pipe.send(error)
    if group is not None:
        group.close()


def episodes(starts: Sequence[Start], count: int) -> Iterator[list[tuple[int, Start]]]:
    """The starts in blocks of up to `count`, each with the index of the environment that plays it."""
    for first in range(0, len(starts), count):
        yield list(enumerate(starts[first : first + count]))


def stacked(observations: Sequence[Observation]) -> Observation:
    """Single observations {key: [...]} as a batch {key: [B, 1, ...]}."""
    return {key: np.stack([one[key] for one in observations])[:, None] for key in observations[0]}
