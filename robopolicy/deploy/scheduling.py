"""Which step of which chunk comes next, and when to ask for another chunk. Pure; part of the robot-side island: numpy only."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

REPLACE, ENSEMBLE, REAL_TIME = "replace", "ensemble", "real_time"
MODES = (REPLACE, ENSEMBLE, REAL_TIME)

_LATENCIES = 20  # newest inference times that the automatic lead covers
_SENT = 1000  # times of sent steps that are remembered


class ChunkScheduler:
    """A plan made of chunks that overlap.

    A chunk's first step belongs to the moment its observation was made. Steps sent since then are not repeated: as many of
    the chunk's own first steps are skipped (a pause, in which nothing was sent, skips nothing).

    mode:
        "replace": a new chunk takes over; after execute_horizon of its steps, or at its end, it is used up.
        "ensemble": the mean of what all chunks say about a step, with weights exp(-decay * i), i = 0 the oldest (temporal
            ensembling of ACT, Zhao et al., arXiv 2304.13705). Asks all the time.
        "real_time": asks while a chunk is executed; that one goes on until the answer is here, past execute_horizon if it
            must. What was sent meanwhile is the frozen prefix, the steps after it pass from the old to the new chunk with the
            soft mask of real-time chunking (Black et al., arXiv 2506.07339, eq. 5). The policy is a black box here: the mask
            blends finished chunks where the paper guides their denoising; of several candidates the one nearest to the frozen
            prefix is taken (backward coherence of bidirectional decoding, Liu et al., arXiv 2408.17355).
    execute_horizon: Ta, steps executed per chunk.
    step_s: a step of the policy (s).
    lead_steps: steps before the end of a chunk at which the next is asked for; None = what the last inferences took at most.
    response_s: time (s) from sending a command to its effect, which an observation made meanwhile does not show yet.
    """

    def __init__(
        self,
        *,
        execute_horizon: int,
        step_s: float,
        lead_steps: int | None = 0,
        mode: str = REPLACE,
        decay: float = 0.01,
        response_s: float = 0.0,
    ) -> None:
        if execute_horizon < 1 or (lead_steps is not None and lead_steps < 0):
            raise ValueError(f"execute_horizon={execute_horizon} must be at least 1 and lead_steps={lead_steps} at least 0")
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} must be one of {', '.join(MODES)}")
        if not step_s > 0 or not response_s >= 0 or not np.isfinite(decay):
            raise ValueError(f"step_s={step_s} must be positive, response_s={response_s} not negative, decay={decay} finite")
        self.execute_horizon, self.step_s, self.mode = execute_horizon, step_s, mode
        self.decay, self.response_s = decay, response_s
        self._lead_steps = lead_steps
        self._plans: list[tuple[int, np.ndarray]] = []  # (number of its first step, [H, A]), oldest first
        self._next = self._end = self._since = 0  # number of the next step, first that may not be sent, where a chunk took over
        self._sent: deque[float] = deque(maxlen=_SENT)
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._request, self._pending = 0, False
        self._asked_s = self._stamp = 0.0
        self.stamp = -np.inf  # of the observation that the newest chunk in use answers

    @property
    def lead_steps(self) -> int:
        """Steps before the end at which a chunk is asked for."""
        if self._lead_steps is not None:
            return self._lead_steps
        return math.ceil(max(self._latencies, default=self.step_s) / self.step_s)

    @property
    def remaining(self) -> int:
        """Steps that can still be sent."""
        return max(0, self._end - self._next)

    @property
    def wants_chunk(self) -> bool:
        """Whether now is the time to ask."""
        if self._pending:
            return False
        if self.mode == ENSEMBLE:
            return True
        in_use = self._next - self._since
        return self.remaining <= self.lead_steps or (
            self.mode == REAL_TIME and in_use >= self.execute_horizon - self.lead_steps
        )

    def ask(self, now: float, stamp: float | None = None) -> int:
        """Note that a chunk is asked for at `now`, with an observation made at `stamp` (s; None = now). Its number."""
        self._asked_s, self._stamp, self._pending = now, now if stamp is None else stamp, True
        self._request += 1
        return self._request

    def waiting(self, now: float) -> float:
        """For how long (s) an answer has been due; 0 if none is."""
        return now - self._asked_s if self._pending else 0.0

    def add(self, chunks: np.ndarray, request: int, now: float) -> bool:
        """Take candidates [N, H, A], the answer to `request`. False, and nothing changes, if that was given up or answered."""
        if not self._pending or request != self._request:
            return False
        self._pending = False
        self._latencies.append(now - self._asked_s)
        skip = sum(sent > self._stamp - self.response_s for sent in self._sent)
        start = self._next - skip
        chunk = chunks[0]
        if self.mode == REAL_TIME and self._plans and self.remaining:
            chunk = self._joined(chunks, start, skip)
        self._plans = [*self._plans, (start, chunk)] if self.mode == ENSEMBLE else [(start, chunk)]
        self._since, self._end = self._next, start + len(chunk)
        if self.mode == REPLACE:
            self._end = min(self._end, self._next + self.execute_horizon)
        self.stamp = self._stamp
        return True

    def give_up(self, request: int) -> None:
        """Forget `request` if it is pending; a late answer to it is refused. What is left of the chunk goes on."""
        if request == self._request:
            self._pending = False

    def clear(self) -> None:
        """Drop what is left of the plan and the pending request."""
        self._plans, self._pending = [], False
        self._end = self._next
        self._sent.clear()

    def next(self, now: float) -> np.ndarray | None:
        """The action [A] of the step at `now`, None when there is none."""
        if not self.remaining:
            return None
        self._plans = [(start, chunk) for start, chunk in self._plans if start + len(chunk) > self._next]
        said = np.array([chunk[self._next - start] for start, chunk in self._plans])
        self._next += 1
        self._sent.append(now)
        if len(said) == 1:
            return said[0]
        weights = np.exp(-self.decay * np.arange(len(said)))
        return (weights / weights.sum()) @ said

    def _joined(self, chunks: np.ndarray, start: int, frozen: int) -> np.ndarray:
        """Of `chunks` [N, H, A] that begin at step `start`, the one that fits the plan best, joined to it smoothly."""
        old_start, old = self._plans[-1]
        overlap = min(len(old) + old_start - start, chunks.shape[1])
        first = start - old_start
        if overlap <= 0 or first < 0:
            return chunks[0]
        before = old[first : first + overlap]
        weights = soft_mask(overlap, frozen, chunks.shape[1])[:overlap, None]
        spread = np.maximum(chunks[:, :overlap].std(axis=(0, 1)), 1e-6)
        misfit = (weights * ((chunks[:, :overlap] - before) / spread) ** 2).sum(axis=(1, 2))
        chunk = np.array(chunks[int(misfit.argmin())])
        chunk[:overlap] = weights * before + (1 - weights) * chunk[:overlap]
        return chunk


def soft_mask(overlap: int, frozen: int, horizon: int) -> np.ndarray:
    """Weight [horizon] of the old chunk: 1 for the `frozen` first steps, then decaying to 0 at the end of the overlap.

    Real-time chunking (arXiv 2506.07339), eq. 5, with overlap = H - s and frozen = d.
    """
    i = np.arange(horizon)
    c = np.clip((overlap - i) / max(overlap - frozen + 1, 1), 0.0, 1.0)
    weights = c * np.expm1(c) / np.expm1(1.0)
    return np.where(i < frozen, 1.0, np.where(i < overlap, weights, 0.0))
