"""The nominal world as named parameters, and how a drawn world becomes a scene and its cameras.

A task adds parameters of its own (see tasks.py); randomisation draws around these; the twin shifts them.
"""

from __future__ import annotations

import numpy as np

from robopolicy.geometry import rotvec_matrix
from robopolicy.sim.randomize import Value, World, stream
from robopolicy.sim.robot import HOME
from robopolicy.sim.scene import Body, Camera, Light, Scene, look_at

CAMERAS = ("front", "wrist")
MAX_DISTRACTORS = 4

NOMINAL: dict[str, Value] = {
    "camera.position": [0.98, 0.0, 0.56],  # m, base frame; the front camera
    "camera.target": [0.47, 0.0, 0.11],  # m
    "camera.fov": 48.0,  # deg, vertical
    "camera.roll": 0.0,  # rad
    "light.direction": [-0.4, 0.3, 1.0],
    "light.rgb": [1.0, 1.0, 1.0],
    "light.ambient": 0.45,
    "light.diffuse": 0.6,
    "light.specular": 0.1,
    "light.shadow": 0.7,
    "background.rgb": [0.85, 0.88, 0.92],
    "table.rgb": [0.72, 0.55, 0.38],
    "table.texture": 0.0,  # index into the texture bank, -1 = plain
    "table.height": 0.0,  # m
    "table.friction": 1.0,
    "robot.rgb": [0.92, 0.92, 0.92],
    "robot.joints": HOME.tolist(),  # rad, at reset
    "robot.time_constant": 0.04,  # s, lag of the joint controllers
    "robot.finger_friction": 1.0,
    "robot.grip_force": 40.0,  # N
    "robot.gain": 1.0,  # scales commanded deltas: calibration of the low-level controller
    "robot.disturbance": 0.0,  # m per step: std of occasional pushes on the commanded motion, gone in half a second
    "distractors.count": 0.0,
    "sensor.depth_noise": 0.0,  # m: std at 1 m, grows with the square of the distance
    "sensor.depth_dropout": 0.0,  # share of pixels without depth
    "sensor.calibration_position": [0.0, 0.0, 0.0],  # m: where calibration believes the camera is, minus where it is
    "sensor.calibration_rotation": [0.0, 0.0, 0.0],  # rad, rotation vector
    "sensor.state_noise": 0.0,  # rad: std on the measured joints
    "sensor.image_noise": 0.0,  # std, of full scale
    "sensor.image_brightness": 1.0,
    "sensor.image_blur": 0.0,  # px: std of a Gaussian
}

# The held-out simulator stands in for a robot, so its nominal world is not the one that was modelled: another camera
# pose, lens and calibration error, another light, a slower arm, a heavier and slipperier object, noisier sensors.
TWIN: dict[str, Value] = {
    "camera.position": [1.02, 0.09, 0.61],
    "camera.target": [0.455, 0.01, 0.10],
    "camera.fov": 51.0,
    "light.direction": [0.5, -0.6, 1.0],
    "light.rgb": [1.0, 0.94, 0.85],
    "light.ambient": 0.35,
    "light.diffuse": 0.7,
    "background.rgb": [0.55, 0.58, 0.6],
    "table.rgb": [0.62, 0.6, 0.56],
    "table.texture": -1.0,
    "table.height": -0.006,
    "table.friction": 0.7,
    "robot.rgb": [0.86, 0.86, 0.88],
    "robot.time_constant": 0.06,
    "robot.finger_friction": 0.9,
    "sensor.depth_noise": 0.0025,
    "sensor.depth_dropout": 0.05,
    "sensor.calibration_position": [0.006, -0.005, 0.004],
    "sensor.calibration_rotation": [0.004, 0.006, -0.004],
    "sensor.image_noise": 0.02,
    "object.mass": 0.12,
    "object.friction": 0.9,
    "object.rgb": [0.75, 0.2, 0.12],
}

_T_EE_WRIST = look_at(np.array([0.075, 0.0, -0.10]), np.array([0.01, 0.0, 0.02]))


def scene(world: World, bodies: tuple[Body, ...], seed: int) -> Scene:
    """The scene of a drawn world, with its distractors beside the task's own bodies."""
    light = Light(
        direction=tuple(world.vector("light.direction").tolist()),
        rgb=world.colour("light.rgb"),
        **{name: world.scalar(f"light.{name}") for name in ("ambient", "diffuse", "specular", "shadow")},
    )
    return Scene(
        bodies=bodies + distractors(world, seed),
        robot_joints=tuple(world.vector("robot.joints").tolist()),
        table_height=world.scalar("table.height"),
        table_rgb=world.colour("table.rgb"),
        table_texture=int(world.scalar("table.texture")),
        table_friction=world.scalar("table.friction"),
        robot_rgb=world.colour("robot.rgb"),
        background_rgb=world.colour("background.rgb"),
        finger_friction=world.scalar("robot.finger_friction"),
        arm_time_constant=world.scalar("robot.time_constant"),
        grip_force=world.scalar("robot.grip_force"),
        light=light,
    )


def distractors(world: World, seed: int) -> tuple[Body, ...]:
    """Boxes that are no part of the task: they stand at the sides, clear of where the task's objects start."""
    count = min(int(world.scalar("distractors.count")), MAX_DISTRACTORS)
    rng = stream(seed, "distractors")
    bodies = []
    for i in range(count):
        half = rng.uniform(0.012, 0.035, 3)
        side = 1 if i % 2 else -1
        x, y = rng.uniform(0.3, 0.65), side * rng.uniform(0.27, 0.36)
        z = world.scalar("table.height") + half[2]
        rgb = rng.uniform(0.05, 1.0, 3)
        name, texture = f"distractor_{i}", int(rng.integers(-1, 24))
        bodies.append(Body.box(name, tuple(half), 0.2, (x, y, z), rgb=tuple(rgb), texture=texture))
    return tuple(bodies)


def camera(name: str, world: World, T_base_ee: np.ndarray, size: int) -> Camera:
    """The camera `name` ("front" stands beside the table, "wrist" rides on the hand), square images of `size` px."""
    if name == "front":
        T = look_at(world.vector("camera.position"), world.vector("camera.target"), world.scalar("camera.roll"))
        fov = world.scalar("camera.fov")
    else:
        T, fov = T_base_ee @ _T_EE_WRIST, 60.0
    believed = T.copy()
    believed[:3, :3] = rotvec_matrix(world.vector("sensor.calibration_rotation")) @ T[:3, :3]
    believed[:3, 3] += world.vector("sensor.calibration_position")
    return Camera(name, T, fov, size, size, near=0.015, T_base_cam_believed=believed)
