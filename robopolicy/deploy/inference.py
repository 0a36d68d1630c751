"""The policy's calls beside the control loop: one thread that waits for answers, so that the loop never does.

Part of the robot-side island: numpy, msgpack and pyzmq only.
"""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from .client import RemoteError
    from .synchronise import reason
else:  # this folder itself is on the path
    from client import RemoteError
    from synchronise import reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """To `request`: candidates [N, H, A] and the monitor's score, or None and what went wrong.

    replaced: the server has another policy now.
    """

    request: int
    chunks: np.ndarray | None = None
    score: float | None = None
    error: str = ""
    replaced: bool = False


@dataclass(frozen=True)
class _Call:
    request: int
    observation: Mapping[str, Any]
    num_samples: int
    seed: int | None


class Inference:
    """Calls `policy`, in a thread of its own or, with threaded=False, at once: then a replay has no latency and no chance."""

    def __init__(self, policy: Any, *, threaded: bool = True) -> None:
        self._policy = policy
        self._calls: queue.Queue[_Call | None] = queue.Queue()
        self._answers: queue.Queue[Answer] = queue.Queue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True) if threaded else None
        if self._thread is not None:
            self._thread.start()

    def submit(self, request: int, observation: Mapping[str, Any], num_samples: int, seed: int | None) -> None:
        """Ask for the chunks of an observation of batch 1. What was submitted before and not begun is dropped."""
        call = _Call(request, observation, num_samples, seed)
        if self._thread is None:
            self._answers.put(self._call(call))
        else:
            _empty(self._calls)
            self._calls.put(call)

    def answers(self) -> list[Answer]:
        """What has come since the last call; never waits."""
        return _empty(self._answers)

    def close(self) -> None:
        """End the thread, after the call that it is in."""
        self._closed.set()
        self._calls.put(None)  # for a thread that waits
        if self._thread is not None:
            self._thread.join(timeout=2.0)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None and not self._closed.is_set():
            self._answers.put(self._call(call))

    def _call(self, call: _Call) -> Answer:
        try:
            decide = getattr(self._policy, "decide", None)
            if decide is not None:
                reply = decide(call.observation, call.num_samples, call.seed)
                score = None if reply.scores is None else float(reply.scores[0])
                return Answer(call.request, reply.actions[0], score)
            return Answer(call.request, self._policy.sample(call.observation, call.num_samples, call.seed)[0])
        except Exception as error:  # a policy may raise anything; the next call may still be answered
            log.error("%s", reason(error))
            replaced = isinstance(error, RemoteError) and error.code == "replaced"
            return Answer(call.request, error=reason(error), replaced=replaced)


def _empty(waiting: queue.Queue[Any]) -> list[Any]:
    """All that is in a queue, taken out."""
    found = []
    while True:
        try:
            found.append(waiting.get_nowait())
        except queue.Empty:
            return found
