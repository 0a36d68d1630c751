"""What stands between a policy's chunks and a robot: limits, freshness, timing. Pure: no clock, no thread, no ROS.

Times come in as numbers (s, any one clock), so the same calls give the same commands on a robot, in a replay and in a test.
Part of the robot-side island: numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

HOLD, RUN, STOPPED = "hold", "run", "stopped"

_ROUNDING = 1e-6  # relative; a clipped float32 vector stays below its limit


@dataclass(frozen=True)
class SafetyLimits:
    """What one action may do. The default layout is the package's own: x, y, z (m), rotation vector (rad), gripper in [0, 1].

    max_translation_per_step: longest translation (m) of one control step, a vector norm.
    max_rotation_per_step: largest rotation angle (rad) of one control step.
    workspace_low, workspace_high: corners [3] (m, base frame) of the box that the end effector stays in; None = anywhere.
    low, high: bounds of the `absolute` entries, in their order; None = unbounded.
    translation, rotation: indices of the entries that move the end effector; () for a policy that has none.
    absolute: indices of the entries that are a target rather than a motion (gripper, joints); holding repeats them.
    """

    max_translation_per_step: float = 0.02
    max_rotation_per_step: float = 0.1
    workspace_low: tuple[float, ...] | None = None
    workspace_high: tuple[float, ...] | None = None
    low: tuple[float, ...] | None = (0.0,)
    high: tuple[float, ...] | None = (1.0,)
    translation: tuple[int, ...] = (0, 1, 2)
    rotation: tuple[int, ...] = (3, 4, 5)
    absolute: tuple[int, ...] = (6,)

    def __post_init__(self) -> None:
        for name in ("max_translation_per_step", "max_rotation_per_step"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be positive and finite")
        sizes = {"workspace_low": 3, "workspace_high": 3, "low": len(self.absolute), "high": len(self.absolute)}
        for name, size in sizes.items():
            value = getattr(self, name)
            if value is not None and (len(value) != size or not np.isfinite(value).all()):
                raise ValueError(f"{name}={value} must be {size} finite numbers or null")
        for low, high in (("workspace_low", "workspace_high"), ("low", "high")):
            a, b = getattr(self, low), getattr(self, high)
            if (a is None) != (b is None) or (a is not None and not np.less(a, b).all()):
                raise ValueError(f"{low}={a} must lie below {high}={b}: give both or neither")
        if self.workspace_low is not None and len(self.translation) != 3:
            raise ValueError(f"a workspace box needs three translation entries, given translation={self.translation}")

    @property
    def action_dim(self) -> int:
        """A, entries of one action: each is a translation, a rotation or absolute."""
        return len(self.translation) + len(self.rotation) + len(self.absolute)


def hold(previous: np.ndarray, limits: SafetyLimits) -> np.ndarray:
    """The action [A] that changes nothing: no motion, the absolute entries of `previous` [A]."""
    action = np.zeros_like(previous)
    action[list(limits.absolute)] = previous[list(limits.absolute)]
    return action


def guard(
    action: np.ndarray, ee_position: np.ndarray | None, limits: SafetyLimits, *, previous: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The action [A] that may be commanded, and what was done to it; never raises and never returns what is not finite.

    Motions are shortened, not turned: a translation or rotation over its limit is scaled to it as a vector. At the wall of
    the workspace the motion loses the part that leaves the box; from outside the box only motion towards it is let through.

    Args:
        action: [A] in physical units, as the policy wants it.
        ee_position: [3] (m, base frame) now; None where unknown. With a workspace and no position nothing is translated.
        limits: what is allowed.
        previous: [A] the last command, finite; a held action keeps its absolute entries.

    Returns:
        The action, the same object if nothing was changed, and flags of "shape", "not_finite" (both hold), "translation",
        "rotation", "no_position", "workspace", "bounds".
    """
    if np.shape(action) != np.shape(previous):
        return hold(previous, limits), ("shape",)
    if not np.isfinite(action).all():
        return hold(previous, limits), ("not_finite",)
    safe = np.array(action)
    flags: list[str] = []
    parts = (
        ("translation", limits.translation, limits.max_translation_per_step),
        ("rotation", limits.rotation, limits.max_rotation_per_step),
    )
    for flag, indices, longest in parts:
        motion = safe[list(indices)].astype(np.float64)
        length = np.linalg.norm(motion)
        if length > longest:
            safe[list(indices)] = motion / length * longest * (1 - _ROUNDING)
            flags.append(flag)
    if limits.workspace_low is not None:
        motion = safe[list(limits.translation)].astype(np.float64)
        inside, flag = _keep_in_box(motion, ee_position, limits)
        if flag:
            safe[list(limits.translation)] = inside
            flags.append(flag)
    if limits.low is not None:
        targets = safe[list(limits.absolute)]
        clipped = np.clip(targets, np.asarray(limits.low, targets.dtype), np.asarray(limits.high, targets.dtype))
        if not np.array_equal(clipped, targets):
            safe[list(limits.absolute)] = clipped
            flags.append("bounds")
    return (safe, tuple(flags)) if flags else (action, ())


def _keep_in_box(motion: np.ndarray, ee_position: np.ndarray | None, limits: SafetyLimits) -> tuple[np.ndarray, str]:
    if ee_position is None or np.shape(ee_position) != (3,) or not np.isfinite(ee_position).all():
        return np.zeros(3), "no_position"
    least = np.minimum(np.asarray(limits.workspace_low) - ee_position, 0.0)
    most = np.maximum(np.asarray(limits.workspace_high) - ee_position, 0.0)
    inside = np.clip(motion, least, most)
    return inside, "" if np.array_equal(inside, motion) else "workspace"


class Watchdog:
    """Which of the streams in `keys` are older than `max_age_s`. A stream that never came is stale."""

    def __init__(self, keys: Iterable[str], max_age_s: float) -> None:
        self.max_age_s = max_age_s
        self._stamps = dict.fromkeys(keys, -np.inf)

    def feed(self, key: str, stamp: float) -> None:
        """The newest message of stream `key` was measured at `stamp` (s)."""
        if key not in self._stamps:
            raise KeyError(f"no stream {key!r}; watched: {', '.join(self._stamps)}")
        self._stamps[key] = stamp

    def stale(self, now: float) -> tuple[str, ...]:
        """Streams older than max_age_s at `now`, or that far in the future (then a clock is wrong)."""
        return tuple(key for key, stamp in self._stamps.items() if not abs(now - stamp) <= self.max_age_s)

    @property
    def oldest(self) -> float:
        """Stamp of the oldest stream, -inf while one never came."""
        return min(self._stamps.values(), default=-np.inf)


class ChunkScheduler:
    """Which step of which chunk comes next, and when to ask for another.

    A chunk answers an observation; by the time it arrives, some steps of the chunk before have been executed since that
    observation, and as many of its own first steps are skipped. After execute_horizon more steps, or at its end, it is used
    up: nothing is repeated and nothing extrapolated.

    execute_horizon: Ta, steps executed per chunk.
    lead_steps: steps before the end of a chunk at which the next is asked for; about inference time times control rate.
    """

    def __init__(self, *, execute_horizon: int, lead_steps: int = 0) -> None:
        if execute_horizon < 1 or lead_steps < 0:
            raise ValueError(f"execute_horizon={execute_horizon} must be at least 1 and lead_steps={lead_steps} at least 0")
        self.execute_horizon, self.lead_steps = execute_horizon, lead_steps
        self._steps: list[np.ndarray] = []
        self._executed = 0
        self._asked_at: int | None = None  # steps executed when the pending request was made
        self._request = 0

    @property
    def wants_chunk(self) -> bool:
        """Whether now is the time to ask."""
        return self._asked_at is None and len(self._steps) <= self.lead_steps

    def ask(self) -> int:
        """Note that a chunk is asked for with the observation of now; returns the request's number."""
        self._asked_at = self._executed
        self._request += 1
        return self._request

    def add(self, chunk: np.ndarray, request: int) -> bool:
        """Take chunk [H, A], the answer to `request`. False, and nothing changes, if that was given up or answered before."""
        if self._asked_at is None or request != self._request:
            return False
        skip = self._executed - self._asked_at
        self._steps = list(chunk[skip : skip + self.execute_horizon])
        self._asked_at = None
        return True

    def give_up(self, request: int) -> None:
        """Forget `request` if it is pending; a late answer to it is refused. What is left of the chunk goes on."""
        if request == self._request:
            self._asked_at = None

    def clear(self) -> None:
        """Drop what is left of the chunk and the pending request."""
        self._steps, self._asked_at = [], None

    def next(self) -> np.ndarray | None:
        """The action [A] of this control step, None when there is none."""
        if not self._steps:
            return None
        self._executed += 1
        return self._steps.pop(0)


@dataclass(frozen=True)
class Command:
    """What to send at one control step: the action [A] (None = send nothing), the state and the reasons for it."""

    action: np.ndarray | None
    state: str
    reasons: tuple[str, ...] = ()


class Runtime:
    """The state machine HOLD -> RUN -> HOLD ..., and STOPPED until resume(). One tick() per control step.

    HOLD: no usable chunk, a stale observation or an action that is not finite. Nothing is sent before the first action.
    RUN: the guarded step of a chunk; reasons are the guard's flags. STOPPED: stop() was called; latched.

    timeout_s: a chunk that takes longer than this from asking to answer is given up.
    """

    def __init__(self, *, limits: SafetyLimits, execute_horizon: int, lead_steps: int = 0, timeout_s: float = 1.0) -> None:
        self.limits, self.timeout_s = limits, timeout_s
        self._scheduler = ChunkScheduler(execute_horizon=execute_horizon, lead_steps=lead_steps)
        self._previous: np.ndarray | None = None
        self._asked_s, self._request = 0.0, 0
        self._stopped = ""

    def stop(self, reason: str) -> None:
        """Go to STOPPED and drop every chunk, one on its way too."""
        self._stopped = reason
        self._scheduler.clear()

    def resume(self) -> None:
        """Leave STOPPED; the next action comes from an observation made after this."""
        self._stopped = ""

    def ask(self, now: float) -> int | None:
        """The number of a request to make with the observation of `now`, None when none is due."""
        if self._stopped or not self._scheduler.wants_chunk:
            return None
        self._asked_s, self._request = now, self._scheduler.ask()
        return self._request

    def offer(self, chunk: np.ndarray, request: int) -> bool:
        """The policy's chunk [H, A] for `request`. False if it came too late and was dropped."""
        return self._scheduler.add(chunk, request)

    def failed(self, request: int) -> None:
        """The policy did not answer `request`: ask again at the next step."""
        self._scheduler.give_up(request)

    def tick(self, now: float, ee_position: np.ndarray | None = None, stale: tuple[str, ...] = ()) -> Command:
        """The command of the control step at `now` (s).

        Args:
            now: the clock that ask() is given.
            ee_position: [3] (m, base frame), None where unknown.
            stale: streams that are too old (Watchdog.stale); any of them ends the chunk at once.
        """
        if self._stopped:
            return self._hold(STOPPED, (self._stopped,))
        if stale:
            self._scheduler.clear()
            return self._hold(HOLD, tuple(f"stale:{key}" for key in stale))
        if now - self._asked_s > self.timeout_s:
            self._scheduler.give_up(self._request)
        action = self._scheduler.next()
        if action is None:
            return self._hold(HOLD, ("no_chunk",))
        previous = np.zeros(self.limits.action_dim, np.float32) if self._previous is None else self._previous
        safe, flags = guard(action, ee_position, self.limits, previous=previous)
        if "not_finite" in flags or "shape" in flags:
            self._scheduler.clear()
            return self._hold(HOLD, flags)
        self._previous = safe
        return Command(safe, RUN, flags)

    def _hold(self, state: str, reasons: tuple[str, ...]) -> Command:
        action = None if self._previous is None else hold(self._previous, self.limits)
        return Command(action, state, reasons)
