"""What stands between a policy's chunks and a robot: timing, limits, watchdogs. Pure: no clock, no thread, no ROS.

Times come in as numbers (s, any one clock), so the same calls give the same commands on a robot, in a replay and in a test.
Part of the robot-side island: numpy only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING or __package__:
    from .interpolation import Interpolator
    from .limits import SafetyLimits
    from .monitor import OK, STOP, Gate
    from .safety import HUGE, SafetyFilter
    from .scheduling import MODES, REPLACE, ChunkScheduler
else:  # this folder itself is on the path
    from interpolation import Interpolator
    from limits import SafetyLimits
    from monitor import OK, STOP, Gate
    from safety import HUGE, SafetyFilter
    from scheduling import MODES, REPLACE, ChunkScheduler

HOLD, RUN, STOPPED = "hold", "run", "stopped"
ESTOP = "estop"


@dataclass(frozen=True)
class RuntimeSettings:
    """How chunks become commands. A mapping file's `runtime` block.

    control_hz: rate of commands, at least the policy's; None = the policy's.
    mode, lead_steps, decay, response_s: see ChunkScheduler. num_candidates: chunks drawn for a decision; "real_time" picks.
    max_age_s, tolerance_s: see Synchronizer.
    timeout_s: a chunk that takes longer than this from asking to answer is given up and asked for again.
    stop_after_s: a hold that lasts longer than this after the robot moved becomes a stop; None = never.
    slow_speed: share of the speed while the monitor says "slow".
    """

    control_hz: float | None = None
    mode: str = REPLACE
    lead_steps: int | None = 0
    decay: float = 0.01
    response_s: float = 0.0
    num_candidates: int = 1
    max_age_s: float = 0.25
    tolerance_s: float = 0.05
    timeout_s: float = 1.0
    stop_after_s: float | None = 2.0
    slow_speed: float = 0.5

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} must be one of {', '.join(MODES)}")
        for name in ("max_age_s", "tolerance_s", "timeout_s", "stop_after_s", "control_hz"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name}={value} must be positive and finite")
        if self.num_candidates < 1 or not 0 < self.slow_speed <= 1:
            raise ValueError(f"num_candidates={self.num_candidates} must be from 1, slow_speed={self.slow_speed} in (0, 1]")


@dataclass(frozen=True)
class Command:
    """What to send at one control step.

    action: float64 [A], the motion of one control step and the absolute targets; None = nothing to send yet.
    state: HOLD, RUN or STOPPED. reasons: why, and what the limits did. stamp: when the observation behind it was made (s).
    publish: whether to send it: there is an action and this is no dry run.
    """

    action: np.ndarray | None
    state: str
    reasons: tuple[str, ...] = ()
    stamp: float = -np.inf
    publish: bool = False


class Runtime:
    """The state machine HOLD -> RUN -> HOLD ..., and STOPPED until resume(). One tick() per control step.

    HOLD: no usable chunk, or a reason not to use it: the robot brakes within its limits and stays. Nothing is sent before the
    first action. RUN: the next step of the plan, within the limits. STOPPED: latched. After stop() or estop() at a standstill
    with the next command; when the monitor said "stop" or a hold lasted too long it brakes within the limits.

    Attributes:
        counters: control steps by state and by reason, and events.
        enabled: False = a dry run, in which all is computed and nothing is to be sent; enable() changes it.
    """

    def __init__(
        self,
        *,
        limits: SafetyLimits,
        execute_horizon: int,
        policy_hz: float,
        settings: RuntimeSettings | None = None,
        gate: Gate | None = None,
        enabled: bool = True,
    ) -> None:
        self.limits, self.enabled = limits, enabled
        self.settings = settings or RuntimeSettings()
        self.control_hz = self.settings.control_hz or policy_hz
        self.gate = gate or Gate({})
        self.counters: Counter[str] = Counter()
        self._scheduler = ChunkScheduler(
            execute_horizon=execute_horizon,
            step_s=1 / policy_hz,
            lead_steps=self.settings.lead_steps,
            mode=self.settings.mode,
            decay=self.settings.decay,
            response_s=self.settings.response_s,
        )
        self._interpolator = Interpolator(limits, ratio=policy_hz / self.control_hz)
        self._filter = SafetyFilter(limits, control_hz=self.control_hz, policy_hz=policy_hz)
        self._request = 0
        self._stopped, self._abrupt = "", False
        self._estop = False
        self._ending = False  # reset() was called while it moved
        self._since_s: float | None = -np.inf  # observations made before are of another time; None = before the next ask()
        self._last_s = -np.inf  # time of the last tick
        self._ran_s: float | None = None  # of the last RUN that no stop followed

    @property
    def stopped(self) -> str:
        """Why it is STOPPED, "" if it is not."""
        return self._stopped

    @property
    def lead_steps(self) -> int:
        """Steps before the end of a chunk at which the next is asked for."""
        return self._scheduler.lead_steps

    def stop(self, reason: str, *, abrupt: bool = True) -> None:
        """Go to STOPPED and drop every chunk, one on its way too. The first reason stays.

        abrupt: a standstill with the next command, whatever the acceleration limits; False = brake within them.
        """
        if not self._stopped:
            self.counters[f"stop:{reason}"] += 1
        self._stopped = self._stopped or reason
        self._abrupt = self._abrupt or abrupt
        self._drop()

    def estop(self, active: bool) -> None:
        """The emergency stop's state; once it was active only resume() helps, after its release."""
        self._estop = bool(active)
        if active:
            self.stop(ESTOP)

    def resume(self) -> bool:
        """Leave STOPPED; the next action comes from an observation made after this. False while the emergency stop is on, and
        until the robot was told to stand: call it again after the next tick() then.
        """
        if self._estop or self._filter.moving:
            return False
        self._stopped, self._abrupt = "", False
        self.reset()
        return True

    def reset(self) -> None:
        """A new episode: no plan, no history of commands or scores, no older observation. A robot that moves brakes first."""
        self._drop()
        self.gate.clear()
        self._since_s, self._ending = None, True
        self._end_episode()

    def enable(self, enabled: bool) -> None:
        """Whether commands are to be sent; False = a dry run. What a dry run came to nobody did: enabled, it begins anew."""
        if enabled and not self.enabled:
            self._drop()
            self._filter.forget()
            self._ran_s = None
        self.enabled = enabled

    def ask(self, now: float, stamp: float | None = None) -> int | None:
        """The number of a request to make with the observation of `stamp` (s; None = now), None when none is due."""
        if self._stopped or self._ending:
            return None
        if self._since_s is None:
            self._since_s = now
        if stamp is not None and stamp < self._since_s:
            return None
        if self._scheduler.waiting(now) > self.settings.timeout_s:
            self.counters["inference_timeout"] += 1
            self._scheduler.give_up(self._request)
        if not self._scheduler.wants_chunk:
            return None
        self._request = self._scheduler.ask(now, stamp)
        return self._request

    def offer(self, chunks: np.ndarray, request: int, now: float, score: float | None = None) -> bool:
        """The policy's candidates [N, H, A] for `request`, and the monitor's score of what it saw. False if refused: too late,
        or not finite numbers of that shape.
        """
        if score is not None:
            level = self.gate.update(score)
            if level != OK:
                self.counters[f"ood:{level}"] += 1
            if level == STOP:
                self.stop("ood", abrupt=False)
        if np.ndim(chunks) != 3 or np.shape(chunks)[2] != self.limits.action_dim or not np.isfinite(chunks).all():
            self.counters["chunk_refused"] += 1
            self._scheduler.give_up(request)
            return False
        taken = self._scheduler.add(np.clip(chunks, -HUGE, HUGE), request, now)
        self.counters["chunks" if taken else "chunk_too_late"] += 1
        return taken

    def failed(self, request: int) -> None:
        """The policy did not answer `request`: ask again at the next step."""
        self.counters["policy_failed"] += 1
        self._scheduler.give_up(request)

    def tick(
        self,
        now: float,
        ee_position: np.ndarray | None = None,
        blocked: tuple[str, ...] = (),
        joints: np.ndarray | None = None,
    ) -> Command:
        """The command of the control step at `now` (s).

        Args:
            now: the clock that ask() and offer() are given.
            ee_position: [3] (m, base frame), None where unknown.
            blocked: reasons why there is no observation to act on (Synchronizer.observe); any of them ends the plan at once.
            joints: measured joints, None where unknown.
        """
        command = self._decide(now, ee_position, blocked, joints)
        self._last_s = now
        self._end_episode()
        self.counters.update((command.state, *command.reasons))
        return command

    def _decide(
        self, now: float, ee_position: np.ndarray | None, blocked: tuple[str, ...], joints: np.ndarray | None
    ) -> Command:
        if now < self._last_s:  # what is planned and remembered belongs to another time
            self._drop()
            self._ran_s = None if self._ran_s is None else now
            self._since_s = -np.inf
            blocked = (*blocked, "clock_jumped_back")
        if self._stopped:
            return self._standing(ee_position)
        if blocked or self._ending:
            self._drop()
            return self._hold(now, ee_position, blocked or ("reset",))
        wanted = self._interpolator.next(lambda: self._scheduler.next(now), self.gate.speed)
        if wanted is None:
            return self._hold(now, ee_position, ("no_chunk",))
        refused = self._filter.refuses(wanted, joints)
        if refused:
            self._drop()
            return self._hold(now, ee_position, (refused,))
        action, reasons = self._filter(wanted, ee_position, joints)
        self._ran_s = now
        reasons = reasons if self.gate.level == OK else (*reasons, f"ood:{self.gate.level}")
        return self._command(action, RUN, reasons)

    def _hold(self, now: float, ee_position: np.ndarray | None, reasons: tuple[str, ...]) -> Command:
        self._interpolator.clear()
        longest = self.settings.stop_after_s
        if self._ran_s is not None and longest is not None and now - self._ran_s > longest:
            self.stop(f"watchdog:{reasons[0]}", abrupt=False)
            return self._standing(ee_position)
        return self._command(self._filter.brake(ee_position), HOLD, reasons)

    def _standing(self, ee_position: np.ndarray | None) -> Command:
        action = self._filter.halt() if self._abrupt else self._filter.brake(ee_position)
        return self._command(action, STOPPED, (self._stopped,))

    def _command(self, action: np.ndarray, state: str, reasons: tuple[str, ...]) -> Command:
        known = self._filter.target is not None or not self.limits.absolute
        started = self._ran_s is not None or state == STOPPED
        sent = action if known and started else None
        return Command(sent, state, reasons, self._scheduler.stamp, self.enabled and sent is not None)

    def _end_episode(self) -> None:
        """What reset() asked for, as soon as the robot stands."""
        if self._ending and not self._filter.moving:
            self._filter.forget()
            self._ran_s, self._ending = None, False

    def _drop(self) -> None:
        self._scheduler.clear()
        self._interpolator.clear()
