"""The robot's end of ROS, for robot.py: rclpy or rospy as they are, without anything of robopolicy/deploy."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable
from typing import Any


def message(kind: str) -> Any:
    """The class of e.g. sensor_msgs/Image."""
    package, name = kind.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


class Ros2Robot:
    """rclpy, callbacks in a thread of their own."""

    def __init__(self) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

        rclpy.init()
        self.node = rclpy.create_node("robot")
        self._latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._best_effort = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._publishers: dict[str, Any] = {}
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._rclpy, self._thread = rclpy, threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self._thread.join()
        self._rclpy.shutdown()

    def publish(self, topic: str, kind: str, value: Any, latched: bool = False, best_effort: bool = False) -> None:
        """Publish a message; its class is that of `kind`."""
        if topic not in self._publishers:
            profile = self._latched if latched else self._best_effort if best_effort else 5
            self._publishers[topic] = self.node.create_publisher(message(kind), topic, profile)
        self._publishers[topic].publish(value)

    def subscribe(self, topic: str, kind: str, callback: Callable[[Any], None]) -> None:
        """Call `callback` with what comes."""
        self.node.create_subscription(message(kind), topic, callback, 10)

    def call(self, service: str, timeout_s: float = 10.0) -> tuple[bool, str]:
        """Call a std_srvs/Trigger."""
        from std_srvs.srv import Trigger

        client = self.node.create_client(Trigger, service)
        if not client.wait_for_service(timeout_s):
            return False, f"no service {service}"
        done = threading.Event()
        future = client.call_async(Trigger.Request())
        future.add_done_callback(lambda _: done.set())
        if not done.wait(timeout_s):
            return False, f"{service} does not answer"
        self.node.destroy_client(client)
        return future.result().success, future.result().message

    def time(self, seconds: float) -> Any:
        """A stamp."""
        from rclpy.time import Time

        return Time(nanoseconds=round(seconds * 1e9)).to_msg()

    def seconds(self, stamp: Any) -> float:
        """Of a stamp."""
        return stamp.sec + stamp.nanosec * 1e-9


class Ros1Robot:
    """rospy."""

    def __init__(self) -> None:
        import rospy

        rospy.init_node("robot", disable_signals=True)
        self.rospy, self._publishers = rospy, {}

    def close(self) -> None:
        """See Ros2Robot."""
        self.rospy.signal_shutdown("done")

    def publish(self, topic: str, kind: str, value: Any, latched: bool = False, best_effort: bool = False) -> None:
        """See Ros2Robot. Connections are always reliable."""
        if topic not in self._publishers:
            options = {"queue_size": 5, "tcp_nodelay": True, "latch": latched}
            self._publishers[topic] = self.rospy.Publisher(topic, message(kind), **options)
        self._publishers[topic].publish(value)

    def subscribe(self, topic: str, kind: str, callback: Callable[[Any], None]) -> None:
        """See Ros2Robot."""
        self.rospy.Subscriber(topic, message(kind), callback, tcp_nodelay=True)

    def call(self, service: str, timeout_s: float = 10.0) -> tuple[bool, str]:
        """See Ros2Robot."""
        from std_srvs.srv import Trigger

        deadline = time.monotonic() + timeout_s
        while True:
            try:
                answer = self.rospy.ServiceProxy(service, Trigger)()
                return answer.success, answer.message
            except self.rospy.ServiceException as error:
                if time.monotonic() > deadline:
                    return False, str(error)
                time.sleep(0.1)

    def time(self, seconds: float) -> Any:
        """See Ros2Robot."""
        return self.rospy.Time.from_sec(seconds)

    def seconds(self, stamp: Any) -> float:
        """See Ros2Robot."""
        return stamp.to_sec()
