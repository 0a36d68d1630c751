"""From messages to what a policy observes: newest samples of each topic, converted when somebody looks at them.

The node and the readers of bags share it. Part of the robot-side island: numpy only.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:
    from .ros_messages import CONVERTERS, camera_matrix, depth_points, image, pose_vector, resample_points, resize_image
    from .ros_transforms import TransformTree, header_seconds, pose_matrix
    from .synchronise import reason
else:  # this folder itself is on the path
    from ros_messages import CONVERTERS, camera_matrix, depth_points, image, pose_vector, resample_points, resize_image
    from ros_transforms import TransformTree, header_seconds, pose_matrix
    from synchronise import reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .ros_config import Source


WITH_JOINTS = ("sensor_msgs/JointState", "trajectory_msgs/JointTrajectory")


class Converter:
    """Turns messages of sources into arrays, with what /tf and camera infos have told so far.

    base_frame: of the observations; "" = sources without a T_base_sensor are in it already.
    """

    def __init__(self, base_frame: str = "") -> None:
        self.base_frame, self.transforms = base_frame, TransformTree()
        self.camera_infos: dict[str, Any] = {}  # by topic

    def convert(self, source: Source, message: Any, stamp: float, shape: Sequence[int] = ()) -> np.ndarray:
        """The array of `message`, measured at `stamp` (s); images and clouds in the per-step `shape` of the policy, or of
        the source, or, an image, as they are.

        Raises:
            ValueError: the message is not what the mapping says, or something that it needs is not known; the text says what.
        """
        shape = source.size or tuple(shape)
        if source.camera_info:
            return self._cloud(source, self._depth_points(source, message), message, stamp, shape)
        if source.type == "sensor_msgs/PointCloud2":
            return self._cloud(source, CONVERTERS[source.type](message, source.fields), message, stamp, shape)
        if source.type == "geometry_msgs/PoseStamped":
            T_frame_ee = pose_matrix(message.pose.position, message.pose.orientation)
            T_base_frame = self._T_base_frame(source, message, stamp)
            return pose_vector(T_frame_ee if T_base_frame is None else T_base_frame @ T_frame_ee)
        if source.type in WITH_JOINTS:
            return CONVERTERS[source.type](message, source.joints) * np.float32(source.scale)
        value: np.ndarray = CONVERTERS[source.type](message)
        if value.ndim == 1:
            return value * np.float32(source.scale)
        if (len(shape) > 2 and value.ndim == 2) or (len(shape) == 2 and not source.size and value.ndim == 3):
            wanted = "colour" if value.ndim == 2 else "depth"
            raise ValueError(f"its encoding is {message.encoding!r}, and the policy wants a {wanted} image")
        return resize_image(value, shape[0], shape[1]) if shape else value

    def _depth_points(self, source: Source, message: Any) -> np.ndarray:
        if source.camera_info not in self.camera_infos:
            raise ValueError(f"nothing has come on {source.camera_info} (sensor_msgs/CameraInfo)")
        depth = image(message)
        if depth.ndim != 2:
            raise ValueError(f"its encoding is {message.encoding!r}; with a camera_info it must be depth: 16UC1 or 32FC1")
        info = self.camera_infos[source.camera_info]
        K = camera_matrix(info)
        if (info.height, info.width) != depth.shape and info.height and info.width:
            K = np.diag([depth.shape[1] / info.width, depth.shape[0] / info.height, 1.0]) @ K
        return depth_points(depth, K)

    def _cloud(self, source: Source, points: np.ndarray, message: Any, stamp: float, shape: Sequence[int]) -> np.ndarray:
        T = self._T_base_frame(source, message, stamp)
        if T is not None:
            points[:, :3] = points[:, :3] @ T[:3, :3].T.astype(np.float32) + T[:3, 3].astype(np.float32)
        keep = np.ones(len(points), bool)
        if source.crop_low is not None:
            keep &= (points[:, :3] >= np.array(source.crop_low, np.float32)).all(axis=1)
        if source.crop_high is not None:
            keep &= (points[:, :3] <= np.array(source.crop_high, np.float32)).all(axis=1)
        if len(points) and not keep.any():
            raise ValueError(f"none of its {len(points)} points is in the box from {source.crop_low} to {source.crop_high}")
        if not shape:
            raise ValueError(f"how many points of {source.topic} to take is not known: give the source a size: [P]")
        return resample_points(points[keep], shape[0])

    def _T_base_frame(self, source: Source, message: Any, stamp: float) -> np.ndarray | None:
        if source.T_base_sensor is not None:
            return np.array(source.T_base_sensor, float)
        if not self.base_frame:
            return None
        return self.transforms.lookup(self.base_frame, message.header.frame_id, stamp)


class Sample:
    """One message of a stream, converted once, when first looked at."""

    __slots__ = ("_lock", "_stream", "_value", "message", "stamp")

    def __init__(self, stream: Stream, message: Any, stamp: float) -> None:
        self.message, self.stamp, self._stream = message, stamp, stream
        self._value: np.ndarray | None = None
        self._lock = threading.Lock()

    def value(self) -> np.ndarray:
        """The array.

        Raises:
            ValueError: the message is not what it should be; the text says why.
        """
        with self._lock:
            if self._value is None:
                stream = self._stream
                try:
                    self._value = stream.converter.convert(stream.source, self.message, self.stamp, stream.shape)
                except Exception as error:  # a message may be anything, and its decoder raise anything
                    raise ValueError(reason(error)) from error
            return self._value


class Stream:
    """The newest sample of a source."""

    def __init__(self, key: str, source: Source, shape: Sequence[int], converter: Converter) -> None:
        self.key, self.source, self.shape, self.converter = key, source, tuple(shape), converter
        self.latest: Sample | None = None
        self.num_received = 0
        self.num_seen = 0  # of num_received, at the last moment that was acted on

    @property
    def moment(self) -> float | None:
        """The time of the newest message; None = it does not say, but it is new; -inf = there is nothing new."""
        if self.latest is None or self.num_received == self.num_seen:
            return -np.inf
        return header_seconds(self.latest.message) or None

    def receive(self, message: Any, stamp: float) -> Sample:
        """Take a message."""
        self.num_received += 1
        self.latest = Sample(self, message, stamp)
        return self.latest


def joined(key: str, samples: Sequence[Sample], feature: Any) -> np.ndarray:
    """The value of an observation key, its sources joined along the last axis, as `feature` (shape, dtype) says.

    Raises:
        ValueError: a message is not what it should be, the whole has another shape, or a number is not finite.
    """
    parts = []
    for sample in samples:
        try:
            parts.append(sample.value())
        except ValueError as error:
            raise ValueError(f"{sample._stream.source.topic}: {error}") from error
    value = np.concatenate(parts, axis=-1).astype(feature.dtype, copy=False)
    if tuple(value.shape) != tuple(feature.shape):
        topics = ", ".join(dict.fromkeys(sample._stream.source.topic for sample in samples))
        raise ValueError(f"{key} has shape {list(value.shape)} from {topics}, the policy wants {list(feature.shape)}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"{key} holds {np.count_nonzero(~np.isfinite(value))} numbers that are not finite")
    return value


def make_streams(
    observation: Mapping[str, Sequence[Source]], features: Mapping[str, Any], converter: Converter
) -> dict[str, list[Stream]]:
    """{key: its streams}, for the keys that `features` has."""
    return {
        key: [Stream(key, source, features[key].shape, converter) for source in observation[key]]
        for key in features
        if key in observation
    }
