"""The node: sensor topics in, guarded commands out, a policy at the other end of a socket in between.

What is decided is controller.py's; here is what ROS adds: topics, the life of a node, services, diagnostics, a recording.
Part of the robot-side island: numpy, msgpack, pyzmq, and ROS behind ros_transport.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:
    from .client import PolicyTimeout, RemotePolicy
    from .controller import Controller, find_entries
    from .ros_checks import STOP_TYPE, TASK, NotReadyError, mapping_problems, needs_tf, stream_problems, type_problems
    from .ros_config import OBSERVATION, TIMER, NodeConfig
    from .ros_diagnostics import Diagnostics
    from .ros_output import CommandPublisher
    from .ros_streams import Converter, Sample, joined, make_streams
    from .ros_transport import ACTIVATE, ACTIVE, CONFIGURE, DEACTIVATE, INACTIVE, UNCONFIGURED
    from .runtime import ESTOP, Command
else:  # this folder itself is on the path
    from client import PolicyTimeout, RemotePolicy
    from controller import Controller, find_entries
    from ros_checks import STOP_TYPE, TASK, NotReadyError, mapping_problems, needs_tf, stream_problems, type_problems
    from ros_config import OBSERVATION, TIMER, NodeConfig
    from ros_diagnostics import Diagnostics
    from ros_output import CommandPublisher
    from ros_streams import Converter, Sample, joined, make_streams
    from ros_transport import ACTIVATE, ACTIVE, CONFIGURE, DEACTIVATE, INACTIVE, UNCONFIGURED
    from runtime import ESTOP, Command

if TYPE_CHECKING:
    from .ros_recorder import Recorder
    from .ros_transport import Transport

log = logging.getLogger(__name__)

SAME_TIME_S = 1e-3  # observations of one moment, for step_on: observation


class InferenceNode:
    """Runs `policy` on a robot through `transport` as `config` says, once it was activated (ros_transport.Managed).

    enabled: publish commands; False does all else. recorder: takes down what comes in and goes out.

    Raises:
        NotReadyError: the mapping does not fit the policy, or names types that this ROS does not have; with all reasons.
    """

    def __init__(
        self,
        transport: Transport,
        policy: RemotePolicy,
        config: NodeConfig,
        *,
        enabled: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        spec = policy.spec
        problems = [*mapping_problems(config, spec), *type_problems(config)]
        if problems:
            raise NotReadyError("the mapping does not work:", problems)
        self._transport, self._policy, self._config = transport, policy, config
        self.enabled, self.recorder = enabled, recorder
        self._features = {key: feature for key, feature in spec.observation.items() if key != TASK}
        self._converter = Converter(config.base_frame)
        self._groups = make_streams(config.observation, self._features, self._converter)
        self.streams = {f"{key}[{n}]": stream for key, group in self._groups.items() for n, stream in enumerate(group)}
        self.controller = Controller(
            policy,
            {name: stream.key for name, stream in self.streams.items()},
            limits=config.limits,
            settings=config.runtime,
            task=config.task,
            ee_position=config.ee_position,
            joints=config.joints,
            enabled=enabled,
            threaded=config.step_on == TIMER,
        )
        self.controller.stop(INACTIVE)
        self._ee_key, entries = find_entries(spec, (*config.ee_position, *config.ee_rotation))
        self._ee_position_entries, self._ee_rotation_entries = entries[:3], entries[3:]
        self.state = UNCONFIGURED
        self.emergency, self._stop_pressed = False, False  # latched; the topic's last word
        self.last: Command | None = None
        self._lock = threading.RLock()
        self._moments: queue.Queue[tuple[float, dict[str, Sample]] | None] = queue.Queue()
        self._failure: Exception | None = None  # that ended _follow()
        self._stop_heard = False  # somebody published the stop topic
        rates = {"hz": self.controller.control_hz, "policy_hz": spec.control_hz}
        self._output = CommandPublisher(transport, config, self._record, **rates)
        self._diagnostics = Diagnostics(transport, config.diagnostics_hz)
        transport.manage(self)

    def run(self, stop: threading.Event, *, start: bool = False) -> None:
        """Until `stop` is set or ROS shuts down. The last command is a hold.

        start: activate as soon as everything is there, instead of waiting for ~/start.

        Raises:
            NotReadyError: after wait_s something is still missing. Whatever else ended the node.
        """
        self._subscribe()
        services = {"start": ACTIVATE, "stop": DEACTIVATE}
        for name, transition in services.items():
            self._transport.service(f"~/{name}", partial(self._answer, partial(self._transport.transition, transition)))
        self._transport.service("~/reset", partial(self._answer, self.reset))
        config, began = self._config, self._transport.now()

        def tick() -> None:
            nonlocal began
            now = self._transport.now()
            if began == 0.0 or now < began:  # a simulated clock that had not begun, or began anew
                began = now
            if self._failure is not None:
                stop.set()
            elif self.state == UNCONFIGURED:
                try:
                    self._transport.transition(CONFIGURE)
                    if start:
                        self._transport.transition(ACTIVATE)
                except ValueError as error:
                    if now - began > config.wait_s:
                        self._failure = error
                        stop.set()
            elif config.step_on == TIMER:
                self._step(now)
            self._diagnostics.publish(self, now)

        worker = threading.Thread(target=self._follow, name="moments", daemon=True)
        worker.start()
        try:
            self._transport.spin(self.controller.control_hz, tick, stop)
        finally:
            self.deactivate()
            self._moments.put(None)
            worker.join(timeout=2.0)
            self.controller.close()
        if self._failure is not None:
            raise self._failure

    def _subscribe(self) -> None:
        config, transport = self._config, self._transport
        topics = {stream.source.topic: stream.source for stream in self.streams.values()}
        for topic, source in topics.items():
            names = [name for name, stream in self.streams.items() if stream.source.topic == topic]
            transport.subscribe(topic, source.type, partial(self._receive, names), reliability=source.reliability)
            if source.camera_info:
                receive = partial(self._receive_camera_info, source.camera_info)
                transport.subscribe(source.camera_info, "sensor_msgs/CameraInfo", receive)
        if needs_tf(config):
            transport.subscribe("/tf", "tf2_msgs/TFMessage", partial(self._receive_tf, "/tf"), depth=100)
            transport.subscribe_latched("/tf_static", "tf2_msgs/TFMessage", partial(self._receive_tf, "/tf_static"))
        if config.stop_topic:
            transport.subscribe_latched(config.stop_topic, STOP_TYPE, self._receive_stop)

    # -- the life of a node

    def configure(self) -> None:
        """See Managed. Refused with everything that is missing."""
        published = self._transport.topics()
        problems = stream_problems(self._groups, self._features, published, self._config.stop_topic)
        if problems:
            raise NotReadyError("not ready:", problems)
        self.state = INACTIVE
        about = {"policy": self._policy.name, "spec": self._policy.spec.to_dict(), "control_hz": self.controller.control_hz}
        self._output.describe(json.dumps({**about, "mapping": self._config.to_dict()}))
        log.info("configured: inactive until the service ~/start is called")

    def activate(self) -> None:
        """See Managed. A new episode begins."""
        with self._lock:
            if self.state != INACTIVE:
                raise ValueError(f"cannot activate while {self.state}")
            if self._stop_lost():
                raise ValueError(f"{self._config.stop_topic} is published by nobody: the robot could not be stopped")
            self._refuse_emergency()
            self._begin_anew()
            resumed = self.controller.resume()
            self._refuse_emergency()  # pressed meanwhile, and perhaps released
            if not resumed:
                raise ValueError("the robot was not told to stand yet: call ~/stop first")
            self.state = ACTIVE
            self._output.event("start")
        log.info("active, %s", "commanding the robot" if self.enabled else "commanding nothing (not enabled)")

    def deactivate(self) -> None:
        """See Managed. The robot is told to hold once more, then nothing."""
        with self._lock:
            was_active, self.state = self.state == ACTIVE, UNCONFIGURED if self.state == UNCONFIGURED else INACTIVE
            self.controller.stop(INACTIVE)
            if was_active:
                self._send(self.controller.step(self._now()), self._ee_pose())
                self._output.event("stop")
                log.info("inactive; %s", self.controller.counters)

    def reset(self) -> None:
        """Forget the episode and a stop that is over; the node is inactive then.

        Raises:
            ValueError: the stop topic still says stop, or the policy does not answer.
        """
        self.emergency = False  # before the look at the topic: what is pressed from here on counts
        if self._stop_pressed:
            self.emergency = True
            raise ValueError(f"{self._config.stop_topic} still says stop: release it first")
        if self.state == ACTIVE:
            self._transport.transition(DEACTIVATE)
        with self._lock:
            self._begin_anew()
            self._output.event("reset")

    def _refuse_emergency(self) -> None:
        if self.emergency:
            self.controller.stop(ESTOP)
            raise ValueError(f"stopped by {self._config.stop_topic}: release it, then call ~/reset")

    def _stop_lost(self) -> bool:
        """Whether nobody publishes the stop topic any more."""
        if not self._config.stop_topic:
            return False
        there = self._transport.num_publishers(self._config.stop_topic) > 0
        self._stop_heard = self._stop_heard or there
        return self._stop_heard and not there

    def _begin_anew(self) -> None:
        self._see()
        self._output.forget()
        try:
            self.controller.reset()
        except PolicyTimeout as error:
            raise ValueError(str(error)) from error

    def _answer(self, action: Any) -> tuple[bool, str]:
        try:
            action()
        except ValueError as error:
            return False, str(error)
        return True, self.state

    # -- what comes in

    def _record(self, topic: str, type_name: str, message: Any) -> None:
        if self.recorder is not None:
            self.recorder.write(topic, type_name, message, self._transport.now())

    def _receive(self, names: list[str], message: Any) -> None:
        """A message of the topic that the streams `names` are made of."""
        source = self.streams[names[0]].source
        self._record(source.topic, source.type, message)
        stamp = self._transport.stamp(message)
        with self._lock:
            for name in names:
                sample = self.streams[name].receive(message, stamp)
                if self._config.step_on == TIMER:
                    self.controller.receive(name, stamp, sample.value)
            if self._config.step_on == OBSERVATION and self.state == ACTIVE:
                self._gather(stamp)

    def _receive_camera_info(self, topic: str, message: Any) -> None:
        self._converter.camera_infos[topic] = message
        self._record(topic, "sensor_msgs/CameraInfo", message)

    def _receive_tf(self, topic: str, message: Any) -> None:
        self._converter.transforms.add(message.transforms, static=topic == "/tf_static")
        self._record(topic, "tf2_msgs/TFMessage", message)

    def _receive_stop(self, message: Any) -> None:
        self._record(self._config.stop_topic, STOP_TYPE, message)
        self._stop_pressed = bool(message.data)
        self.emergency = self.emergency or self._stop_pressed
        self.controller.estop(self._stop_pressed)

    def _gather(self, stamp: float) -> None:
        """Once there is a complete set of samples of one moment, let _follow() act on it."""
        moments = [stream.moment for stream in self.streams.values()]
        stamps = [moment for moment in moments if moment is not None]
        if not stamps or max(stamps) - min(stamps) <= SAME_TIME_S:
            self._see()
            samples = {name: stream.latest for name, stream in self.streams.items() if stream.latest is not None}
            self._moments.put((max(stamps, default=stamp), samples))

    def _see(self) -> None:
        for stream in self.streams.values():
            stream.num_seen = stream.num_received

    # -- what goes out

    def _now(self) -> float:
        """Time as the controller is told it: where it acts on observations, it is theirs."""
        if self._config.step_on == TIMER:
            return self._transport.now()
        return max((stream.latest.stamp for stream in self.streams.values() if stream.latest is not None), default=0.0)

    def _step(self, now: float) -> None:
        with self._lock:
            if self.state != ACTIVE:
                return
            if self._stop_lost():
                self.controller.stop("stop_topic_lost", abrupt=False)
            self._send(self.controller.step(now), self._ee_pose())

    def _follow(self) -> None:
        """step_on: observation. One control step for every moment that _gather() saw, however long the policy takes. What
        ends it ends the node.
        """
        try:
            while (moment := self._moments.get()) is not None:
                now, samples = moment
                for name, sample in samples.items():
                    self.controller.receive(name, now, sample.value)
                self._step(now)
        except Exception as error:
            log.exception("the control loop ended")
            self.controller.stop("failed")
            self._failure = error

    def _send(self, command: Command, T_base_ee: np.ndarray | None) -> None:
        self.last = command
        self._output.command(command, T_base_ee)

    def _ee_pose(self) -> np.ndarray | None:
        """T_base_ee [4, 4] now, for commands that are poses."""
        group = self._groups.get(self._ee_key, [])
        samples = [stream.latest for stream in group if stream.latest is not None]
        if not self._ee_rotation_entries or len(samples) < len(group):
            return None
        try:
            state = joined(self._ee_key, samples, self._features[self._ee_key]).astype(float)
        except ValueError:
            return None
        T = np.eye(4)
        x, y = state[self._ee_rotation_entries].reshape(2, 3)
        x /= np.linalg.norm(x)
        y -= (x @ y) * x
        y /= np.linalg.norm(y)
        T[:3, :3], T[:3, 3] = np.stack([x, y, np.cross(x, y)], axis=1), state[self._ee_position_entries]
        return T
