"""Every parameter of a world that no task owns, with its nominal value, unit and bounds; and what the twin's are instead."""

from __future__ import annotations

import math

from robopolicy.sim.distributions import Value
from robopolicy.sim.randomize import Parameter
from robopolicy.sim.robot import HOME, JOINT_HIGH, JOINT_LOW
from robopolicy.sim.textures import NUM_TEXTURES

MAX_DISTRACTORS = 6


def rgb(red: float, green: float, blue: float, about: str = "") -> Parameter:
    """A colour."""
    return Parameter([red, green, blue], low=0.0, high=1.0, about=about)


def texture(index: int, about: str = "") -> Parameter:
    """An index into the texture bank, -1 for plain colour. The presets reserve the upper half for held_out."""
    return Parameter(float(index), low=-1, high=NUM_TEXTURES - 1, about=about, whole=True)


def ratio(value: Value, low: float, high: float, about: str = "") -> Parameter:
    """A number without a unit."""
    return Parameter(value, low=low, high=high, about=about)


_ZERO = [0.0, 0.0, 0.0]

PARAMETERS: dict[str, Parameter] = {
    "camera.position": Parameter([0.98, 0.0, 0.56], "m", -3.0, 3.0, "the front camera, base frame"),
    "camera.target": Parameter([0.47, 0.0, 0.11], "m", -2.0, 2.0, "what it looks at"),
    "camera.fov": Parameter(48.0, "deg", 10.0, 120.0, "vertical"),
    "camera.roll": Parameter(0.0, "rad", -math.pi, math.pi),
    "camera.center": ratio([0.5, 0.5], 0.2, 0.8, "principal point, share of the image's width and height"),
    "wrist.position": Parameter(_ZERO, "m", -0.1, 0.1, "how far the wrist camera is mounted off its place, hand's frame"),
    "wrist.rotation": Parameter(_ZERO, "rad", -1.0, 1.0, "the same of its orientation, rotation vector"),
    "wrist.fov": Parameter(60.0, "deg", 10.0, 120.0, "vertical"),
    "wrist.center": ratio([0.5, 0.5], 0.2, 0.8, "principal point, share of the image's width and height"),
    "light.direction": Parameter([-0.4, 0.3, 1.0], about="from the scene to the light, of any length"),
    "light.rgb": rgb(1.0, 1.0, 1.0),
    "light.ambient": ratio(0.45, 0.0, 2.0),
    "light.diffuse": ratio(0.6, 0.0, 2.0),
    "light.specular": ratio(0.1, 0.0, 2.0),
    "light.shadow": ratio(0.7, 0.0, 1.0, "how dark a shadow is"),
    "background.rgb": rgb(0.85, 0.88, 0.92),
    "background.texture": texture(-1),
    "table.rgb": rgb(0.72, 0.55, 0.38),
    "table.texture": texture(0),
    "table.height": Parameter(0.0, "m", -0.1, 0.1),
    "table.friction": ratio(1.0, 0.0, 5.0, "lateral, multiplied with that of what lies on it"),
    "table.restitution": ratio(0.0, 0.0, 1.0),
    "robot.rgb": rgb(0.92, 0.92, 0.92),
    "robot.joints": Parameter(HOME.tolist(), "rad", float(JOINT_LOW.min()), float(JOINT_HIGH.max()), "at reset"),
    "robot.time_constant": Parameter(0.04, "s", 0.005, 1.0, "lag of the joint controllers"),
    "robot.joint_damping": Parameter(0.0, "N m s/rad", 0.0, 5.0, "passive, beyond the controllers'; unstable above"),
    "robot.finger_friction": ratio(1.0, 0.0, 5.0, "lateral, of the finger pads"),
    "robot.grip_force": Parameter(40.0, "N", 1.0, 200.0, "most that a finger pushes"),
    "robot.gripper_speed": ratio(1.0, 0.1, 5.0, "over the nominal speed"),
    "robot.gain": ratio(1.0, 0.1, 3.0, "scales commanded deltas: calibration of the low-level controller"),
    "robot.disturbance": Parameter(0.0, "m", 0.0, 0.1, "per step: std of occasional pushes on the commanded motion"),
    "robot.action_delay": Parameter(0.0, "s", 0.0, 0.5, "from a command to its effect"),
    "robot.rate": ratio(1.0, 0.5, 2.0, "real control rate over the nominal one; ticks fall on whole physics steps"),
    "robot.rate_jitter": Parameter(0.0, "s", 0.0, 0.05, "std of the moment of a control tick, before it is rounded likewise"),
    "distractors.count": Parameter(0.0, low=0, high=MAX_DISTRACTORS, about="things that are no part of the task", whole=True),
    "distractors.size": Parameter([0.012, 0.035], "m", 0.005, 0.06, "least and largest half extent of one"),
    "distractors.shapes": ratio([1.0, 0.0, 0.0], 0.0, 1.0, "weights of boxes, cylinders and spheres among them"),
    "distractors.textures": Parameter([-1.0, 23.0], low=-1, high=NUM_TEXTURES - 1, about="from which to which", whole=True),
    "sensor.delay": Parameter(0.0, "s", 0.0, 0.5, "age of an observation; the nearest that the end of a control period has"),
    "sensor.state_noise": Parameter(0.0, "rad", 0.0, 0.1, "std on the measured joints"),
    "sensor.calibration_position": Parameter(_ZERO, "m", -0.1, 0.1, "where a camera is believed to be, minus where it is"),
    "sensor.calibration_rotation": Parameter(_ZERO, "rad", -0.5, 0.5, "the same of its orientation, a rotation vector"),
    "sensor.depth_noise": Parameter(0.0, "m", 0.0, 0.05, "std at 1 m, grows with the square of the distance"),
    "sensor.depth_scale": ratio(1.0, 0.8, 1.2, "measured over true depth: calibration of a stereo camera's baseline"),
    "sensor.depth_dropout": ratio(0.0, 0.0, 1.0, "share of pixels without depth"),
    "sensor.depth_edge_dropout": ratio(0.0, 0.0, 1.0, "the same where depth jumps by more than 2 cm"),
    "sensor.image_brightness": ratio(1.0, 0.1, 5.0, "exposure over the nominal one"),
    "sensor.image_vignette": ratio(0.0, 0.0, 1.0, "share of the light that the corners lose"),
    "sensor.image_blur": Parameter(0.0, "px", 0.0, 10.0, "std of a Gaussian"),
    "sensor.image_motion_blur": Parameter(0.0, "px", 0.0, 15.0, "length of the streak"),
    "sensor.image_motion_angle": Parameter(0.0, "rad", -math.pi, math.pi, "its direction"),
    "sensor.image_noise": ratio(0.0, 0.0, 0.5, "read noise: std, of full scale"),
    "sensor.image_shot_noise": ratio(0.0, 0.0, 0.5, "std at full scale, grows with the root of the light"),
    "sensor.image_gains": ratio([1.0, 1.0, 1.0], 0.2, 3.0, "of red, green, blue: white balance"),
    "sensor.image_saturation": ratio(1.0, 0.0, 3.0),
    "sensor.image_hue": Parameter(0.0, "rad", -math.pi, math.pi, "rotation about the grey axis"),
    "sensor.image_contrast": ratio(1.0, 0.1, 3.0, "about middle grey"),
    "sensor.image_gamma": ratio(1.0, 0.2, 5.0, "above 1 darkens the middle tones"),
    "sensor.image_jpeg": ratio(100.0, 5.0, 100.0, "JPEG quality; 100 = not compressed"),
}

# The held-out simulator stands in for a robot, so its nominal world is not the one that was modelled: another camera
# pose, lens and calibration error, another light, a slower arm at another rate, later sensors and commands, a heavier and
# slipperier object, noisier sensors.
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
    "robot.action_delay": 0.015,
    "robot.rate": 0.95,
    "sensor.delay": 0.05,
    "sensor.depth_noise": 0.0025,
    "sensor.depth_dropout": 0.05,
    "sensor.calibration_position": [0.006, -0.005, 0.004],
    "sensor.calibration_rotation": [0.004, 0.006, -0.004],
    "sensor.image_noise": 0.02,
    "object.mass": 0.12,
    "object.friction": 0.9,
    "object.rgb": [0.75, 0.2, 0.12],
}
