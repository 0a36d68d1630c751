"""A robot that does exactly what it is told, and remembers it: the other end of a Controller, with faults on the way."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy_bench.toy import EE_NAMES, IMAGE
from robopolicy.deploy.controller import Controller
from robopolicy.deploy.limits import SafetyLimits
from robopolicy.deploy.runtime import ESTOP, HOLD, RUN, STOPPED, Command, RuntimeSettings
from robopolicy.spec import STATE

LIMITS = SafetyLimits(
    workspace_low=(0.3, -0.4, 0.0),
    workspace_high=(0.7, 0.4, 0.5),
    max_acceleration=4.0,
    max_jerk=80.0,
    max_rotation_acceleration=20.0,
    max_rotation_jerk=400.0,
)
STREAMS = {"camera": IMAGE, "ee": STATE}

Messages = list[tuple[str, float, np.ndarray]]  # stream, stamp, value
Fault = Callable[
    [float, float, Messages], tuple[float, Messages]
]  # (seconds since the start, now, messages) -> (now, messages)


def no_fault(elapsed: float, now: float, messages: Messages) -> tuple[float, Messages]:
    """All is well."""
    return now, messages


@dataclass
class Log:
    """What the robot received: time since the start (s) and command of every control step, where it was then (m)."""

    times: list[float] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    places: list[np.ndarray] = field(default_factory=list)

    def states(self) -> dict[str, int]:
        """Control steps by state."""
        return dict(Counter(command.state for command in self.commands))

    def reasons(self, after_s: float = 0.0) -> list[str]:
        """Reasons that were given, in order of appearance."""
        later = [c for t, c in zip(self.times, self.commands, strict=True) if t >= after_s]
        return list(dict.fromkeys(reason for command in later for reason in command.reasons))

    def first(self, state: str, after_s: float) -> float | None:
        """Seconds from `after_s` to the first step in `state`."""
        return next(
            (t - after_s for t, c in zip(self.times, self.commands, strict=True) if t >= after_s and c.state == state), None
        )

    def moved_m(self, after_s: float) -> float:
        """Length of the way from `after_s` on."""
        later = [c for t, c in zip(self.times, self.commands, strict=True) if t >= after_s and c.publish]
        return float(sum(np.linalg.norm(command.action[:3]) for command in later))

    def beyond(self, limits: SafetyLimits, control_hz: float, policy_hz: float) -> int:
        """Commands that break a limit, were not finite, or left the robot outside the box."""
        sent = [c.action for c in self.commands if c.publish and c.action is not None]
        abrupt = [c.reasons[:1] == (ESTOP,) for c in self.commands if c.publish]
        return beyond_limits(np.array(sent), abrupt, limits, control_hz, policy_hz) + sum(
            bool((p < np.array(limits.workspace_low) - 1e-6).any() or (p > np.array(limits.workspace_high) + 1e-6).any())
            for p in self.places
        )


def beyond_limits(sent: np.ndarray, abrupt: Sequence[bool], limits: SafetyLimits, control_hz: float, policy_hz: float) -> int:
    """Commands [n, 7] that break a limit; those of an emergency stop, `abrupt`, may have any acceleration."""
    if not len(sent):
        return 0
    slack, free = 1 + 1e-6, np.array(abrupt)
    bad = ~np.isfinite(sent).all(axis=1) | (sent[:, 6] < 0) | (sent[:, 6] > 1)
    parts = (
        (slice(0, 3), limits.max_translation_per_step, limits.max_acceleration, limits.max_jerk),
        (slice(3, 6), limits.max_rotation_per_step, limits.max_rotation_acceleration, limits.max_rotation_jerk),
    )
    for entries, length, acceleration, jerk in parts:
        velocity = sent[:, entries] * control_hz
        push = np.diff(velocity, axis=0, prepend=0) * control_hz
        jolt = np.diff(push, axis=0, prepend=0) * control_hz
        bad |= np.linalg.norm(velocity, axis=1) > length * policy_hz * slack
        bad |= ~free & (np.linalg.norm(push, axis=1) > (acceleration or np.inf) * slack)
        after = free | np.roll(free, 1) | np.roll(free, 2)
        bad |= ~after & (np.linalg.norm(jolt, axis=1) > (jerk or np.inf) * slack)
    return int(bad.sum())


class Robot:
    """A point with a gripper. real_time: waits for its clock; False = as fast as it goes, in time of its own."""

    def __init__(self, policy: Any, *, real_time: bool = False, threaded: bool | None = None, **settings: Any) -> None:
        self.settings = RuntimeSettings(**settings)
        self.controller = Controller(
            policy,
            STREAMS,
            limits=LIMITS,
            settings=self.settings,
            ee_position=EE_NAMES,
            enabled=True,
            threaded=real_time if threaded is None else threaded,
        )
        self.real_time, self.policy = real_time, policy
        self.position = np.array([0.4, 0.2, 0.1])
        self.log = Log()
        height, width, _ = policy.spec.observation[IMAGE].shape
        self._picture = np.full((height, width, 3), 128, np.uint8)
        self._elapsed = 0.0

    def run(self, seconds: float, fault: Fault = no_fault) -> Robot:
        """Go on for `seconds` of its time; sensors 4 ms and 1 ms old."""
        period, started = 1 / self.controller.control_hz, time.monotonic() - self._elapsed
        end = self._elapsed + seconds
        while self._elapsed < end - 1e-9:
            now = 1000.0 + self._elapsed
            messages = [("camera", now - 0.004, self._picture), ("ee", now - 0.001, self.position.astype(np.float32))]
            now, messages = fault(self._elapsed, now, messages)
            for message in messages:
                self.controller.receive(*message)
            command = self.controller.step(now)
            if command.publish and command.action is not None:
                self.position = self.position + command.action[:3]
            self.log.times.append(self._elapsed)
            self.log.commands.append(command)
            self.log.places.append(self.position)
            self._elapsed += period
            if self.real_time:
                time.sleep(max(0.0, started + self._elapsed - time.monotonic()))
                self._elapsed = max(self._elapsed, time.monotonic() - started)
        return self

    @property
    def beyond(self) -> int:
        """Commands beyond a limit so far."""
        return self.log.beyond(LIMITS, self.controller.control_hz, self.policy.spec.control_hz)

    def summary(self, fault_s: float) -> dict[str, Any]:
        """What happened after the fault at `fault_s`."""
        hold, stop = self.log.first(HOLD, fault_s), self.log.first(STOPPED, fault_s)
        running = [t for t, c in zip(self.log.times, self.log.commands, strict=True) if c.state == RUN]
        return {
            "hold_after_s": hold,
            "stop_after_s": stop,
            "moved_after_fault_m": self.log.moved_m(fault_s),
            "ran_until_s": running[-1] - fault_s if running else None,
            "reasons": self.log.reasons(fault_s),
            "states": self.log.states(),
            "commands": sum(command.publish for command in self.log.commands),
            "beyond_limits": self.beyond,
        }
