"""Messages for bags, of rosbags' own classes: real bytes without any ROS."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from rosbags.typesys import Stores, get_typestore

STORES = {"1": get_typestore(Stores.ROS1_NOETIC), "2": get_typestore(Stores.ROS2_JAZZY)}


class Messages:
    """Messages of rosbags' own classes, with what rospy's know of their definition."""

    def __init__(self, version: str) -> None:
        self.version, self.store = version, STORES[version]

    def make(self, kind: str, **fields):
        name = kind.replace("/", "/msg/")
        text, digest = self.store.generate_msgdef(name)
        value = self.store.types[name](**fields)
        return SimpleNamespace(value=value, name=name, _full_text=text, _md5sum=digest)

    def header(self, seconds: float):
        stamp = self.store.types["builtin_interfaces/msg/Time"](int(seconds), round(seconds % 1 * 1e9))
        more = {"seq": 0} if self.version == "1" else {}
        return self.store.types["std_msgs/msg/Header"](**more, stamp=stamp, frame_id="camera")

    def serialize(self, message) -> bytes:
        write = self.store.serialize_ros1 if self.version == "1" else self.store.serialize_cdr
        return bytes(write(message.value, message.name))

    def text(self, text: str):
        return self.make("std_msgs/String", data=text)

    def array(self, values):
        layout = self.store.types["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
        return self.make("std_msgs/Float64MultiArray", layout=layout, data=np.asarray(values, float))

    def joints(self, values, seconds: float):
        none = np.zeros(0)
        fields = {"name": ["b", "a"], "position": np.array(values[::-1], float), "velocity": none, "effort": none}
        return self.make("sensor_msgs/JointState", header=self.header(seconds), **fields)

    def image(self, pixels, seconds: float):
        height, width = pixels.shape[:2]
        fields = {"encoding": "bgr8", "is_bigendian": 0, "step": 3 * width, "data": pixels[..., ::-1].reshape(-1)}
        return self.make("sensor_msgs/Image", header=self.header(seconds), height=height, width=width, **fields)

    def twist(self, values, seconds: float):
        vector = lambda v: self.store.types["geometry_msgs/msg/Vector3"](*map(float, v))  # noqa: E731
        twist = self.store.types["geometry_msgs/msg/Twist"](linear=vector(values[:3]), angular=vector(values[3:6]))
        return self.make("geometry_msgs/TwistStamped", header=self.header(seconds), twist=twist)
