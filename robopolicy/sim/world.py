"""The nominal world as named parameters, and how a drawn world becomes a scene and its cameras.

A task adds parameters of its own (see tasks.py); randomisation draws around these; the twin shifts them.
"""

from __future__ import annotations

import numpy as np

from robopolicy.geometry import rotvec_matrix
from robopolicy.sim.clutter import distractors
from robopolicy.sim.parameters import PARAMETERS, TWIN
from robopolicy.sim.randomize import World
from robopolicy.sim.scene import Body, Camera, Light, Scene, look_at

__all__ = ["CAMERAS", "PARAMETERS", "TWIN", "camera", "scene"]

CAMERAS = ("front", "wrist")

_T_EE_WRIST = look_at(np.array([0.075, 0.0, -0.10]), np.array([0.01, 0.0, 0.02]))


def scene(world: World, bodies: tuple[Body, ...], seed: int) -> Scene:
    """The scene of a drawn world, with its distractors around the task's own bodies."""
    light = Light(
        direction=tuple(world.vector("light.direction").tolist()),
        rgb=world.colour("light.rgb"),
        **{name: world.scalar(f"light.{name}") for name in ("ambient", "diffuse", "specular", "shadow")},
    )
    return Scene(
        bodies=bodies + distractors(world, bodies, seed),
        robot_joints=tuple(world.vector("robot.joints").tolist()),
        table_height=world.scalar("table.height"),
        table_rgb=world.colour("table.rgb"),
        table_texture=int(world.scalar("table.texture")),
        table_friction=world.scalar("table.friction"),
        table_restitution=world.scalar("table.restitution"),
        robot_rgb=world.colour("robot.rgb"),
        background_rgb=world.colour("background.rgb"),
        background_texture=int(world.scalar("background.texture")),
        finger_friction=world.scalar("robot.finger_friction"),
        arm_time_constant=world.scalar("robot.time_constant"),
        joint_damping=world.scalar("robot.joint_damping"),
        grip_force=world.scalar("robot.grip_force"),
        light=light,
    )


def camera(name: str, world: World, T_base_ee: np.ndarray, size: int) -> Camera:
    """The camera `name` ("front" stands beside the table, "wrist" rides on the hand), square images of `size` px."""
    if name == "front":
        T = look_at(world.vector("camera.position"), world.vector("camera.target"), world.scalar("camera.roll"))
        fov = world.scalar("camera.fov")
    else:
        T_ee_wrist = _T_EE_WRIST.copy()
        T_ee_wrist[:3, :3] = rotvec_matrix(world.vector("wrist.rotation")) @ T_ee_wrist[:3, :3]
        T_ee_wrist[:3, 3] += world.vector("wrist.position")
        T, fov = T_base_ee @ T_ee_wrist, world.scalar("wrist.fov")
    believed = T.copy()
    believed[:3, :3] = rotvec_matrix(world.vector("sensor.calibration_rotation")) @ T[:3, :3]
    believed[:3, 3] += world.vector("sensor.calibration_position")
    x, y = world.vector("camera.center" if name == "front" else "wrist.center").tolist()
    return Camera(name, T, fov, size, size, near=0.015, T_base_cam_believed=believed, center=(x, y), still=name == "front")
