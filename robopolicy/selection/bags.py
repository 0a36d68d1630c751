"""A ROS 1 or ROS 2 bag (sqlite or MCAP) as target observations; needs no ROS, but `pip install 'robopolicy[bags]'`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.ranking.tables import RankingError
from robopolicy.selection.target import RecordedTarget
from robopolicy.spec import IMAGES, STATE, Array, did_you_mean, image_key

IMAGE, COMPRESSED, JOINTS, NUMBERS = (
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/CompressedImage",
    "sensor_msgs/msg/JointState",
    "std_msgs/msg/Float64MultiArray",
)
CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}


def read_bag(path: Path, keys: Mapping[str, str] | None = None) -> RecordedTarget:
    """The observations of a bag: a row for every picture of its first camera, with what the other topics said last before it.

    keys: {our key: topic}, e.g. {"observation.images.front": "/camera/image_raw", "observation.state": "/joint_states"};
    None = every camera by its name, and the only topic of joint states.

    Raises:
        RankingError: rosbags is not installed, a topic is missing or of a type that cannot be read, or nothing was recorded.
    """
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise RankingError(
            f"{path} is a ROS bag, and rosbags is not installed: pip install 'robopolicy[bags]', or export its pictures"
        ) from error
    paths = [path] if path.is_file() or (path / "metadata.yaml").is_file() else sorted(path.glob("*.mcap"))
    with AnyReader(paths, default_typestore=get_typestore(Stores.ROS2_HUMBLE)) as reader:
        types = {topic: str(info.msgtype) for topic, info in reader.topics.items()}
        wanted = _topics(types, keys, path)
        by_topic = {topic: key for key, topic in wanted.items()}
        clock = next(key for key in wanted if key.startswith(IMAGES))
        last: dict[str, Array] = {}
        rows: list[dict[str, Array]] = []
        connections = [c for c in reader.connections if c.topic in by_topic]
        for connection, _, raw in reader.messages(connections=connections):
            key = by_topic[connection.topic]
            last[key] = _value(reader.deserialize(raw, connection.msgtype), types[connection.topic])
            if key == clock and len(last) == len(wanted):
                rows.append(dict(last))
    if not rows:
        raise RankingError(f"{path} has no moment at which all of {', '.join(by_topic)} had been published")
    values = {key: np.stack([row[key] for row in rows]) for key in wanted}
    return RecordedTarget(values, np.zeros(len(rows), np.int64))  # a bag is one episode


def _topics(types: Mapping[str, str], keys: Mapping[str, Any] | None, path: Path) -> dict[str, str]:
    """{our key: topic}, pictures first."""
    if keys:
        for key, topic in keys.items():
            if topic not in types:
                raise RankingError(f"{path} has no topic {topic!r} for {key}; {did_you_mean(str(topic), types)}")
        wanted = dict(keys)
    else:
        cameras = [topic for topic, kind in sorted(types.items()) if kind in (IMAGE, COMPRESSED)]
        wanted = {image_key("front" if len(cameras) == 1 else _camera(topic)): topic for topic in cameras}
        joints = [topic for topic, kind in types.items() if kind == JOINTS]
        wanted |= {STATE: joints[0]} if len(joints) == 1 else {}
    for topic in wanted.values():
        if types[topic] not in (IMAGE, COMPRESSED, JOINTS, NUMBERS):
            raise RankingError(f"{topic} holds {types[topic]}; can be read: {IMAGE}, {COMPRESSED}, {JOINTS}, {NUMBERS}")
    pictures = [key for key in wanted if key.startswith(IMAGES)]
    if not pictures:
        listed = ", ".join(f"{topic} ({kind})" for topic, kind in sorted(types.items())) or "none"
        raise RankingError(f"{path} has no pictures; its topics: {listed}. Name one with target_keys='{{KEY: TOPIC}}'")
    return {key: wanted[key] for key in [*pictures, *(key for key in wanted if key not in pictures)]}


def _camera(topic: str) -> str:
    """ "/camera/wrist/image_raw" -> "wrist"."""
    words = [word for word in topic.split("/") if word and word not in ("image_raw", "image", "compressed", "color", "camera")]
    return words[-1] if words else "front"


def _value(message: Any, kind: str) -> Array:
    if kind == IMAGE:
        return _image(message)
    if kind == COMPRESSED:
        import cv2

        decoded = cv2.imdecode(np.frombuffer(bytes(message.data), np.uint8), cv2.IMREAD_COLOR)
        if decoded is None:
            raise RankingError("a compressed picture of the bag cannot be decoded")
        return np.ascontiguousarray(decoded[..., ::-1])
    values = message.position if kind == JOINTS else message.data
    return np.asarray(values, np.float32)


def _image(message: Any) -> Array:
    """uint8 [H, W, 3] RGB."""
    if message.encoding not in CHANNELS:
        raise RankingError(f"pictures of encoding {message.encoding!r} cannot be read; can be: {', '.join(CHANNELS)}")
    channels = CHANNELS[message.encoding]
    rows = np.asarray(message.data, np.uint8).reshape(message.height, message.step)[:, : message.width * channels]
    pixels = rows.reshape(message.height, message.width, channels)
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., 2::-1] if message.encoding.startswith("bgr") else pixels[..., :3])
