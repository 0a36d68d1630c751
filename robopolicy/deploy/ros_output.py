"""What the node publishes: commands, the action behind each of them, what happens to an episode, what it is made for.

Part of the robot-side island: numpy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from .ros_commands import ARRAY, POSE, TRAJECTORY, PoseTarget, command
    from .ros_transport import message_class
    from .runtime import STOPPED
else:  # this folder itself is on the path
    from ros_commands import ARRAY, POSE, TRAJECTORY, PoseTarget, command
    from ros_transport import message_class
    from runtime import STOPPED

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from .ros_config import NodeConfig
    from .ros_transport import Transport
    from .runtime import Command

# Topics of the node itself.
ACTION, EPISODE, ABOUT = "~/action", "~/episode", "~/about"
NODE = "/robopolicy"


def recorded(topic: str) -> str:
    """The name of one of the node's topics in its bags, whatever the node is called."""
    return NODE + topic[1:] if topic.startswith("~") else topic


class CommandPublisher:
    """Publishes on behalf of a node, and hands `record(topic, type, message)` everything that it publishes.

    hz: rate of the commands. policy_hz: of the policy's steps, to which the limits refer.

    ~/action: Float64MultiArray, the action [A] of every control step after the guard, in the policy's units.
    ~/episode: String, "start", "stop", "reset". ~/about: String, JSON: the policy's name and spec, and the mapping.
    """

    def __init__(
        self,
        transport: Transport,
        config: NodeConfig,
        record: Callable[[str, str, Any], None],
        *,
        hz: float,
        policy_hz: float,
    ) -> None:
        self._transport, self._config, self._hz, self._record = transport, config, hz, record
        self._published: dict[str, tuple[str, Any, Callable[[Any], None]]] = {}
        text, out = "std_msgs/String", config.command
        for topic, kind, latched in ((ACTION, ARRAY, False), (EPISODE, text, False), (ABOUT, text, True)):
            self._published[topic] = (kind, *transport.advertise(topic, kind, latched=latched))
        for topic, kind in ((out.topic, out.type), (out.gripper_topic, "std_msgs/Float64")):
            if topic:
                self._published[topic] = (kind, *transport.advertise(topic, kind, reliability=out.reliability))
        self._target = PoseTarget(config.limits, policy_hz=policy_hz, reach_s=config.runtime.max_age_s)
        self._options: dict[str, Any] = {"joints": out.joints, "make_duration": transport.duration, "target": self._target}
        if out.type == TRAJECTORY:
            self._options["make_point"] = message_class("trajectory_msgs/JointTrajectoryPoint")

    def describe(self, text: str) -> None:
        """Say what the node is for."""
        self._send_text(ABOUT, text)

    def event(self, what: str) -> None:
        """Say what happens to the episode."""
        self._send_text(EPISODE, what)

    def forget(self) -> None:
        """A new episode: commanded poses go on from the measured one."""
        self._target.forget()

    def command(self, decided: Command, T_base_ee: np.ndarray | None) -> None:
        """Publish a control step: its action, and, unless this is a dry run, the command to the robot."""
        if decided.action is None:
            return
        out, limits = self._config.command, self._config.limits
        if decided.state != STOPPED:  # telling the robot to hold once more is no step of an episode
            self._send(ACTION, self._published[ACTION][1](data=[float(x) for x in decided.action]))
        if not decided.publish:
            self._target.forget()
            return
        if out.type == POSE and T_base_ee is None and not self._target.known:
            return
        make = self._published[out.topic][1]
        message, opening = command(out.type, decided.action, limits, self._hz, make=make, T_base_ee=T_base_ee, **self._options)
        if opening is not None and out.gripper_topic:
            self._send(out.gripper_topic, self._published[out.gripper_topic][1](data=opening))
        if out.type != ARRAY:
            self._transport.set_header(message, out.frame_id)
        self._send(out.topic, message)

    def _send_text(self, topic: str, text: str) -> None:
        self._send(topic, self._published[topic][1](data=text))

    def _send(self, topic: str, message: Any) -> None:
        kind, _, publish = self._published[topic]
        publish(message)
        self._record(recorded(topic), kind, message)
