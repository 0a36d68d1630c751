"""Partial, segmented point clouds: pixels of a class to points, voxels, one array of fixed size. Pure numpy, no randomness."""

from __future__ import annotations

import numpy as np

from robopolicy.sim.camera import deproject
from robopolicy.sim.scene import Camera

CLASSES = ("arm", "garment")  # one-hot columns after x, y, z; the gripper's own point is a policy's matter


def segment_points(depth: np.ndarray, segmentation: np.ndarray, camera: Camera, label: int) -> np.ndarray:
    """Points [n, 3] (m, base frame, by the believed camera pose) of the pixels that show `label` and have depth."""
    seen = (segmentation == label) & (depth > 0)
    return deproject(depth, camera)[seen]


def cropped(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The points [n, 3] inside the box from `low` to `high` (m)."""
    return points[((points >= low) & (points <= high)).all(1)]


def voxels(points: np.ndarray, size: float) -> np.ndarray:
    """The mean [m, 3] of the points [n, 3] in each occupied cube of side `size` (m), in the order of the cubes.

    The cubes lie at multiples of `size`, so the result depends on the set of points alone, not on their order.
    """
    if not len(points):
        return np.zeros((0, 3))
    cell = np.floor(points / size).astype(np.int64)
    cell -= cell.min(0)
    extent = cell.max(0) + 1
    key = (cell[:, 0] * extent[1] + cell[:, 1]) * extent[2] + cell[:, 2]
    _, place = np.unique(key, return_inverse=True)
    count = np.bincount(place)
    return np.column_stack([np.bincount(place, points[:, axis]) / count for axis in range(3)])


def thinned(points: np.ndarray, most: int) -> np.ndarray:
    """The points [n, 3] or, of more than `most`, that many evenly spaced ones of their order."""
    if len(points) <= most:
        return points
    return points[np.linspace(0, len(points) - 1, most).round().astype(int)]


def classed(arm: np.ndarray, garment: np.ndarray, num_points: int) -> np.ndarray:
    """float32 [num_points, 3 + len(CLASSES)]: xyz (m) and one-hot class of arm and garment points; rows of zeros fill up.

    Two fifths of the rows are for the arm at most, the others for the garment.
    """
    arm = thinned(arm, 2 * num_points // 5)
    garment = thinned(garment, num_points - len(arm))
    out = np.zeros((num_points, 3 + len(CLASSES)), np.float32)
    out[: len(arm), :3], out[: len(arm), 3] = arm, 1.0
    end = len(arm) + len(garment)
    out[len(arm) : end, :3], out[len(arm) : end, 4] = garment, 1.0
    return out
