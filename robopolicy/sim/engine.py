"""The contract between an environment and a physics engine: task and robot speak to this, to no simulator directly."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from robopolicy.sim.scene import Camera, Frame, Scene
from robopolicy.spec import did_you_mean

RENDERERS = ("cpu", "gl")


class Engine(Protocol):
    """One simulated world: a Franka Panda with a parallel gripper, its base at the origin, and named bodies on a table."""

    time_step: float  # s of one physics step

    def build(self, scene: Scene) -> None:
        """Start `scene` afresh: nothing of an earlier world remains, so equal scenes evolve equally, bit for bit."""

    def joints(self) -> tuple[np.ndarray, float]:
        """Joint positions [7] (rad) and gripper opening, the distance between the fingers (m, 0 to 0.08)."""

    def command(self, q_target: np.ndarray, opening: float) -> None:
        """Set the position controllers' targets: joints [7] (rad), gripper opening (m)."""

    def advance(self, seconds: float) -> None:
        """Simulate for `seconds`. Raises ValueError when that is no whole number of physics steps."""

    def pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] (m) and quaternion [4] (xyzw) of the body `name` in the base frame."""

    def velocity(self, name: str) -> np.ndarray:
        """Linear velocity [3] (m/s, base frame) of the origin of the body `name`."""

    def joint_position(self, name: str) -> float:
        """Position (m or rad) of the joint that holds the body `name`. Raises ValueError for a body without one."""

    def grip_forces(self) -> np.ndarray:
        """Normal contact force on each finger [2] (N)."""

    def arm_force(self) -> float:
        """Normal contact force (N) on the arm and the hand, the fingers left out: above zero, they touch something."""

    def snapshot(self) -> Any:
        """Where everything is now, for render() at a later time (sensor delay); valid until the next build()."""

    def render(self, camera: Camera, rgb: bool = True, snapshot: Any = None) -> Frame:
        """What `camera` sees now, or saw at `snapshot`. With rgb=False the colour image may be skipped (zeros)."""

    def save_state(self) -> Any:
        """A token that restore_state() takes; valid until the next build()."""

    def restore_state(self, token: Any) -> None:
        """Return to the saved state, exactly: the same commands then give the same trajectory."""

    def close(self) -> None:
        """Free the engine. Safe to call twice."""


def check_renderer(engine: str, renderer: str) -> None:
    """Raise ValueError unless `renderer` is one of RENDERERS that the engine "bullet" or "mujoco" has."""
    if renderer not in RENDERERS:
        raise ValueError(f"renderer={renderer!r}; {did_you_mean(renderer, RENDERERS)}")
    if engine == "mujoco" and renderer != "cpu":
        raise ValueError(f"renderer={renderer!r}: the twin draws with its own ray caster; leave it at 'cpu'")


def whole_steps(seconds: float, time_step: float) -> int:
    """How many steps of `time_step` s make up `seconds`. Raises ValueError when the division leaves a rest."""
    steps = round(seconds / time_step)
    if steps < 1 or abs(steps * time_step - seconds) > 1e-9:
        nearest = max(steps, 1) * time_step
        raise ValueError(f"{seconds} s is no whole number of physics steps of {time_step} s; {nearest} s ({1 / nearest} Hz) is")
    return steps
