"""The last thing before the robot: any action in, a finite command within every limit out.

How acceleration and jerk limits are kept together with speed limits and walls: a command is let through only if, after it,
the brake (a fixed law, below) comes to a stop within all limits; otherwise it is mixed with the brake's own next step, which
had been found safe one step before (model predictive shielding, Bastani, arXiv 1905.10691). So there is always a way to stop.

Part of the robot-side island: numpy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from .limits import SafetyLimits

_ROUNDING = 1e-6  # relative; what is commanded stays below its limit after rounding too
_SHARES = np.array([1.0, 0.9, 0.75, 0.5, 0.25, 0.1])  # of the wanted command against the brake's
_EASED = {"translation": "acceleration", "rotation": "rotation_acceleration"}
_STILL = 1e-9  # per s; below it is rounding
HUGE = 1e9  # nothing is wanted beyond it
_SLACK = 1 + 1e-9
_ROWS = 20_000  # motions braked at once


class Bounds(NamedTuple):
    """Limits of B motions with n entries each: norms of speed, acceleration and jerk [B] (inf = none), walls [B, n]."""

    speed: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray
    low: np.ndarray
    high: np.ndarray


def brake(velocity: np.ndarray, acceleration: np.ndarray, most: np.ndarray, change: np.ndarray, dt: float) -> np.ndarray:
    """The next acceleration on the way to a standstill, entry by entry.

    The deceleration aimed at is the one from which ramping down by `change` a step ends at zero velocity: n * change with
    change * dt * n (n + 1) / 2 = |velocity|.

    Args:
        velocity, acceleration: of the last step.
        most: largest deceleration.
        change: largest change of the acceleration from step to step.
        dt: length (s) of a step.
    """
    speed = np.abs(velocity)
    n = np.sqrt(0.25 + 2 * speed / (change * dt)) - 0.5
    aim = np.where(n < 1, speed / dt, n * change)
    delta = -np.sign(velocity) * np.minimum(aim, most) - acceleration
    return acceleration + np.minimum(np.maximum(delta, -change), change)


class Limited(NamedTuple):
    """Velocities [B, n] that are allowed, and for which of B motions it was the speed, a wall, the acceleration or jerk."""

    velocity: np.ndarray
    fast: np.ndarray
    walled: np.ndarray
    eased: np.ndarray


def limit_velocity(
    wanted: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray, position: np.ndarray, bounds: Bounds, dt: float
) -> Limited:
    """The velocities to command for the next `dt` (s): `wanted` where it is allowed, else as near as shortening gets.

    The result and any number of brake() steps after it keep speed, acceleration, jerk and walls, if that is true of the
    previous result and the motion goes where it is told. From a position outside the walls nothing goes further out.

    Args:
        wanted, velocity, acceleration: [B, n], what is wanted and the last result's.
        position: [B, n]; NaN where unknown, then walls are not looked at.
        bounds: limits.
        dt: length (s) of a control step.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # limits that are inf, positions that are NaN
        low, high = np.fmin(bounds.low, position), np.fmax(bounds.high, position)
        bounds = bounds._replace(low=low, high=high)
        most, change = _per_entry(bounds, wanted.shape[1], dt)
        short = _shorten(wanted, bounds.speed[:, None])
        aim = np.clip(short, -_approach(position - low, most, change, dt), _approach(high - position, most, change, dt))
        push = _shorten((aim - velocity) / dt, bounds.acceleration[:, None])
        push = acceleration + _shorten(push - acceleration, bounds.jerk[:, None] * dt)
        going = velocity + push * dt
        braking = velocity + brake(velocity, acceleration, most, change, dt) * dt
        safe = np.empty_like(going)
        for start in range(0, len(going), _ROWS):
            rows = slice(start, start + _ROWS)
            part = Bounds(*(limit[rows] for limit in bounds))
            safe[rows] = _certified(going[rows], braking[rows], velocity[rows], position[rows], part, dt)
        least, most = np.minimum((low - position) / dt, 0.0), np.maximum((high - position) / dt, 0.0)
        known = ~np.isnan(position)
        inside = np.clip(safe, np.where(known, least, -np.inf), np.where(known, most, np.inf))
    close = 1e-9 * bounds.speed
    return Limited(
        velocity=inside,
        fast=np.abs(short - wanted).max(axis=1) > 0,
        walled=np.abs(aim - short).max(axis=1) + np.abs(inside - safe).max(axis=1) > close,
        eased=np.abs(safe - aim).max(axis=1) > close,
    )


def _certified(
    going: np.ndarray, braking: np.ndarray, velocity: np.ndarray, position: np.ndarray, bounds: Bounds, dt: float
) -> np.ndarray:
    """The mix of `going` and `braking` with the largest share of the former after which braking is safe."""
    safe = braking.copy()
    left = np.arange(len(going))
    for share in _SHARES:
        mixed = braking[left] + share * (going[left] - braking[left])
        part = Bounds(*(limit[left] for limit in bounds))
        good = stops_within(mixed, (mixed - velocity[left]) / dt, position[left] + mixed * dt, part, dt)
        safe[left[good]] = mixed[good]
        left = left[~good]
        if not len(left):
            break
    return safe


def stops_within(velocity: np.ndarray, acceleration: np.ndarray, position: np.ndarray, bounds: Bounds, dt: float) -> np.ndarray:
    """Whether each of B motions [B, n], now at `position`, is within `bounds` and stays so while it brakes to a stop: [B]."""
    most, change = _per_entry(bounds, velocity.shape[1], dt)
    fastest, hardest = np.square(bounds.speed * _SLACK), np.square(bounds.acceleration * _SLACK)
    reach = (_SLACK - 1) * (1 + np.abs(position))
    low, high = bounds.low - reach, bounds.high + reach
    walled = bool(np.isfinite(low).any() or np.isfinite(high).any())
    still = np.square((_SLACK - 1) * bounds.speed)
    good = np.ones(len(velocity), bool)
    for _ in range(_longest_stop(bounds, velocity.shape[1], dt)):
        speed, push = np.square(velocity).sum(axis=1), np.square(acceleration).sum(axis=1)
        good &= (speed <= fastest) & (push <= hardest)
        if walled:
            good &= ~((position < low) | (position > high)).any(axis=1)
        moving = good & (speed + push * dt * dt > still)
        if not moving.any():
            return good
        acceleration = brake(velocity, acceleration, most, change, dt)
        velocity = velocity + acceleration * dt
        position = position + velocity * dt
    return good & ~moving


def _per_entry(bounds: Bounds, size: int, dt: float) -> tuple[np.ndarray, np.ndarray]:
    """Deceleration and its change from step to step [B, 1] that each of `size` entries may have at the same time."""
    return bounds.acceleration[:, None] / np.sqrt(size), bounds.jerk[:, None] * dt / np.sqrt(size)


def _longest_stop(bounds: Bounds, size: int, dt: float) -> int:
    """Steps that braking takes at most: from full speed, with the full acceleration the wrong way."""
    ramp = np.nan_to_num(bounds.acceleration * np.sqrt(size) / bounds.jerk, nan=0.0, posinf=0.0)
    return int(np.ceil(((bounds.speed * np.sqrt(size) / bounds.acceleration + 3 * ramp) / dt).max())) + 8


def _approach(distance: np.ndarray, most: np.ndarray, change: np.ndarray, dt: float) -> np.ndarray:
    """The speed at which a wall at `distance` may be neared: what can be braked in time. inf where the distance is unknown.

    Solves v^2 / (2 most) + v (dt + most dt / (2 change)) = distance, and the distance itself in one step without limits.
    """
    lag = dt + np.where(np.isfinite(change), most * dt / (2 * change), 0.0)
    limited = most * (np.sqrt(lag**2 + 2 * distance / most) - lag)
    speed = np.where(np.isfinite(most), limited, distance / dt)
    return np.where(np.isfinite(distance), np.fmax(speed, 0.0), np.inf)


def _shorten(vectors: np.ndarray, longest: np.ndarray) -> np.ndarray:
    """Vectors [B, n] scaled to at most `longest` [B, 1]."""
    length = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    return vectors * np.minimum(longest / np.maximum(length, np.finfo(float).tiny), 1.0)


class SafetyFilter:
    """Keeps commands of one robot within `limits`; remembers the last command.

    An action's motion entries say how far to go in one control step, the absolute ones where to be. Motions are shortened, not
    turned, but for what acceleration limits and walls make of them; at the wall of the workspace the arm slides.

    control_hz: rate of the commands. policy_hz: rate to which the limits per step refer.
    """

    def __init__(self, limits: SafetyLimits, *, control_hz: float, policy_hz: float) -> None:
        self.limits, self.dt = limits, 1 / control_hz
        speeds = limits.max_translation_per_step * policy_hz, limits.max_rotation_per_step * policy_hz
        box = limits.workspace_low, limits.workspace_high
        moves = make_bounds(speeds[0], limits.max_acceleration, limits.max_jerk, *box, (1, len(limits.translation)))
        turns = make_bounds(
            speeds[1], limits.max_rotation_acceleration, limits.max_rotation_jerk, None, None, (1, len(limits.rotation))
        )
        self._groups = ((list(limits.translation), moves), (list(limits.rotation), turns))
        rates = limits.max_absolute_speed, limits.max_absolute_acceleration, limits.max_absolute_jerk
        low, high = (None if end is None else np.reshape(end, (-1, 1)) for end in (limits.low, limits.high))
        self._absolute = make_bounds(*rates, low, high, (len(limits.absolute), 1))
        self._velocity, self._acceleration = np.zeros(limits.action_dim), np.zeros(limits.action_dim)
        self.target: np.ndarray | None = None  # [absolute] last commanded, None before the first

    def refuses(self, action: np.ndarray, joints: np.ndarray | None = None) -> str:
        """Why nothing of `action` [A] may be commanded, "" if something may: "shape", "not_finite", "joint_limits" (the
        measured joints are outside, or unknown), "no_joints" (absolute entries of limited speed start where they are measured,
        the first of them at least).
        """
        limits = self.limits
        if np.shape(action) != (limits.action_dim,):
            return "shape"
        if not np.isfinite(action).all():
            return "not_finite"
        if limits.joint_low is not None and limits.joint_high is not None:
            if joints is None or np.shape(joints) != np.shape(limits.joint_low):
                return "joint_limits"
            if not np.all((joints >= np.asarray(limits.joint_low)) & (joints <= np.asarray(limits.joint_high))):
                return "joint_limits"
        if self.target is None and limits.max_absolute_speed is not None:
            measured = joints is not None and 0 < np.size(joints) <= len(limits.absolute) and np.isfinite(joints).all()
            return "" if measured else "no_joints"
        return ""

    def __call__(
        self, action: np.ndarray, ee_position: np.ndarray | None = None, joints: np.ndarray | None = None
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """The command float64 [A] nearest to `action` [A], and what was done: what refuses() says (then it brakes), or of
        "translation", "rotation" (speeds), "acceleration", "rotation_acceleration", "workspace", "no_position", "bounds",
        "absolute_speed". Never raises and never returns what is not finite.

        ee_position: [3] (m, base frame) now, None where unknown: with a workspace nothing is translated then.
        joints: measured joints, None where unknown. With a speed limit the first absolute entries start at them; those of which
            there is no measurement, say a gripper, where they are first told to be.
        """
        refused = self.refuses(action, joints)
        if refused:
            return self.brake(ee_position), (refused,)
        wanted = np.clip(np.asarray(action, np.float64), -HUGE, HUGE)
        if self.target is None:
            bounds = self._absolute
            start = wanted[list(self.limits.absolute)]
            if self.limits.max_absolute_speed is not None and joints is not None:
                start[: len(joints)] = joints
            self.target = np.clip(start, bounds.low[:, 0], bounds.high[:, 0])
        return self._command(wanted, ee_position)

    def brake(self, ee_position: np.ndarray | None = None) -> np.ndarray:
        """The command that comes to a standstill as fast as the limits allow; the absolute entries stay."""
        wanted = np.zeros(self.limits.action_dim)
        if self.target is not None:
            wanted[list(self.limits.absolute)] = self.target
        return self._command(wanted, ee_position)[0]

    def halt(self) -> np.ndarray:
        """The command of an emergency stop: a standstill now, whatever the acceleration limits say."""
        self._velocity[:], self._acceleration[:] = 0.0, 0.0
        return self.brake()

    @property
    def moving(self) -> bool:
        """Whether the last command was a motion, or an absolute entry on its way with a speed limit."""
        return bool((np.abs(self._velocity) > _STILL).any())

    def forget(self) -> None:
        """The robot stands, and nothing was commanded yet: only for when that is so, or brake() would end in a jump."""
        self._velocity[:], self._acceleration[:], self.target = 0.0, 0.0, None

    def _command(self, wanted: np.ndarray, ee_position: np.ndarray | None) -> tuple[np.ndarray, tuple[str, ...]]:
        command = np.zeros(self.limits.action_dim)
        flags: list[str] = []
        known = ee_position is not None and np.shape(ee_position) == (3,) and bool(np.isfinite(ee_position).all())
        for name, (entries, bounds) in zip(("translation", "rotation"), self._groups):  # noqa: B905  (Python 3.8)
            if not entries:
                continue
            want, position = wanted[entries] / self.dt, np.full(len(entries), np.nan)
            boxed = bool(np.isfinite(bounds.low).any())
            if boxed and known:
                position = np.asarray(ee_position, np.float64)
            elif boxed and want.any():
                want, flags = np.zeros(3), [*flags, "no_position"]
            last = self._velocity[entries][None], self._acceleration[entries][None]
            found = limit_velocity(want[None], *last, position[None], bounds, self.dt)
            reasons = (name, found.fast), ("workspace", found.walled), (_EASED[name], found.eased)
            flags += [reason for reason, is_so in reasons if is_so[0]]
            self._move(entries, found.velocity[0])
            command[entries] = found.velocity[0] * self.dt
        if self.limits.absolute:
            command[list(self.limits.absolute)], more = self._toward(wanted[list(self.limits.absolute)])
            flags += more
        return command, tuple(flags)

    def _toward(self, wanted: np.ndarray) -> tuple[np.ndarray, list[str]]:
        if self.target is None:
            return np.zeros_like(wanted), []
        entries, bounds = list(self.limits.absolute), self._absolute
        flags: list[str] = []
        inside = np.clip(wanted, bounds.low[:, 0], bounds.high[:, 0])
        if (inside != wanted).any():
            flags.append("bounds")
        if self.limits.max_absolute_speed is None:
            self.target = inside
            return inside, flags
        way = inside - self.target
        with np.errstate(invalid="ignore"):
            reach = _approach(np.abs(way), bounds.acceleration, bounds.jerk * self.dt, self.dt)
        want = np.sign(way) * np.minimum(np.abs(way) / self.dt, reach)
        last = self._velocity[entries][:, None], self._acceleration[entries][:, None]
        velocity = limit_velocity(want[:, None], *last, self.target[:, None], bounds, self.dt).velocity[:, 0]
        self._move(entries, velocity)
        self.target = self.target + velocity * self.dt
        if (np.abs(self.target - inside) > _ROUNDING * (1 + np.abs(inside))).any():
            flags.append("absolute_speed")
        return self.target.copy(), flags

    def _move(self, entries: list[int], velocity: np.ndarray) -> None:
        self._acceleration[entries] = (velocity - self._velocity[entries]) / self.dt
        self._velocity[entries] = velocity


def make_bounds(speed: Any, acceleration: Any, jerk: Any, low: Any, high: Any, shape: tuple[int, int]) -> Bounds:
    """Bounds of motions [B, n] = `shape` with a margin for rounding; None = no limit, no wall."""
    rates = [
        np.broadcast_to(np.inf if r is None else np.asarray(r, float) * (1 - _ROUNDING), shape[:1])
        for r in (speed, acceleration, jerk)
    ]
    walls = [
        np.broadcast_to(far if end is None else np.asarray(end, float), shape) for end, far in ((low, -np.inf), (high, np.inf))
    ]
    return Bounds(rates[0], rates[1], rates[2], walls[0], walls[1])
