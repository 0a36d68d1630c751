"""The few things the node needs of ROS, once for rclpy and once for rospy; neither is imported before it is asked for.

Part of the robot-side island: what ROS itself brings, nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable


class NoRosError(RuntimeError):
    """Neither rclpy nor rospy can be imported, or not the one asked for."""


class Transport(Protocol):
    """ROS as the node sees it. Times are seconds of the ROS clock, so a replay with simulated time works."""

    def now(self) -> float:
        """Time now."""

    def stamp(self, message: Any) -> float:
        """When `message` was measured; now if its header is absent or empty."""

    def subscribe(self, topic: str, type_name: str, callback: Callable[[Any], None], *, reliable: bool = False) -> None:
        """Call `callback` with the newest message of `topic`; older ones that were not taken in time are dropped."""

    def advertise(self, topic: str, type_name: str) -> tuple[type, Callable[[Any], None]]:
        """The message class of `topic` and the function that publishes one."""

    def set_header(self, message: Any, frame_id: str) -> None:
        """Stamp `message` with now and `frame_id`."""

    def spin(self, hz: float, callback: Callable[[], Any], stop: threading.Event) -> None:
        """Serve callbacks, `callback` at `hz` among them, until `stop` is set or ROS ends. Signals are the caller's."""

    def close(self) -> None:
        """Leave the graph."""


def message_class(type_name: str) -> Any:
    """The class of e.g. sensor_msgs/Image or sensor_msgs/msg/Image.

    Raises:
        ValueError: no such message in the ROS that is sourced.
    """
    package, _, name = type_name.replace("/msg/", "/").partition("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"message type {type_name!r} is not installed: {error}") from error


def find_ros(ros: str = "auto") -> str:
    """ "1" or "2": the ROS asked for, or with "auto" whichever of rclpy and rospy imports first.

    Raises:
        NoRosError: that ROS is not there; the message says what to source or install.
    """
    reasons = []
    for version in {"auto": ("2", "1"), "1": ("1",), "2": ("2",)}[ros]:
        module = {"1": "rospy", "2": "rclpy"}[version]
        try:
            importlib.import_module(module)
        except ImportError as error:
            reasons.append(f"{module}: {error}")
        else:
            return version
    raise NoRosError(
        f"no ROS here ({'; '.join(reasons)}): source it first (source /opt/ros/<distribution>/setup.bash) and use its "
        "python, or install ros-rclpy (ROS 2) or python3-rospy (ROS 1); --dry-run needs none"
    )


def open_transport(version: str, name: str = "robopolicy") -> Transport:
    """A node called `name` on ROS `version`, "1" or "2"."""
    return Ros1(name) if version == "1" else Ros2(name)


class Ros2:
    """rclpy. Sensor topics are best effort, depth 1, which matches publishers of either kind."""

    def __init__(self, name: str) -> None:
        import rclpy

        rclpy.init(signal_handler_options=importlib.import_module("rclpy.signals").SignalHandlerOptions.NO)
        self._rclpy, self._node = rclpy, rclpy.create_node(name)

    def now(self) -> float:
        """See Transport."""
        return self._node.get_clock().now().nanoseconds * 1e-9

    def stamp(self, message: Any) -> float:
        """See Transport."""
        stamp = getattr(getattr(message, "header", None), "stamp", None)
        seconds = 0.0 if stamp is None else stamp.sec + stamp.nanosec * 1e-9
        return seconds or self.now()

    def subscribe(self, topic: str, type_name: str, callback: Callable[[Any], None], *, reliable: bool = False) -> None:
        """See Transport."""
        qos = importlib.import_module("rclpy.qos")
        reliability = qos.ReliabilityPolicy.RELIABLE if reliable else qos.ReliabilityPolicy.BEST_EFFORT
        self._node.create_subscription(
            message_class(type_name), topic, callback, qos.QoSProfile(depth=1, reliability=reliability)
        )

    def advertise(self, topic: str, type_name: str) -> tuple[type, Callable[[Any], None]]:
        """See Transport."""
        cls = message_class(type_name)
        return cls, self._node.create_publisher(cls, topic, 1).publish

    def set_header(self, message: Any, frame_id: str) -> None:
        """See Transport."""
        message.header.stamp, message.header.frame_id = self._node.get_clock().now().to_msg(), frame_id

    def spin(self, hz: float, callback: Callable[[], Any], stop: threading.Event) -> None:
        """See Transport."""
        self._node.create_timer(1 / hz, callback)
        executor = importlib.import_module("rclpy.executors").SingleThreadedExecutor()
        executor.add_node(self._node)
        while self._rclpy.ok() and not stop.is_set():
            executor.spin_once(timeout_sec=0.1)

    def close(self) -> None:
        """See Transport."""
        self._node.destroy_node()
        self._rclpy.try_shutdown()


class Ros1:
    """rospy. Image topics get a large buffer, without which a queue of one still delivers old frames."""

    def __init__(self, name: str) -> None:
        import rospy

        rospy.init_node(name, disable_signals=True)
        self._rospy = rospy

    def now(self) -> float:
        """See Transport."""
        return self._rospy.get_time()

    def stamp(self, message: Any) -> float:
        """See Transport."""
        stamp = getattr(getattr(message, "header", None), "stamp", None)
        return (0.0 if stamp is None else stamp.to_sec()) or self.now()

    def subscribe(self, topic: str, type_name: str, callback: Callable[[Any], None], *, reliable: bool = False) -> None:
        """See Transport. ROS 1 is always reliable."""
        self._rospy.Subscriber(topic, message_class(type_name), callback, queue_size=1, buff_size=2**24, tcp_nodelay=True)

    def advertise(self, topic: str, type_name: str) -> tuple[type, Callable[[Any], None]]:
        """See Transport."""
        cls = message_class(type_name)
        return cls, self._rospy.Publisher(topic, cls, queue_size=1, tcp_nodelay=True).publish

    def set_header(self, message: Any, frame_id: str) -> None:
        """See Transport."""
        message.header.stamp, message.header.frame_id = self._rospy.Time.now(), frame_id

    def spin(self, hz: float, callback: Callable[[], Any], stop: threading.Event) -> None:
        """See Transport."""
        timer = self._rospy.Timer(self._rospy.Duration(1 / hz), lambda _: callback())
        while not self._rospy.is_shutdown() and not stop.wait(0.1):
            pass
        timer.shutdown()

    def close(self) -> None:
        """See Transport."""
        self._rospy.signal_shutdown("closed")
