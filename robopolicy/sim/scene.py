"""What a world is, in words every simulator understands: boxes on a table, a light, cameras. Pure data, SI, base frame."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BACKGROUND, TABLE, ROBOT, FIRST_BODY = 0, 1, 2, 3  # segmentation ids; body i of a scene has id FIRST_BODY + i


@dataclass(frozen=True)
class Body:
    """A box. half_extents (m), mass (kg, 0 = fixed), position (m) and quaternion (xyzw) in the base frame.

    texture: index into the texture bank, -1 for plain colour. friction: lateral coefficient of the body itself.
    """

    name: str
    half_extents: tuple[float, float, float]
    mass: float
    position: tuple[float, float, float]
    quaternion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)
    friction: float = 1.0
    rgb: tuple[float, float, float] = (0.85, 0.1, 0.1)
    texture: int = -1


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
    grip_force (N): most that a finger pushes.
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
    light: Light = field(default_factory=Light)


def look_at(eye: np.ndarray, target: np.ndarray, roll: float = 0.0) -> np.ndarray:
    """T_base_cam (OpenCV axes) of a camera at `eye` looking at `target`, both [3] (m, base frame), rolled by `roll` rad."""
    z = np.asarray(target, float) - np.asarray(eye, float)
    z /= np.linalg.norm(z)
    x = np.cross(z, [0.0, 0.0, 1.0])
    x /= np.linalg.norm(x)
    y = np.cross(z, x)
    x, y = np.cos(roll) * x + np.sin(roll) * y, np.cos(roll) * y - np.sin(roll) * x
    pose = np.eye(4)
    pose[:3, :3] = np.stack([x, y, z], axis=1)
    pose[:3, 3] = eye
    return pose
