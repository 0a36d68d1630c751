"""From a rendered frame to depth and points as a camera driver would hand them over: noise, holes, a partial point cloud."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from robopolicy.geometry import transform
from robopolicy.sim.photometry import normals
from robopolicy.sim.randomize import World
from robopolicy.sim.scene import ROBOT, Camera, Frame

CLOUD_LOW = np.array([0.30, -0.25])  # m, base frame: the part of the table that point clouds show
CLOUD_HIGH = np.array([0.72, 0.25])
CLOUD_TOP = 0.45  # m above the table
TABLE_MARGIN = 0.007  # m: points lower than this above the fitted table plane belong to the table
DEPTH_JUMP = 0.02  # m between neighbouring pixels: an edge, where stereo matching loses pixels
_NEIGHBOURS = np.ones((3, 3), np.uint8)


def noisy_depth(depth: np.ndarray, world: World, rng: np.random.Generator) -> np.ndarray:
    """float32 [H, W] (m, 0 = invalid) with stereo-like noise, std growing as depth squared, wrong scale and missing pixels."""
    noise, scale = world.scalar("sensor.depth_noise"), world.scalar("sensor.depth_scale")
    dropout, edge_dropout = world.scalar("sensor.depth_dropout"), world.scalar("sensor.depth_edge_dropout")
    out = np.float32(scale) * depth.astype(np.float32)
    if noise > 0:
        out += np.float32(noise) * normals(rng, depth.shape) * out * out  # nothing stays nothing
    if dropout > 0 or edge_dropout > 0:
        chance = np.full(depth.shape, dropout, np.float32)
        if edge_dropout > 0:
            edge = cv2.dilate(depth, _NEIGHBOURS) - cv2.erode(depth, _NEIGHBOURS) > DEPTH_JUMP
            chance[edge] = 1.0 - (1.0 - dropout) * (1.0 - edge_dropout)
        lots = rng.bit_generator.random_raw(-(-depth.size // 4)).view(np.uint16)[: depth.size].reshape(depth.shape)
        out[lots < np.float32(2**16) * chance] = 0.0
    return np.maximum(out, 0.0, out=out)


@lru_cache(maxsize=8)
def _rays(height: int, width: int, focal: float, center: tuple[float, float]) -> np.ndarray:
    """Points [H, W, 3] at depth 1 in the camera's frame."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    rays = np.stack(
        [(columns - center[0] * width) / focal, (rows - center[1] * height) / focal, np.ones((height, width))], axis=-1
    )
    rays.flags.writeable = False
    return rays


def deproject(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Points [H, W, 3] (m, base frame, by the believed camera pose) of a depth image [H, W]."""
    rays = _rays(camera.height, camera.width, float(camera.focal), camera.center)
    T = camera.T_base_cam if camera.T_base_cam_believed is None else camera.T_base_cam_believed
    return transform(T, rays * depth[..., None])


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
