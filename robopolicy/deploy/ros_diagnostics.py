"""/diagnostics: the state of the node, ages of its streams, and a count of everything that went otherwise than it should.

Part of the robot-side island: numpy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from .ros_transport import ACTIVE, message_class
    from .runtime import RUN
else:  # this folder itself is on the path
    from ros_transport import ACTIVE, message_class
    from runtime import RUN

if TYPE_CHECKING:
    from .ros_node import InferenceNode
    from .ros_transport import Transport


class Diagnostics:
    """Publishes diagnostic_msgs/DiagnosticArray at `hz` of the ROS clock; 0 or no diagnostic_msgs = never."""

    def __init__(self, transport: Transport, hz: float) -> None:
        self._transport, self._period, self._last = transport, 1 / hz if hz else 0.0, 0.0
        self._publish = None
        if hz:
            self._array, self._publish = transport.advertise("/diagnostics", "diagnostic_msgs/DiagnosticArray")
            self._status, self._pair = (message_class(f"diagnostic_msgs/{name}") for name in ("DiagnosticStatus", "KeyValue"))

    def publish(self, node: InferenceNode, now: float) -> None:
        """Publish if it is time to."""
        if self._publish is None or 0 <= now - self._last < self._period:
            return
        self._last = now
        facts = node_facts(node, now)
        level, text = self._level(node)
        status = self._status(level=level, name="robopolicy", message=text, hardware_id="")
        status.values = [self._pair(key=key, value=value) for key, value in facts.items()]
        message: Any = self._array(status=[status])
        self._transport.set_header(message, "")
        self._publish(message)

    def _level(self, node: InferenceNode) -> tuple[Any, str]:
        if node.emergency:
            return self._status.ERROR, "emergency stop"
        if node.state != ACTIVE:
            return self._status.WARN, node.state
        reasons = ", ".join(node.last.reasons) if node.last is not None else "nothing yet"
        return (self._status.OK if node.last is not None and node.last.state == RUN else self._status.WARN), (
            f"{node.last.state if node.last is not None else 'active'}{': ' + reasons if reasons else ''}"
        )


def node_facts(node: InferenceNode, now: float) -> dict[str, str]:
    """What is worth knowing of a node, as text: the controller's facts and counters, streams, the recording."""
    facts: dict[str, str] = {"state": node.state}
    for name, value in node.controller.diagnostics().items():
        if isinstance(value, dict):
            facts.update({f"{name} {key}": f"{x:.3f}" if isinstance(x, float) else str(x) for key, x in sorted(value.items())})
        else:
            facts[name] = str(value)
    for name, stream in node.streams.items():
        facts[f"received {name} {stream.source.topic}"] = str(stream.num_received)
    if node.recorder is not None:
        facts["recording"] = str(node.recorder)
    return facts
