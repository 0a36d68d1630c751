"""ROS 2: a lifecycle node of rclpy as the transport of ros_node.InferenceNode.

Part of the robot-side island: rclpy and the messages that come with it; nothing is imported before a node is made.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from .ros_transforms import header_seconds
    from .ros_transport import ACTIVATE, CONFIGURE, DEACTIVATE, message_class, plain_type
else:  # this folder itself is on the path
    from ros_transforms import header_seconds
    from ros_transport import ACTIVATE, CONFIGURE, DEACTIVATE, message_class, plain_type

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

    from .ros_transport import Managed


class Ros2:
    """rclpy (see ros_transport.Transport). Sensor topics are best effort, which matches publishers of either kind."""

    version = "2"

    def __init__(self, name: str) -> None:
        import rclpy

        rclpy.init(signal_handler_options=importlib.import_module("rclpy.signals").SignalHandlerOptions.NO)
        self._rclpy, self._qos = rclpy, importlib.import_module("rclpy.qos")
        self._node = _lifecycle_node_class()(name, automatically_declare_parameters_from_overrides=True)
        self._lost: dict[str, int] = {}

    def now(self) -> float:
        """See Transport."""
        return self._node.get_clock().now().nanoseconds * 1e-9

    def stamp(self, message: Any) -> float:
        """See Transport."""
        return header_seconds(message) or self.now()

    def topics(self) -> dict[str, str]:
        """See Transport."""
        publishers = {
            topic: self._node.get_publishers_info_by_topic(topic) for topic, _ in self._node.get_topic_names_and_types()
        }
        return {topic: plain_type(found[0].topic_type) for topic, found in publishers.items() if found}

    def num_publishers(self, topic: str) -> int:
        """See Transport."""
        return int(self._node.count_publishers(topic))

    def overrides(self) -> dict[str, Any]:
        """See Transport."""
        ours = self._node.get_parameters_by_prefix("")
        return {
            name: list(value.value) if hasattr(value.value, "typecode") else value.value
            for name, value in ours.items()
            if name not in ("use_sim_time", "start_type_description_service") and not name.startswith("qos_overrides.")
        }

    def declare(self, values: Mapping[str, Any]) -> None:
        """See Transport. A mapping's entry that is empty or a list of lists is none that ROS 2 has a type for."""
        read_only = importlib.import_module("rcl_interfaces.msg").ParameterDescriptor(read_only=True)
        for name, value in values.items():
            listed = isinstance(value, list) and bool(value) and all(type(x) is type(value[0]) for x in value)
            plain = isinstance(value, (bool, int, float, str)) or (listed and isinstance(value[0], (bool, int, float, str)))
            if plain and not self._node.has_parameter(name):
                self._node.declare_parameter(name, value, read_only)

    def subscribe(
        self, topic: str, type_name: str, callback: Callable[[Any], None], *, reliability: str = "best_effort", depth: int = 1
    ) -> None:
        """See Transport."""
        profile = self._qos.QoSProfile(depth=depth, reliability=self._reliability(reliability))
        self._node.create_subscription(message_class(type_name), topic, callback, profile)

    def subscribe_latched(self, topic: str, type_name: str, callback: Callable[[Any], None]) -> None:
        """See Transport. A subscription that asks for kept messages, or for reliability, does not match a publisher without:
        there is one for each kind of publisher.
        """
        kept, now = self._qos.DurabilityPolicy.TRANSIENT_LOCAL, self._qos.DurabilityPolicy.VOLATILE
        for reliability, durability in (("reliable", kept), ("reliable", now), ("best_effort", now)):
            profile = self._qos.QoSProfile(depth=100, reliability=self._reliability(reliability), durability=durability)
            self._node.create_subscription(message_class(type_name), topic, callback, profile)

    def advertise(
        self, topic: str, type_name: str, *, reliability: str = "reliable", latched: bool = False
    ) -> tuple[Any, Callable[[Any], None]]:
        """See Transport."""
        durability = self._qos.DurabilityPolicy.TRANSIENT_LOCAL if latched else self._qos.DurabilityPolicy.VOLATILE
        profile = self._qos.QoSProfile(depth=1, reliability=self._reliability(reliability), durability=durability)
        cls = message_class(type_name)
        return cls, self._node.create_publisher(cls, topic, profile).publish

    def _reliability(self, name: str) -> Any:
        return self._qos.ReliabilityPolicy.RELIABLE if name == "reliable" else self._qos.ReliabilityPolicy.BEST_EFFORT

    def service(self, name: str, callback: Callable[[], tuple[bool, str]]) -> None:
        """See Transport."""

        def answer(_: Any, response: Any) -> Any:
            response.success, response.message = callback()
            return response

        self._node.create_service(importlib.import_module("std_srvs.srv").Trigger, name, answer)

    def manage(self, node: Managed) -> None:
        """See Transport. ~/change_state and the services ~/start and ~/stop then do the same."""
        self._node.managed = node

    def transition(self, name: str) -> None:
        """See Transport."""
        trigger = {CONFIGURE: "trigger_configure", ACTIVATE: "trigger_activate", DEACTIVATE: "trigger_deactivate"}[name]
        self._node.refusal = None
        try:
            getattr(self._node, trigger)()
        except Exception as error:  # rclpy's RCLError is not exported; it means that the state has no such transition
            state = self._node._state_machine.current_state[1]
            raise ValueError(f"cannot {name} while {state}") from error
        if self._node.refusal is not None:
            raise self._node.refusal

    def duration(self, seconds: float) -> Any:
        """See Transport."""
        return importlib.import_module("rclpy.duration").Duration(seconds=seconds).to_msg()

    def set_header(self, message: Any, frame_id: str) -> None:
        """See Transport."""
        message.header.stamp, message.header.frame_id = self._node.get_clock().now().to_msg(), frame_id

    def serialize(self, message: Any) -> bytes:
        """See Transport."""
        data: bytes = importlib.import_module("rclpy.serialization").serialize_message(message)
        return data

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


def _lifecycle_node_class() -> Any:
    """LifecycleNode whose transitions are those of its `managed`; `refusal` is the ValueError that stopped the last one."""
    lifecycle: Any = importlib.import_module("rclpy.lifecycle")
    base: Any = lifecycle.LifecycleNode
    result = lifecycle.TransitionCallbackReturn

    class Node(base):
        managed: Managed
        refusal: ValueError | None = None
        _said = ""

        def _do(self, name: str) -> Any:
            try:
                getattr(self.managed, name)()
            except ValueError as error:
                if str(error) != self._said:  # a start is tried again and again
                    self.get_logger().warning(str(error))
                self.refusal, self._said = error, str(error)
                return result.FAILURE
            return result.SUCCESS

        def on_configure(self, state: Any) -> Any:
            return self._do(CONFIGURE)

        def on_activate(self, state: Any) -> Any:
            return self._do(ACTIVATE)

        def on_deactivate(self, state: Any) -> Any:
            return self._do(DEACTIVATE)

        def on_shutdown(self, state: Any) -> Any:
            return self._do(DEACTIVATE)

    return Node
