"""Pose algebra: T_a_b is the pose of b in a (float64 [4, 4]); quaternions are xyzw; rotations enter networks as 6-D.

T_world_ee @ T_ee_cam = T_world_cam. Frames are named in words: world, base, ee, cam.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation


def pose(position: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """T [4, 4] from a position [3] (m) and a unit quaternion [4] (xyzw)."""
    return poses(np.asarray(position, float)[None], np.asarray(quaternion, float)[None])[0]


def poses(positions: np.ndarray, quaternions: np.ndarray) -> np.ndarray:
    """T [N, 4, 4] from positions [N, 3] (m) and unit quaternions [N, 4] (xyzw). Many times faster than Rotation on a few."""
    x, y, z, w = quaternions.T
    T = np.zeros((len(positions), 4, 4))
    T[:, 0, 0], T[:, 0, 1], T[:, 0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)
    T[:, 1, 0], T[:, 1, 1], T[:, 1, 2] = 2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)
    T[:, 2, 0], T[:, 2, 1], T[:, 2, 2] = 2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)
    T[:, :3, 3] = positions
    T[:, 3, 3] = 1.0
    return T


def inverse(T: np.ndarray) -> np.ndarray:
    """T_b_a of a rigid T_a_b [4, 4]."""
    out = np.eye(4)
    out[:3, :3] = T[:3, :3].T
    out[:3, 3] = -T[:3, :3].T @ T[:3, 3]
    return out


def transform(T_a_b: np.ndarray, points_b: np.ndarray) -> np.ndarray:
    """Points [..., 3] given in frame b, expressed in frame a."""
    return points_b @ T_a_b[:3, :3].T + T_a_b[:3, 3]


def rotation_6d(R: np.ndarray) -> np.ndarray:
    """The first two columns of R [3, 3], one after the other: [6] (Zhou et al. 2019, continuous unlike quaternions)."""
    return np.concatenate([R[:3, 0], R[:3, 1]])


def matrix_from_6d(six: np.ndarray) -> np.ndarray:
    """R [3, 3] from [6] by Gram-Schmidt; inverse of rotation_6d, and its nearest valid rotation for noisy input."""
    x = six[:3] / np.linalg.norm(six[:3])
    y = six[3:] - (x @ six[3:]) * x
    y /= np.linalg.norm(y)
    return np.stack([x, y, np.cross(x, y)], axis=1)


def rotvec_matrix(rotvec: np.ndarray) -> np.ndarray:
    """R [3, 3] of a rotation vector [3] (rad)."""
    return Rotation.from_rotvec(rotvec).as_matrix()


def rotvec_between(R_from: np.ndarray, R_to: np.ndarray) -> np.ndarray:
    """Rotation vector [3] (rad, base frame) that turns R_from into R_to: R_to = exp(rotvec) R_from."""
    return Rotation.from_matrix(R_to @ R_from.T).as_rotvec()


def yaw_quaternion(yaw: float) -> tuple[float, float, float, float]:
    """Quaternion (xyzw) of a turn by `yaw` rad about z."""
    return (0.0, 0.0, float(np.sin(yaw / 2)), float(np.cos(yaw / 2)))
