"""ROS messages to the arrays a policy eats, with numpy alone; the same for ROS 1 and ROS 2, whose fields are named alike.

Part of the robot-side island: numpy only (and cv2 or Pillow when a CompressedImage comes).
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:
    from .ros_transforms import pose_matrix
else:  # this folder itself is on the path
    from ros_transforms import pose_matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_POINT_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
_DEPTH_SCALES = {"16UC1": 0.001, "32FC1": 1.0}  # REP 118: millimetres, metres


def image(message: Any) -> np.ndarray:
    """sensor_msgs/Image as uint8 [H, W, 3] RGB, or float32 [H, W] metres (0 = invalid) for depth.

    Raises:
        ValueError: an encoding other than rgb8, bgr8, rgba8, bgra8, mono8, 16UC1, 32FC1.
    """
    height, width, encoding = message.height, message.width, message.encoding
    order = ">" if message.is_bigendian else "<"
    rows = np.frombuffer(message.data, np.uint8).reshape(height, message.step)
    if encoding in _DEPTH_SCALES:
        dtype = np.dtype(order + ("u2" if encoding == "16UC1" else "f4"))
        depth = np.ascontiguousarray(rows[:, : width * dtype.itemsize]).view(dtype) * np.float32(_DEPTH_SCALES[encoding])
        return np.nan_to_num(depth.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    channels = {"rgb8": [0, 1, 2], "bgr8": [2, 1, 0], "rgba8": [0, 1, 2], "bgra8": [2, 1, 0], "mono8": [0, 0, 0]}.get(encoding)
    if channels is None:
        raise ValueError(f"image encoding {encoding!r}; known: rgb8, bgr8, rgba8, bgra8, mono8, 16UC1, 32FC1")
    size = {"mono8": 1, "rgba8": 4, "bgra8": 4}.get(encoding, 3)
    return np.ascontiguousarray(rows[:, : width * size].reshape(height, width, size)[:, :, channels])


def compressed_image(message: Any) -> np.ndarray:
    """sensor_msgs/CompressedImage (JPEG, PNG) as uint8 [H, W, 3] RGB.

    Raises:
        ValueError: the bytes are no image.
        ImportError: neither cv2 nor Pillow is there to decode it.
    """
    data = bytes(message.data)
    try:
        import cv2
    except ImportError:
        try:
            from PIL import Image
        except ImportError as error:
            raise ImportError("a CompressedImage needs opencv-python-headless or pillow to be decoded") from error
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError(f"a CompressedImage of {len(data)} bytes, format {message.format!r}, cannot be decoded")
    return np.ascontiguousarray(bgr[:, :, ::-1])


def joint_state(message: Any, joints: Sequence[str] = ()) -> np.ndarray:
    """Positions of `joints` (all, in the message's order, if empty) of a sensor_msgs/JointState: float32 [J], rad or m.

    Raises:
        ValueError: a joint is not in the message; the message names those that are.
    """
    return _by_name("JointState", message.name, message.position, joints)


def _by_name(kind: str, names: Sequence[str], values: Sequence[float], joints: Sequence[str]) -> np.ndarray:
    positions = dict(zip(names, values))  # noqa: B905  (no strict= on the Python of ROS 1)
    missing = [name for name in joints or names if name not in positions]
    if missing:
        raise ValueError(f"{kind} has no {missing}; it has {list(positions)}")
    return np.array([positions[name] for name in joints or names], np.float32)


def pose(message: Any) -> np.ndarray:
    """geometry_msgs/PoseStamped as float32 [9]: position (m) and 6-D rotation (first two columns), in the message's frame.

    Raises:
        ValueError: its quaternion is none.
    """
    return pose_vector(pose_matrix(message.pose.position, message.pose.orientation))


def pose_vector(T: np.ndarray) -> np.ndarray:
    """T [4, 4] as float32 [9]: position (m) and 6-D rotation, as in observation.state."""
    return np.concatenate([T[:3, 3], T[:3, 0], T[:3, 1]]).astype(np.float32)


def numbers(message: Any) -> np.ndarray:
    """std_msgs/Float32MultiArray or Float64MultiArray as float32 [N]; its layout is not looked at."""
    return np.asarray(message.data, np.float32)


def number(message: Any) -> np.ndarray:
    """std_msgs/Float64, Float32 or Bool as float32 [1]."""
    return np.array([message.data], np.float32)


def twist(message: Any) -> np.ndarray:
    """geometry_msgs/TwistStamped or Twist as float32 [6]: linear (m/s), angular (rad/s)."""
    linear, angular = getattr(message, "twist", message).linear, getattr(message, "twist", message).angular
    return np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z], np.float32)


def wrench(message: Any) -> np.ndarray:
    """geometry_msgs/WrenchStamped as float32 [6]: force (N), torque (N m)."""
    force, torque = message.wrench.force, message.wrench.torque
    return np.array([force.x, force.y, force.z, torque.x, torque.y, torque.z], np.float32)


def first_point(message: Any, joints: Sequence[str] = ()) -> np.ndarray:
    """Positions float32 [J] of the first point of a trajectory_msgs/JointTrajectory; `joints` as in joint_state().

    Raises:
        ValueError: it has no point, or a joint is not in the message; the message names those that are.
    """
    if not len(message.points):
        raise ValueError("the JointTrajectory has no point")
    return _by_name("JointTrajectory", message.joint_names, message.points[0].positions, joints)


def camera_matrix(message: Any) -> np.ndarray:
    """K [3, 3] (px) of a sensor_msgs/CameraInfo, of ROS 1 (K) or 2 (k).

    Raises:
        ValueError: the camera is not calibrated.
    """
    K = np.array(message.k if hasattr(message, "k") else message.K, float).reshape(3, 3)
    if not (K[0, 0] > 0 and K[1, 1] > 0):
        raise ValueError("the CameraInfo has no focal length: the camera is not calibrated")
    return K


def depth_points(depth: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Points float32 [P, 3] (m, optical frame: z forward) of the pixels of a depth image [H, W] that have a depth.

    K: of the picture as it is, rectified; pixel centres are at whole numbers (REP 104).
    """
    rows, columns = np.nonzero(depth > 0)
    z = depth[rows, columns]
    x, y = (columns - K[0, 2]) / K[0, 0] * z, (rows - K[1, 2]) / K[1, 1] * z
    return np.stack([x, y, z], axis=1).astype(np.float32)


def point_cloud(message: Any, fields: Sequence[str] = ("x", "y", "z")) -> np.ndarray:
    """`fields` of the points of a sensor_msgs/PointCloud2: float32 [P, F], points that are not finite left out.

    Raises:
        ValueError: a field is not in the message.
    """
    offsets = {f.name: (f.offset, _POINT_DTYPES[f.datatype]) for f in message.fields}
    missing = [name for name in fields if name not in offsets]
    if missing:
        raise ValueError(f"PointCloud2 has no {missing}; it has {sorted(offsets)}")
    order = ">" if message.is_bigendian else "<"
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.row_step)
    raw = np.ascontiguousarray(rows[:, : message.width * message.point_step]).reshape(-1, message.point_step)
    columns = []
    for name in fields:
        offset, code = offsets[name]
        dtype = np.dtype(order + code)
        columns.append(np.ascontiguousarray(raw[:, offset : offset + dtype.itemsize]).view(dtype)[:, 0].astype(np.float32))
    points = np.stack(columns, axis=1)
    return points[np.isfinite(points).all(axis=1)]


CONVERTERS: dict[str, Callable[..., np.ndarray]] = {
    "sensor_msgs/Image": image,
    "sensor_msgs/CompressedImage": compressed_image,
    "sensor_msgs/JointState": joint_state,
    "sensor_msgs/PointCloud2": point_cloud,
    "geometry_msgs/PoseStamped": pose,
    "std_msgs/Float32MultiArray": numbers,
    "std_msgs/Float64MultiArray": numbers,
    "std_msgs/Float32": number,
    "std_msgs/Float64": number,
    "std_msgs/Bool": number,
    "geometry_msgs/Twist": twist,
    "geometry_msgs/TwistStamped": twist,
    "geometry_msgs/WrenchStamped": wrench,
    "trajectory_msgs/JointTrajectory": first_point,
}


def resize_image(value: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image [h, w, 3] or depth [h, w] at [height, width]: the middle at the wanted aspect ratio, scaled.

    Colour is averaged over boxes. Depth is taken at box centres: an average across an edge, or with pixels that have no
    depth, would invent surfaces.
    """
    crop = _centre_crop(value, height, width)
    h, w = crop.shape[:2]
    if crop.ndim == 2 or h < height or w < width:
        rows, columns = ((np.arange(height) + 0.5) * h / height).astype(int), ((np.arange(width) + 0.5) * w / width).astype(int)
        return crop[np.ix_(rows, columns)]
    top, left = np.arange(height) * h // height, np.arange(width) * w // width
    sums = np.add.reduceat(np.add.reduceat(crop.astype(np.float32), top, axis=0), left, axis=1)
    areas = np.outer(np.diff(top, append=h), np.diff(left, append=w))
    return np.rint(sums / areas[:, :, None]).astype(value.dtype)


def resample_points(points: np.ndarray, count: int) -> np.ndarray:
    """`count` of the points [P, F]: all of them, evenly repeated, or some, none twice, evenly spread over their order.

    The spread is by multiples of the golden section, since every k-th pixel of a depth image would lie in a few columns.

    Raises:
        ValueError: there are no points.
    """
    P = len(points)
    if not P:
        raise ValueError("the point cloud has no finite point")
    if count >= P:
        return points[np.arange(count) * P // count]
    step = round(P * (np.sqrt(5) - 1) / 2)
    while math.gcd(step, P) > 1:
        step += 1
    return points[np.sort(np.arange(count) * step % P)]


def _centre_crop(value: np.ndarray, height: int, width: int) -> np.ndarray:
    h, w = value.shape[:2]
    scale = min(h / height, w / width)
    new_h, new_w = min(h, round(height * scale)), min(w, round(width * scale))
    top, left = (h - new_h) // 2, (w - new_w) // 2
    return value[top : top + new_h, left : left + new_w]
