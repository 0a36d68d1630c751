"""ROS 1: a node of rospy as the transport of ros_node.InferenceNode.

Part of the robot-side island: rospy and the messages that come with it; nothing is imported before a node is made.
"""

from __future__ import annotations

import importlib
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from .ros_transforms import header_seconds
    from .ros_transport import message_class
else:  # this folder itself is on the path
    from ros_transforms import header_seconds
    from ros_transport import message_class

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

    from .ros_transport import Managed


class Ros1:
    """rospy (see ros_transport.Transport). Image topics get a large buffer, without which a queue of one delivers old frames.

    ROS 1 has no lifecycle: the services ~start and ~stop are all there is. Connections are always reliable.
    """

    version = "1"

    def __init__(self, name: str) -> None:
        import rospy

        rospy.init_node(name, disable_signals=True)
        self._rospy = rospy
        self._managed: Managed | None = None
        self._subscribers: dict[str, Any] = {}

    def now(self) -> float:
        """See Transport."""
        return self._rospy.get_time()

    def stamp(self, message: Any) -> float:
        """See Transport."""
        return header_seconds(message) or self.now()

    def topics(self) -> dict[str, str]:
        """See Transport."""
        return dict(self._rospy.get_published_topics())

    def num_publishers(self, topic: str) -> int:
        """See Transport."""
        return int(self._subscribers[topic].get_num_connections())

    def overrides(self) -> dict[str, Any]:
        """See Transport. The private parameters of the node; a dot of a name is a slash there."""
        given = self._rospy.get_param("~", {})
        return dict(_flat(given, "")) if isinstance(given, dict) else {}

    def declare(self, values: Mapping[str, Any]) -> None:
        """See Transport. Not on ROS 1, whose parameters outlive the node: the next one would take them for given."""

    def subscribe(
        self, topic: str, type_name: str, callback: Callable[[Any], None], *, reliability: str = "best_effort", depth: int = 1
    ) -> None:
        """See Transport."""
        options = {"queue_size": depth, "buff_size": 2**24, "tcp_nodelay": True}
        self._subscribers[topic] = self._rospy.Subscriber(_own(topic), message_class(type_name), callback, **options)

    def subscribe_latched(self, topic: str, type_name: str, callback: Callable[[Any], None]) -> None:
        """See Transport."""
        self.subscribe(topic, type_name, callback, depth=100)

    def advertise(
        self, topic: str, type_name: str, *, reliability: str = "reliable", latched: bool = False
    ) -> tuple[Any, Callable[[Any], None]]:
        """See Transport."""
        cls = message_class(type_name)
        return cls, self._rospy.Publisher(_own(topic), cls, queue_size=1, tcp_nodelay=True, latch=latched).publish

    def service(self, name: str, callback: Callable[[], tuple[bool, str]]) -> None:
        """See Transport."""
        services = importlib.import_module("std_srvs.srv")
        self._rospy.Service(_own(name), services.Trigger, lambda _: services.TriggerResponse(*callback()))

    def manage(self, node: Managed) -> None:
        """See Transport."""
        self._managed = node

    def transition(self, name: str) -> None:
        """See Transport."""
        getattr(self._managed, name)()

    def duration(self, seconds: float) -> Any:
        """See Transport."""
        return self._rospy.Duration.from_sec(seconds)

    def set_header(self, message: Any, frame_id: str) -> None:
        """See Transport."""
        message.header.stamp, message.header.frame_id = self._rospy.Time.now(), frame_id

    def serialize(self, message: Any) -> bytes:
        """See Transport."""
        buffer = io.BytesIO()
        message.serialize(buffer)
        return buffer.getvalue()

    def spin(self, hz: float, callback: Callable[[], Any], stop: threading.Event) -> None:
        """See Transport. What `callback` raises is raised here: rospy's timer would end without a word."""
        failures: list[BaseException] = []

        def step(_: Any) -> None:
            try:
                if not failures:
                    callback()
            except BaseException as error:
                failures.append(error)
                stop.set()

        timer = self._rospy.Timer(self._rospy.Duration(1 / hz), step, reset=True)
        while not self._rospy.is_shutdown() and not stop.wait(0.1):
            pass
        timer.shutdown()
        if failures:
            raise failures[0]

    def close(self) -> None:
        """See Transport."""
        self._rospy.signal_shutdown("closed")


def _own(name: str) -> str:
    """~/name as rospy writes it."""
    return "~" + name[2:] if name.startswith("~/") else name


def _flat(data: Any, prefix: str) -> list[tuple[str, Any]]:
    """(dotted name, value) of nested parameters."""
    if isinstance(data, dict):
        return [item for key, value in data.items() for item in _flat(value, f"{prefix}{key}.")]
    if isinstance(data, list) and data and isinstance(data[0], dict):
        return [item for number, value in enumerate(data) for item in _flat(value, f"{prefix}{number}.")]
    return [(prefix[:-1], data)]
