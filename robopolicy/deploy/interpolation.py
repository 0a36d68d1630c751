"""From the policy's rate to the control rate. Pure; part of the robot-side island: numpy only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from .limits import SafetyLimits

_DONE = 1e-9


class Interpolator:
    """Spreads each step of the policy over the control steps it lasts.

    Motion entries are shared out evenly, which keeps their sum; absolute entries go in a straight line from one target to the
    next. A speed below 1 stretches time: the same path, later.

    ratio: policy steps in a control step, at most 1.
    """

    def __init__(self, limits: SafetyLimits, *, ratio: float) -> None:
        if not 0 < ratio <= 1:
            raise ValueError(f"the control rate must be at least the policy's, {ratio:g} policy steps in a control step")
        self._motion, self._absolute = list(limits.motion), list(limits.absolute)
        self.ratio = ratio
        self.clear()

    def clear(self) -> None:
        """Drop the step in progress."""
        self._step: np.ndarray | None = None
        self._from: np.ndarray | None = None
        self._left = 0.0

    def next(self, pull: Callable[[], np.ndarray | None], speed: float = 1.0) -> np.ndarray | None:
        """The action [A] of one control step, None when there is nothing to do.

        pull: gives the policy's next step [A], or None.
        speed: in (0, 1], of the time in which the plan goes on.
        """
        due, action = self.ratio * speed, None
        while due > _DONE:
            if self._left <= _DONE:
                step = pull()
                if step is None:
                    break
                self._from = step[self._absolute] if self._step is None else self._step[self._absolute]
                self._step, self._left = step, 1.0
            assert self._step is not None
            assert self._from is not None
            taken = min(due, self._left)
            due -= taken
            self._left = max(0.0, self._left - taken)
            action = np.zeros(len(self._step)) if action is None else action
            action[self._motion] += self._step[self._motion] * taken
            action[self._absolute] = self._step[self._absolute] * (1 - self._left) + self._from * self._left
        return action
