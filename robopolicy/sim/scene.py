"""What a world is, in words every simulator understands: bodies on a table, a light, cameras. Pure data, SI, base frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

BACKGROUND, TABLE, ROBOT, FIRST_BODY = 0, 1, 2, 3  # segmentation ids; body i of a scene has id FIRST_BODY + i
SHAPES = ("box", "cylinder", "sphere")


@dataclass(frozen=True)
class Shape:
    """A convex piece of a body, rigidly fixed to it.

    kind: "box" (size = half extents), "cylinder" (size = radius, radius, half height; axis z) or "sphere" (size = radius
    three times), m. position (m) and quaternion (xyzw) in the body's frame. rgb in [0, 1]. texture: index into the texture
    bank, -1 for plain colour.

    Raises:
        ValueError: another kind, a size that is not positive, or one that does not fit the kind.
    """

    kind: str
    size: tuple[float, float, float]
    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    quaternion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    rgb: tuple[float, float, float] = (0.85, 0.1, 0.1)
    texture: int = -1

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise ValueError(f"shape kind={self.kind!r}; use one of {', '.join(SHAPES)}")
        x, y, z = self.size
        if min(self.size) <= 0:
            raise ValueError(f"{self.kind} of size {self.size}: all three must be above 0 (m)")
        if (self.kind == "cylinder" and x != y) or (self.kind == "sphere" and not x == y == z):
            raise ValueError(
                f"{self.kind} of size {self.size}: repeat its radius, as in {(x, x, z if self.kind == 'cylinder' else x)}"
            )


@dataclass(frozen=True)
class Joint:
    """How a body moves relative to the world where it does not move freely.

    kind: "slide" (along axis, m) or "hinge" (about axis through the body's origin, rad). axis: unit vector in the body's
    frame. low, high: range; the joint starts at 0. damping: N s/m or N m s/rad. friction: dry, N or N m.
    """

    kind: str
    axis: tuple[float, float, float]
    low: float
    high: float
    damping: float = 2.0
    friction: float = 1.0


@dataclass(frozen=True)
class Body:
    """A rigid body of one or more shapes. mass (kg), position (m) and quaternion (xyzw) in the base frame.

    joint: None = free where mass > 0, fixed where mass = 0. collides: False for markers, which are seen but not felt.
    friction: lateral coefficient, multiplied with that of the other body in contact; spinning_friction and
    rolling_friction (m) likewise add torsional resistance. restitution in [0, 1]. linear_damping, angular_damping: rate
    (1/s) at which velocity is lost; PyBullet's grows with the speed, d (1 + |v|).

    Raises:
        ValueError: no shapes, a joint without mass, a joint whose range leaves out 0.
    """

    name: str
    shapes: tuple[Shape, ...]
    mass: float
    position: tuple[float, float, float]
    quaternion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    friction: float = 1.0
    spinning_friction: float = 0.002
    rolling_friction: float = 0.0
    restitution: float = 0.0
    linear_damping: float = 0.04
    angular_damping: float = 0.04
    joint: Joint | None = None
    collides: bool = True

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ValueError(f"body {self.name!r} has no shapes: give it at least one")
        if self.joint and self.mass <= 0:
            raise ValueError(f"body {self.name!r} hangs on a joint but has mass {self.mass}: give it one above 0 (kg)")
        if self.joint and not self.joint.low <= 0.0 <= self.joint.high:
            raise ValueError(f"the joint of {self.name!r} starts at 0, outside of {self.joint.low}..{self.joint.high}")

    @classmethod
    def box(
        cls,
        name: str,
        half_extents: tuple[float, float, float],
        mass: float,
        position: tuple[float, float, float],
        quaternion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0),
        rgb: tuple[float, float, float] = (0.85, 0.1, 0.1),
        texture: int = -1,
        **options: Any,
    ) -> Body:
        """A body that is one box."""
        return cls(name, (Shape("box", half_extents, rgb=rgb, texture=texture),), mass, position, quaternion, **options)


@dataclass(frozen=True)
class Light:
    """One directional light. direction points from the scene to the light; shadow in [0, 1] is how dark a shadow is."""

    direction: tuple[float, float, float] = (-0.4, 0.3, 1.0)
    rgb: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ambient: float = 0.45
    diffuse: float = 0.6
    specular: float = 0.1
    shadow: float = 0.7


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in the OpenCV convention (x right, y down, z forward), square pixels.

    still: whether it will be looked through again from the same place, so that what stays behind is worth remembering.
    center: principal point as shares of width and height; (0.5, 0.5) is the middle of the image.
    T_base_cam: pose of the camera in the base frame, float64 [4, 4]. fov_deg: vertical field of view.
    T_base_cam_believed: the pose that calibration reports (None = exact); point clouds are computed with it.
    """

    name: str
    T_base_cam: np.ndarray
    fov_deg: float
    width: int
    height: int
    near: float = 0.05
    far: float = 3.0
    T_base_cam_believed: np.ndarray | None = None
    center: tuple[float, float] = (0.5, 0.5)
    still: bool = False

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return self.height / 2 / np.tan(np.radians(self.fov_deg) / 2)


@dataclass(frozen=True)
class Frame:
    """What a camera returns: rgb uint8 [H, W, 3], depth float32 [H, W] (z along the optical axis, m, 0 = none),
    segmentation uint8 [H, W] (BACKGROUND, TABLE, ROBOT, FIRST_BODY + i).
    """

    rgb: np.ndarray
    depth: np.ndarray
    segmentation: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A whole world at reset.

    table_height (m): top of the table, a square of half side table_half around (table_x, 0).
    finger_friction: lateral friction of the finger pads. arm_time_constant (s): lag of the joint position controller.
    grip_force (N): most that a finger pushes. joint_damping (N m s/rad): passive damping of the arm's joints beyond the
    controller's. background_texture: what hangs around the scene, seen by direction alone; index into the bank, -1 = plain.
    """

    bodies: tuple[Body, ...]
    robot_joints: tuple[float, ...]
    table_height: float = 0.0
    table_half: float = 0.6
    table_x: float = 0.5
    table_rgb: tuple[float, float, float] = (0.72, 0.55, 0.38)
    table_texture: int = 0
    table_friction: float = 1.0
    robot_rgb: tuple[float, float, float] = (0.92, 0.92, 0.92)
    background_rgb: tuple[float, float, float] = (0.85, 0.88, 0.92)
    finger_friction: float = 1.0
    arm_time_constant: float = 0.04
    grip_force: float = 40.0
    joint_damping: float = 0.0
    table_restitution: float = 0.0
    background_texture: int = -1
    light: Light = field(default_factory=Light)


def look_at(eye: np.ndarray, target: np.ndarray, roll: float = 0.0) -> np.ndarray:
    """T_base_cam (OpenCV axes) of a camera at `eye` looking at `target`, both [3] (m, base frame), rolled by `roll` rad.

    Its pictures are upright; where it looks straight down or up, their right is the robot's right (-y).

    Raises:
        ValueError: it is where it looks.
    """
    z = np.asarray(target, float) - np.asarray(eye, float)
    if not z.any():
        raise ValueError(f"a camera at {np.asarray(eye).tolist()} looks at its own position: move it or its target")
    z /= np.linalg.norm(z)
    x = np.cross(z, [0.0, 0.0, 1.0])
    x = x / np.linalg.norm(x) if np.linalg.norm(x) > 1e-9 else np.array([0.0, -1.0, 0.0])
    y = np.cross(z, x)
    x, y = np.cos(roll) * x + np.sin(roll) * y, np.cos(roll) * y - np.sin(roll) * x
    pose = np.eye(4)
    pose[:3, :3] = np.stack([x, y, z], axis=1)
    pose[:3, 3] = eye
    return pose
