"""Scripted dressing: an expert that follows the arm, and a naive planner that goes straight for the shoulder.

Both see privileged state and are stateless: what to do next follows from where the gripper is, so they recover.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import gymnasium

    from robopolicy.sim.dress import DressEnv

ABOVE = 0.05  # m of the middle of the rim above the arm's axis
SPACING = 0.01  # m between the points of a path
AHEAD = 0.03  # m along the path that the expert looks ahead
AROUND_ELBOW, BESIDE_UPPER = 0.12, 0.15  # m, times the sine of the bend: how far outside of a bent arm the path goes
BACK = 0.05  # m before the finger tips, where a path begins
ASIDE = 0.025  # m off the path, while the hand is not in the sleeve yet, from where it returns to the beginning


@dataclass(frozen=True)
class DressExpert:
    """Follows finger, wrist, elbow, shoulder with the middle of the rim, turned along the part of the arm it is on.

    Around a bent elbow it goes outside, and stays there: a sleeve that follows the axis snags on the elbow's tip.

    offset [3] (m) and yaw_offset (rad) are by how much it misjudges where the arm is.
    """

    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    yaw_offset: float = 0.0

    @classmethod
    def imperfect(cls, rng: np.random.Generator) -> DressExpert:
        """An expert that misjudges; about half of such experts fail."""
        x, y, z = rng.normal(0.0, (0.028, 0.1, 0.07)).tolist()
        return cls(offset=(x, y, z), yaw_offset=float(rng.normal(0.0, 0.5)))

    def __call__(self, env: gymnasium.Env) -> np.ndarray:
        """Action for the present state of an environment, wrapped or not."""
        inner: DressEnv = env.unwrapped  # type: ignore[assignment]
        points, yaws = self._path(inner)
        rim = inner.rim_centre
        distance = np.linalg.norm(points - rim, axis=1)
        nearest = int(distance.argmin())
        aside = distance[nearest] > ASIDE and not inner.threaded
        goal = 0 if aside else min(nearest + round(AHEAD / SPACING), len(points) - 1)
        return inner.action_towards(points[goal] - rim, yaws[goal] + self.yaw_offset)

    def _path(self, env: DressEnv) -> tuple[np.ndarray, np.ndarray]:
        """Points [n, 3] (m) for the middle of the rim, SPACING apart, and the yaw [n] (rad) of the gripper at each."""
        arm, up = env.arm, np.array([0.0, 0.0, ABOVE]) + self.offset
        finger, elbow, shoulder = arm.line
        angle = float(np.arctan2(arm.upper_direction[1], arm.upper_direction[0]))
        beside = BESIDE_UPPER * np.sin(angle) * _outside(angle)
        way = np.array(
            [
                finger + [-BACK, 0.0, 0.0],
                finger + [0.05, 0.0, 0.0],
                elbow + [0.01, 0.0, 0.0] + AROUND_ELBOW * np.sin(angle) * _outside(angle / 2),
                elbow + 0.5 * (shoulder - elbow) + beside,
                shoulder + beside,
            ]
        )
        return resampled(way + up, np.array([0.0, 0.0, angle / 2, angle, angle]), SPACING)


def _outside(angle: float) -> np.ndarray:
    """Unit vector [3] to the outer side of an elbow, from a part of the arm at an angle (rad) about the vertical."""
    return np.array([np.sin(angle), -np.cos(angle), 0.0])


@dataclass(frozen=True)
class NaivePath:
    """Straight to the shoulder from where it starts, without turning: what a planner does that knows no cloth."""

    def __call__(self, env: gymnasium.Env) -> np.ndarray:
        """Action for the present state of an environment, wrapped or not."""
        inner: DressEnv = env.unwrapped  # type: ignore[assignment]
        return inner.action_towards(inner.arm.line[2] + [0.0, 0.0, ABOVE] - inner.rim_centre, 0.0)


def resampled(points: np.ndarray, values: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """The polyline `points` [m, 3] at about every `spacing` (m), and `values` [m] interpolated along it."""
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = np.linspace(0.0, arc[-1], round(arc[-1] / spacing) + 1)
    return np.column_stack([np.interp(at, arc, points[:, i]) for i in range(3)]), np.interp(at, arc, values)
