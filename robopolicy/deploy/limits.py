"""What a robot may be told: the numbers. safety.py keeps commands within them. Part of the robot-side island: numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_POSITIVE = (
    "max_translation_per_step",
    "max_rotation_per_step",
    "max_acceleration",
    "max_jerk",
    "max_rotation_acceleration",
    "max_rotation_jerk",
)
_PAIRS = (("workspace_low", "workspace_high"), ("low", "high"), ("joint_low", "joint_high"))
_NEEDS = (
    ("max_jerk", "max_acceleration"),
    ("max_rotation_jerk", "max_rotation_acceleration"),
    ("max_absolute_jerk", "max_absolute_acceleration"),
    ("max_absolute_acceleration", "max_absolute_speed"),
)


@dataclass(frozen=True)
class SafetyLimits:
    """What one action may do. The default layout is the package's own: x, y, z (m), rotation vector (rad), gripper in [0, 1].

    max_translation_per_step, max_rotation_per_step: longest translation (m, a vector norm) and largest rotation angle (rad)
        of one step of the policy; times its rate they are speeds, and hold at any control rate.
    max_acceleration (m/s^2), max_jerk (m/s^3), max_rotation_acceleration (rad/s^2), max_rotation_jerk (rad/s^3): vector
        norms; None = unlimited. A jerk limit needs an acceleration limit.
    max_absolute_speed, max_absolute_acceleration, max_absolute_jerk: of each absolute entry, per s, s^2, s^3; None = unlimited.
    workspace_low, workspace_high: corners [3] (m, base frame) of the box that the end effector stays in; None = anywhere.
    low, high: bounds of the `absolute` entries, in their order (for joint targets the joint limits); None = unbounded.
    joint_low, joint_high: bounds of the measured joints, one for each; outside them nothing moves. None = not looked at.
    translation, rotation: indices of the entries that move the end effector; () for a policy that has none.
    absolute: indices of the entries that are a target rather than a motion (gripper, joints); holding repeats them.
    """

    max_translation_per_step: float = 0.02
    max_rotation_per_step: float = 0.1
    max_acceleration: float | None = None
    max_jerk: float | None = None
    max_rotation_acceleration: float | None = None
    max_rotation_jerk: float | None = None
    max_absolute_speed: tuple[float, ...] | None = None
    max_absolute_acceleration: tuple[float, ...] | None = None
    max_absolute_jerk: tuple[float, ...] | None = None
    workspace_low: tuple[float, ...] | None = None
    workspace_high: tuple[float, ...] | None = None
    low: tuple[float, ...] | None = (0.0,)
    high: tuple[float, ...] | None = (1.0,)
    joint_low: tuple[float, ...] | None = None
    joint_high: tuple[float, ...] | None = None
    translation: tuple[int, ...] = (0, 1, 2)
    rotation: tuple[int, ...] = (3, 4, 5)
    absolute: tuple[int, ...] = (6,)

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is None and not name.endswith("_per_step"):
                continue
            if not isinstance(value, (int, float)) or not 0 < value < np.inf:
                raise ValueError(f"{name}={value} must be positive and finite")
        sizes = {"workspace_low": 3, "workspace_high": 3}
        sizes.update({name: len(self.absolute) for name in ("low", "high")})
        sizes.update({f"max_absolute_{name}": len(self.absolute) for name in ("speed", "acceleration", "jerk")})
        for name, size in sizes.items():
            value = getattr(self, name)
            if value is not None and (len(value) != size or not np.isfinite(value).all()):
                raise ValueError(f"{name}={value} must be {size} finite numbers or null")
            if value is not None and name.startswith("max_") and min(value) <= 0:
                raise ValueError(f"{name}={value} must be positive")
        for low, high in _PAIRS:
            a, b = getattr(self, low), getattr(self, high)
            if (a is None) != (b is None) or (a is not None and (len(a) != len(b) or not np.less(a, b).all())):
                raise ValueError(f"{low}={a} must lie below {high}={b}: give both or neither")
        for name, needed in _NEEDS:
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise ValueError(f"{name} needs {needed}: without it there is no way to stop in time")
        if self.workspace_low is not None and len(self.translation) != 3:
            raise ValueError(f"a workspace box needs three translation entries, given translation={self.translation}")
        if sorted(self.translation + self.rotation + self.absolute) != list(range(self.action_dim)):
            raise ValueError(
                f"translation={self.translation}, rotation={self.rotation} and absolute={self.absolute} must name every entry "
                "from 0 once"
            )

    @property
    def action_dim(self) -> int:
        """A, entries of one action: each is a translation, a rotation or absolute."""
        return len(self.translation) + len(self.rotation) + len(self.absolute)

    @property
    def motion(self) -> tuple[int, ...]:
        """Indices of the entries that are a motion."""
        return (*self.translation, *self.rotation)
