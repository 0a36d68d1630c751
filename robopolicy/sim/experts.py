"""Scripted experts. They see privileged state and are stateless: the phase follows from the geometry, so they recover."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robopolicy.geometry import pose, rotvec_between
from robopolicy.sim.robot import ArmController


@dataclass(frozen=True)
class LiftExpert:
    """Above the object, down, close, up. Callable: env -> action [7].

    grasp_offset [3] (m) and yaw_offset (rad) displace the grasp: imperfect copies make mixed-quality experience.
    speed: m/s of the commanded end effector. hover: height (m) above the object from which it descends.
    """

    grasp_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    yaw_offset: float = 0.0
    speed: float = 0.35
    hover: float = 0.09

    @classmethod
    def imperfect(cls, rng: np.random.Generator) -> LiftExpert:
        """An expert that misjudges where the object is; about half of such experts fail."""
        offset = rng.normal(0.0, [0.018, 0.022, 0.008])
        return cls(grasp_offset=tuple(offset.tolist()), yaw_offset=float(rng.normal(0.0, 0.3)))

    def __call__(self, env) -> np.ndarray:
        """Action float32 [7] for the environment's present state."""
        world = env.unwrapped
        controller: ArmController = world.controller
        T_measured, opening = world.T_base_ee, world.gripper_opening
        position, quaternion = world.engine.pose("object")
        body = world.task.bodies(world.world)[0]
        grasp = position + np.array(self.grasp_offset)
        rotation = self._grasp_rotation(pose(position, quaternion)[:3, :3], T_measured[:3, :3])
        T = controller.T_base_target
        to_grasp = grasp - T_measured[:3, 3]
        turn = rotvec_between(T[:3, :3], rotation)
        aside = float(np.linalg.norm(to_grasp[:2]))
        near = aside < 0.012 and abs(to_grasp[2]) < 0.012
        width = 2 * max(body.shapes[0].size[:2]) * 1.15 + 0.004
        closed = opening < width and controller_is_closing(world)
        if near and closed and world.engine.grip_forces().min() > 1.0:
            return self._move(np.array([0.0, 0.0, 0.2]), turn * 0.0, world, grip=0.0)
        if near or (closed and aside < 0.03 and abs(to_grasp[2]) < 0.03):
            return self._move(grasp - T[:3, 3], turn, world, grip=0.0)
        if aside < 0.015 and np.linalg.norm(turn) < 0.12:
            return self._move(grasp - T[:3, 3], turn, world, grip=1.0)
        above = grasp + [0.0, 0.0, self.hover]
        if aside > 0.05 or to_grasp[2] > -0.5 * self.hover:
            return self._move(above - T[:3, 3], turn, world, grip=1.0)
        return self._move(np.array([*(grasp - T[:3, 3])[:2], 0.0]), turn, world, grip=1.0)

    def _grasp_rotation(self, R_object: np.ndarray, R_ee: np.ndarray) -> np.ndarray:
        """The gripper pointing down, its fingers along the side of the box that needs the least turning."""
        yaw = np.arctan2(R_object[1, 0], R_object[0, 0]) + self.yaw_offset
        now = np.arctan2(R_ee[1, 0], R_ee[0, 0])
        yaw = now + (yaw - now + np.pi / 4) % (np.pi / 2) - np.pi / 4
        c, s = np.cos(yaw), np.sin(yaw)
        return np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])

    def _move(self, delta: np.ndarray, turn: np.ndarray, world, grip: float) -> np.ndarray:
        """The step towards `delta` (m) and `turn` (rad) that the speed allows."""
        reach = self.speed / world.control_hz
        delta = delta * min(1.0, reach / max(float(np.linalg.norm(delta)), 1e-9))
        turn = turn * min(1.0, 0.12 / max(float(np.linalg.norm(turn)), 1e-9))
        return np.concatenate([delta, turn, [grip]]).astype(np.float32)


def controller_is_closing(world) -> bool:
    """Whether the gripper was last told to close."""
    return world.last_grip < 0.5
