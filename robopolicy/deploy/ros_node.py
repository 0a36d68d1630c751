"""The node: sensor topics in, guarded commands out, a policy at the other end of a socket in between.

What it decides is controller.py's; here is what ROS adds. Part of the robot-side island: numpy, msgpack, pyzmq, and ROS behind
ros_transport.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from .client import RemotePolicy
    from .controller import Controller
    from .ros_config import ARRAY, TWIST, NodeConfig
    from .runtime import Command, RuntimeSettings
else:  # this folder itself is on the path
    from client import RemotePolicy
    from controller import Controller
    from ros_config import ARRAY, TWIST, NodeConfig
    from runtime import Command, RuntimeSettings

if TYPE_CHECKING:
    import threading

    import numpy as np

    from .ros_transport import Transport

log = logging.getLogger(__name__)


class InferenceNode:
    """Runs `policy` on a robot through `transport` as `config` says. With enabled=False it does all but publish.

    Raises:
        ValueError: the mapping does not give what the policy needs.
    """

    def __init__(self, transport: Transport, policy: RemotePolicy, config: NodeConfig, *, enabled: bool = False) -> None:
        self._sources = {
            f"{key}[{n}]": (key, source) for key, sources in config.observation.items() for n, source in enumerate(sources)
        }
        self.controller = Controller(
            policy,
            {name: key for name, (key, _) in self._sources.items()},
            limits=config.limits,
            settings=RuntimeSettings(max_age_s=config.max_age_s, lead_steps=config.lead_steps),
            task=config.task,
            ee_position=config.ee_position,
            enabled=enabled,
        )
        if config.command.type == TWIST and (len(config.limits.translation), len(config.limits.rotation)) != (3, 3):
            raise ValueError(f"{TWIST} needs 3 translation and 3 rotation entries; use {ARRAY} for other actions")
        self._transport, self._policy, self._config = transport, policy, config
        self._publish = self._advertise()

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set or ROS shuts down. The last command is a hold."""
        for name, (key, source) in self._sources.items():
            if key in self._policy.spec.observation:
                self._transport.subscribe(source.topic, source.type, partial(self._receive, name))
        if self._config.stop_topic:
            self._transport.subscribe(self._config.stop_topic, "std_msgs/Bool", self._stop, reliable=True)
        try:
            self._transport.spin(self.controller.control_hz, self._step, stop)
        finally:
            self.controller.stop("shutdown")
            self._step()
            self.controller.close()
            log.info("control steps: %s", self.controller.counters)

    def _receive(self, name: str, message: Any) -> None:
        key, source = self._sources[name]
        try:
            value = source.convert(message, self._policy.spec.observation[key].shape)
        except (ValueError, ImportError, OSError) as error:  # the stream goes stale, which holds the robot
            log.error("%s: %s", source.topic, error)
            return
        self.controller.receive(name, self._transport.stamp(message), value)

    def _stop(self, message: Any) -> None:
        self.controller.estop(message.data)

    def _step(self) -> Command:
        command = self.controller.step(self._transport.now())
        if command.publish:
            self._publish(command.action)
        return command

    def _advertise(self) -> Any:
        config, hz = self._config.command, self.controller.control_hz
        cls, publish = self._transport.advertise(config.topic, config.type)
        if config.type == ARRAY:
            return lambda action: publish(cls(data=[float(x) for x in action]))
        gripper_cls, publish_gripper = None, None
        if config.gripper_topic:
            gripper_cls, publish_gripper = self._transport.advertise(config.gripper_topic, "std_msgs/Float64")
        limits = self._config.limits

        def send(action: np.ndarray) -> None:
            message: Any = cls()
            self._transport.set_header(message, config.frame_id)
            for part, indices in ((message.twist.linear, limits.translation), (message.twist.angular, limits.rotation)):
                part.x, part.y, part.z = (float(v) * hz for v in action[list(indices)])
            publish(message)
            if gripper_cls is not None and publish_gripper is not None and limits.absolute:
                publish_gripper(gripper_cls(data=float(action[limits.absolute[0]])))

        return send
