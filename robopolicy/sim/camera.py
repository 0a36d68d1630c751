"""From a rendered frame to what a camera driver would hand over: noisy images and depth, a cropped partial point cloud."""

from __future__ import annotations

import cv2
import numpy as np

from robopolicy.geometry import transform
from robopolicy.sim.randomize import World
from robopolicy.sim.scene import ROBOT, Camera, Frame

CLOUD_LOW = np.array([0.30, -0.25])  # m, base frame: the part of the table that point clouds show
CLOUD_HIGH = np.array([0.72, 0.25])
CLOUD_TOP = 0.45  # m above the table
TABLE_MARGIN = 0.007  # m: points lower than this above the fitted table plane belong to the table


def noisy_image(rgb: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H, W, 3] after blur, brightness and noise as `world` says."""
    blur, noise = world.scalar("sensor.image_blur"), world.scalar("sensor.image_noise")
    out: np.ndarray = rgb.astype(np.float32) * world.scalar("sensor.image_brightness")
    if blur > 0.05:
        out = cv2.GaussianBlur(out, (0, 0), blur)
    if noise > 0:
        out += rng.normal(0.0, 255 * noise, out.shape).astype(np.float32)
    return np.clip(out, 0, 255).astype(np.uint8)


def noisy_depth(depth: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    """float32 [H, W] (m, 0 = invalid) with stereo-like noise, std growing as depth squared, and missing pixels."""
    noise, dropout = world.scalar("sensor.depth_noise"), world.scalar("sensor.depth_dropout")
    out = depth + np.where(depth > 0, rng.normal(0.0, 1.0, depth.shape) * noise * depth**2, 0.0)
    if dropout > 0:
        out = np.where(rng.random(depth.shape) < dropout, 0.0, out)
    return np.maximum(out, 0.0).astype(np.float32)


def deproject(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Points [H, W, 3] (m, base frame, by the believed camera pose) of a depth image [H, W]."""
    rows, columns = np.mgrid[: camera.height, : camera.width] + 0.5
    x = (columns - camera.width / 2) / camera.focal * depth
    y = (rows - camera.height / 2) / camera.focal * depth
    T = camera.T_base_cam if camera.T_base_cam_believed is None else camera.T_base_cam_believed
    return transform(T, np.stack([x, y, depth], axis=-1))


def height_over_table(points: np.ndarray) -> np.ndarray:
    """Height [n] (m) of points [n, 3] over the plane that most of them lie in: a trimmed least-squares fit.

    The plane is found in the data, as on a real robot, because calibration errors tilt and shift it.
    """
    design = np.column_stack([points[:, :2], np.ones(len(points))])
    plane = np.array([0.0, 0.0, np.median(points[:, 2])])
    for tolerance in (0.03, 0.012, 0.006):
        inlier = np.abs(points[:, 2] - design @ plane) < tolerance
        if inlier.sum() < 50:
            break
        A = design[inlier]
        plane = np.linalg.solve(A.T @ A + 1e-9 * np.eye(3), A.T @ points[inlier, 2])
    return points[:, 2] - design @ plane


def point_cloud(depth: np.ndarray, frame: Frame, camera: Camera, num_points: int, rng: np.random.Generator) -> np.ndarray:
    """Partial point cloud float32 [num_points, 3] (m, base frame) of what stands on the table.

    The robot's own points are filtered out (on a real robot its URDF masks them), as are the table and what lies outside
    the workspace. Too many points are subsampled, too few repeated; an empty cloud is all zeros.
    """
    points = deproject(depth, camera)
    keep = (depth > 0) & (frame.segmentation != ROBOT)
    keep &= (points[..., :2] > CLOUD_LOW).all(-1) & (points[..., :2] < CLOUD_HIGH).all(-1)
    cloud = points[keep]
    if len(cloud):
        height = height_over_table(cloud)
        cloud = cloud[(height > TABLE_MARGIN) & (height < CLOUD_TOP)]
    if len(cloud) == 0:
        return np.zeros((num_points, 3), np.float32)
    index = rng.permutation(len(cloud))
    return cloud[np.resize(index, num_points)].astype(np.float32)
