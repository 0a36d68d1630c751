"""Poses of frames in one another, from /tf and /tf_static: what tf2's buffer does, for the little that a node needs of it.

Part of the robot-side island: numpy only. T_a_b [4, 4] is the pose of frame b in frame a.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable


def stamp_seconds(stamp: Any) -> float:
    """Seconds of a time of ROS 2, of rosbags, or of ROS 1; 0 for one that was not set."""
    if hasattr(stamp, "sec"):
        return float(stamp.sec) + float(stamp.nanosec) * 1e-9
    return float(stamp.secs) + float(stamp.nsecs) * 1e-9


def header_seconds(message: Any) -> float:
    """When a message says that it was measured; 0 where it does not say."""
    stamp = getattr(getattr(message, "header", None), "stamp", None)
    return 0.0 if stamp is None else stamp_seconds(stamp)


class TransformError(ValueError):
    """A frame's pose is not known; the text says which frames are."""


def quaternion_matrix(x: float, y: float, z: float, w: float) -> np.ndarray:
    """R [3, 3] of a quaternion of any length.

    Raises:
        ValueError: its length is zero or not finite.
    """
    length = np.linalg.norm([x, y, z, w])
    if not 1e-6 < length < np.inf:
        raise ValueError(f"the quaternion {[x, y, z, w]} turns nothing: its length is {length:g}")
    x, y, z, w = np.array([x, y, z, w], float) / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def matrix_quaternion(R: np.ndarray) -> np.ndarray:
    """The unit quaternion [4] (xyzw, w >= 0) of R [3, 3] (Shepperd 1978: from the largest of its four squares)."""
    squares = np.array([R[0, 0], R[1, 1], R[2, 2], np.trace(R)])
    i = int(squares.argmax())
    if i == 3:
        q = np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1], 1 + squares[3]])
    else:
        j, k = (i + 1) % 3, (i + 2) % 3
        q = np.empty(4)
        q[i], q[j], q[k] = 1 - squares[3] + 2 * R[i, i], R[j, i] + R[i, j], R[k, i] + R[i, k]
        q[3] = R[k, j] - R[j, k]
    q /= np.linalg.norm(q)
    return -q if q[3] < 0 else q


def rotation_vector_matrix(vector: np.ndarray) -> np.ndarray:
    """R [3, 3] of a rotation vector [3] (rad), by Rodrigues' formula."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = np.asarray(vector, float) / angle
    K = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K


def matrix_rotation_vector(R: np.ndarray) -> np.ndarray:
    """The rotation vector [3] (rad, at most pi long) of R [3, 3]."""
    q = matrix_quaternion(R)
    sine = float(np.linalg.norm(q[:3]))
    return q[:3] * (2 * np.arctan2(sine, q[3]) / sine if sine > 1e-12 else 2.0)


def pose_matrix(position: Any, orientation: Any) -> np.ndarray:
    """T [4, 4] of messages with x, y, z and x, y, z, w."""
    T = np.eye(4)
    T[:3, :3] = quaternion_matrix(orientation.x, orientation.y, orientation.z, orientation.w)
    T[:3, 3] = position.x, position.y, position.z
    return T


def inverse(T: np.ndarray) -> np.ndarray:
    """T_b_a of a rigid T_a_b [4, 4]."""
    out = np.eye(4)
    out[:3, :3] = T[:3, :3].T
    out[:3, 3] = -T[:3, :3].T @ T[:3, 3]
    return out


class TransformTree:
    """The frames that /tf and /tf_static told of. Of a moving frame the pose nearest in time is taken, none is extrapolated.

    max_gap_s: how far from a message's time that pose may be. keep: poses remembered of each moving frame.
    """

    def __init__(self, max_gap_s: float = 0.1, keep: int = 1000) -> None:
        self.max_gap_s, self._keep = max_gap_s, keep
        self._edges: dict[str, tuple[str, deque[tuple[float, np.ndarray]]]] = {}  # child -> parent, (stamp, T_parent_child)
        self._lock = threading.Lock()

    def add(self, transforms: Iterable[Any], *, static: bool) -> None:
        """Take the `transforms` of a tf2_msgs/TFMessage; those that are no rotation are left out."""
        for item in transforms:
            try:
                T = pose_matrix(item.transform.translation, item.transform.rotation)
            except ValueError:
                continue
            seconds = float("nan") if static else stamp_seconds(item.header.stamp)
            child, parent = item.child_frame_id.lstrip("/"), item.header.frame_id.lstrip("/")
            with self._lock:
                known, poses = self._edges.get(child, (parent, deque(maxlen=self._keep)))
                if known != parent:  # it moved to another parent
                    poses = deque(maxlen=self._keep)
                if static:
                    poses.clear()
                poses.append((seconds, T))
                self._edges[child] = (parent, poses)

    def lookup(self, target: str, source: str, stamp: float) -> np.ndarray:
        """T_target_source [4, 4] at `stamp` (s).

        Raises:
            TransformError: a frame is not known, they are not connected, or the pose nearest in time is too far from it.
        """
        target, source = target.lstrip("/"), source.lstrip("/")
        if target == source:
            return np.eye(4)
        with self._lock:
            above_target = self._ancestors(target)
            common = next((frame for frame in self._ancestors(source) if frame in above_target), None)
            if common is not None:
                return inverse(self._up(target, common, stamp)) @ self._up(source, common, stamp)
            known = sorted({*self._edges, *(parent for parent, _ in self._edges.values())})
        raise TransformError(f"no transform from {source!r} to {target!r}; frames on /tf: {', '.join(known) or 'none'}")

    def _ancestors(self, frame: str) -> list[str]:
        """The frame itself, its parent, and so on."""
        found = [frame]
        while found[-1] in self._edges:
            parent, _ = self._edges[found[-1]]
            if parent in found:  # a loop
                break
            found.append(parent)
        return found

    def _up(self, frame: str, ancestor: str, stamp: float) -> np.ndarray:
        """T_ancestor_frame; what is known of the way, and of nothing above it, must be of that time."""
        T = np.eye(4)
        while frame != ancestor:
            parent, poses = self._edges[frame]
            T = self._nearest(frame, poses, stamp) @ T
            frame = parent
        return T

    def _nearest(self, frame: str, poses: deque[tuple[float, np.ndarray]], stamp: float) -> np.ndarray:
        if np.isnan(poses[-1][0]):
            return poses[-1][1]
        gap, best = min(((abs(seconds - stamp), n) for n, (seconds, _) in enumerate(poses)), default=(np.inf, 0))
        if gap > self.max_gap_s:
            raise TransformError(f"the pose of {frame!r} on /tf nearest to time {stamp:.3f} is {gap:.3f} s away from it")
        return poses[best][1]
