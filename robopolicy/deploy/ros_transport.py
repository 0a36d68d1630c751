"""The few things the node needs of ROS; ros1_node.py and ros2_node.py are the two that have them.

Part of the robot-side island: what ROS itself brings, nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping


class NoRosError(RuntimeError):
    """Neither rclpy nor rospy can be imported, or not the one asked for."""


class Managed(Protocol):
    """What a lifecycle moves: unconfigured -> inactive -> active and back. Each raises ValueError to refuse."""

    def configure(self) -> None:
        """Check that all is there."""

    def activate(self) -> None:
        """Begin to act."""

    def deactivate(self) -> None:
        """Stop acting."""


CONFIGURE, ACTIVATE, DEACTIVATE = "configure", "activate", "deactivate"
UNCONFIGURED, INACTIVE, ACTIVE = "unconfigured", "inactive", "active"


class Transport(Protocol):
    """ROS as the node sees it. Times are seconds of the ROS clock, so a replay with simulated time works.

    version: "1" or "2". Types are written as in ROS 1, sensor_msgs/Image; a topic or service ~/name is the node's own.
    """

    version: str

    def now(self) -> float:
        """Time now."""

    def stamp(self, message: Any) -> float:
        """When `message` was measured; now if its header is absent or empty."""

    def topics(self) -> dict[str, str]:
        """{topic: type} of what is published at present."""

    def num_publishers(self, topic: str) -> int:
        """How many publishers `topic` has, of which it was subscribed to; asks nobody, so it may be called at every step."""

    def overrides(self) -> dict[str, Any]:
        """{dotted name: value} of the parameters that were given to this node."""

    def declare(self, values: Mapping[str, Any]) -> None:
        """Let people read these parameters of the node."""

    def subscribe(
        self, topic: str, type_name: str, callback: Callable[[Any], None], *, reliability: str = "best_effort", depth: int = 1
    ) -> None:
        """Call `callback` with messages of `topic`; beyond `depth`, older ones that were not taken in time are dropped."""

    def subscribe_latched(self, topic: str, type_name: str, callback: Callable[[Any], None]) -> None:
        """As subscribe(), and with the last message from before this node was there, if its sender keeps it; reliably, if
        that is how it is sent. One message may come several times.
        """

    def advertise(
        self, topic: str, type_name: str, *, reliability: str = "reliable", latched: bool = False
    ) -> tuple[Any, Callable[[Any], None]]:
        """The message class of `topic` and the function that publishes one."""

    def service(self, name: str, callback: Callable[[], tuple[bool, str]]) -> None:
        """Offer a std_srvs/Trigger that answers with what `callback` returns: success, message."""

    def manage(self, node: Managed) -> None:
        """Put `node` under ROS's lifecycle, where ROS has one."""

    def transition(self, name: str) -> None:
        """CONFIGURE, ACTIVATE or DEACTIVATE the managed node. Raises the ValueError with which it refuses."""

    def duration(self, seconds: float) -> Any:
        """A duration as fields of messages want it."""

    def set_header(self, message: Any, frame_id: str) -> None:
        """Stamp `message` with now and `frame_id`."""

    def serialize(self, message: Any) -> bytes:
        """What `message` is in a bag."""

    def spin(self, hz: float, callback: Callable[[], Any], stop: threading.Event) -> None:
        """Serve callbacks, `callback` at `hz` among them, until `stop` is set or ROS ends. Signals are the caller's."""

    def close(self) -> None:
        """Leave the graph."""


def message_class(type_name: str) -> Any:
    """The class of e.g. sensor_msgs/Image or sensor_msgs/msg/Image.

    Raises:
        ValueError: no such message in the ROS that is sourced.
    """
    package, _, name = plain_type(type_name).partition("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"message type {type_name!r} is not installed: {error}") from error


def plain_type(type_name: str) -> str:
    """sensor_msgs/msg/Image as sensor_msgs/Image."""
    return type_name.replace("/msg/", "/")


def without_ros_arguments(words: list[str]) -> list[str]:
    """Arguments that are not ROS's own: --ros-args ... [--] of ROS 2, name:=value of ROS 1."""
    kept, own = [], True
    for word in words:
        if word == "--ros-args":
            own = False
        elif word == "--" and not own:
            own = True
        elif own and ":=" not in word:
            kept.append(word)
    return kept


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
    package = f"{__package__}." if __package__ else ""
    module = importlib.import_module(f"{package}ros{version}_node")
    transport: Transport = module.Ros1(name) if version == "1" else module.Ros2(name)
    return transport
