"""The node: sensor topics in, guarded commands out, a policy at the other end of a socket in between.

Two threads besides ROS's own callbacks: the control timer, which always has an answer (the next step of a chunk, or hold),
and one that waits for the policy. Part of the robot-side island: numpy, msgpack, pyzmq, and ROS behind ros_transport.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:
    from .client import PolicyTimeout, RemotePolicy
    from .ros_checks import TASK, NotReadyError, find_entries, mapping_problems, needs_tf, stream_problems, type_problems
    from .ros_config import OBSERVATION, TIMER, NodeConfig
    from .ros_diagnostics import Diagnostics
    from .ros_output import CommandPublisher
    from .ros_streams import Converter, Sample, joined, make_streams
    from .ros_transport import ACTIVATE, ACTIVE, CONFIGURE, DEACTIVATE, INACTIVE, UNCONFIGURED
    from .runtime import Command, Runtime, Watchdog
else:  # this folder itself is on the path
    from client import PolicyTimeout, RemotePolicy
    from ros_checks import TASK, NotReadyError, find_entries, mapping_problems, needs_tf, stream_problems, type_problems
    from ros_config import OBSERVATION, TIMER, NodeConfig
    from ros_diagnostics import Diagnostics
    from ros_output import CommandPublisher
    from ros_streams import Converter, Sample, joined, make_streams
    from ros_transport import ACTIVATE, ACTIVE, CONFIGURE, DEACTIVATE, INACTIVE, UNCONFIGURED
    from runtime import Command, Runtime, Watchdog

if TYPE_CHECKING:
    from .ros_recorder import Recorder
    from .ros_transport import Transport

log = logging.getLogger(__name__)

SAME_TIME_S = 1e-3  # observations of one moment, for step_on: observation
Frame = dict[str, list[Sample]]


class InferenceNode:
    """Runs `policy` on a robot through `transport` as `config` says, once it was activated (Managed).

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
        problems = [*mapping_problems(config, policy.spec), *type_problems(config)]
        if problems:
            raise NotReadyError("the mapping does not work:", problems)
        spec = policy.spec
        self._transport, self._policy, self._config = transport, policy, config
        self.enabled, self.recorder, self.policy_name = enabled, recorder, policy.name
        self._features = {key: feature for key, feature in spec.observation.items() if key != TASK}
        self._converter = Converter(config.base_frame)
        self._streams = make_streams(config.observation, self._features, self._converter)
        self.streams = {f"{key}[{n}]": stream for key, group in self._streams.items() for n, stream in enumerate(group)}
        self._ee_key, entries = find_entries(spec, (*config.ee_position, *config.ee_rotation))
        self._ee_position_entries, self._ee_rotation_entries = entries[:3], entries[3:]
        self._frames: deque[Frame] = deque(maxlen=spec.obs_horizon)
        self._watchdog = Watchdog(self.streams, config.max_age_s)
        self.runtime = Runtime(
            limits=config.limits,
            execute_horizon=spec.execute_horizon,
            lead_steps=config.lead_steps,
            timeout_s=policy.timeout_ms / 1000,
        )
        self.runtime.stop(INACTIVE)
        self.state = UNCONFIGURED
        self.emergency, self._stop_pressed = False, False  # latched; the topic's last word
        self.last: Command | None = None
        self.counts: Counter[str] = Counter()  # control steps by state and by reason
        self.seconds: deque[float] = deque(maxlen=1000)  # newest latencies of the policy, conversion included
        self._lock = threading.RLock()
        self._requests: queue.Queue[tuple[int, list[Frame]] | None] = queue.Queue()
        self._output = CommandPublisher(transport, config, spec.control_hz, self._record)
        self._diagnostics = Diagnostics(transport, config.diagnostics_hz)
        transport.manage(self)

    def run(self, stop: threading.Event, *, start: bool = False) -> None:
        """Until `stop` is set or ROS shuts down. The last command is a hold.

        start: activate as soon as everything is there, instead of waiting for ~/start.

        Raises:
            NotReadyError: after wait_s something is still missing.
        """
        config, transport = self._config, self._transport
        for name, stream in self.streams.items():
            source = stream.source
            transport.subscribe(source.topic, source.type, partial(self._receive, name), reliability=source.reliability)
            if source.camera_info:
                transport.subscribe(
                    source.camera_info, "sensor_msgs/CameraInfo", partial(self._receive_camera_info, source.camera_info)
                )
        if needs_tf(config):
            transport.subscribe("/tf", "tf2_msgs/TFMessage", partial(self._receive_tf, "/tf"), depth=100)
            transport.subscribe_latched("/tf_static", "tf2_msgs/TFMessage", partial(self._receive_tf, "/tf_static"))
        if config.stop_topic:
            transport.subscribe_latched(config.stop_topic, "std_msgs/Bool", self._receive_stop)
        services = {"start": partial(transport.transition, ACTIVATE), "stop": partial(transport.transition, DEACTIVATE)}
        for name, action in {**services, "reset": self.reset}.items():
            transport.service(f"~/{name}", partial(self._answer, action))
        started, failure = transport.now(), None

        def tick() -> None:
            nonlocal failure, started
            now = transport.now()
            if started == 0.0 or now < started:  # a simulated clock that had not begun, or began anew
                started = now
            if self.state == UNCONFIGURED and failure is None:
                try:
                    transport.transition(CONFIGURE)
                    if start:
                        transport.transition(ACTIVATE)
                except ValueError as error:
                    if now - started > config.wait_s:
                        failure = error
                        stop.set()
            elif config.step_on == TIMER:
                self._step(now)
            self._diagnostics.publish(self, now)

        work = self._infer if config.step_on == TIMER else self._follow
        worker = threading.Thread(target=work, name="inference", daemon=True)
        worker.start()
        try:
            transport.spin(self._policy.spec.control_hz, tick, stop)
        finally:
            self.deactivate()
            self._requests.put(None)
            worker.join(timeout=2.0)
            log.info("control steps: %s", dict(self.counts))
        if failure is not None:
            raise failure

    # -- the life of a node

    def configure(self) -> None:
        """See Managed. Refused with everything that is missing."""
        published = self._transport.topics()
        problems = stream_problems(self._streams, self._features, published, self._config.stop_topic)
        if problems:
            raise NotReadyError("not ready:", problems)
        self.state = INACTIVE
        spec, config = self._policy.spec.to_dict(), self._config.to_dict()
        self._output.describe(json.dumps({"policy": self._policy.name, "spec": spec, "mapping": config}))
        log.info("configured: inactive until the service ~/start is called")

    def activate(self) -> None:
        """See Managed. A new episode begins."""
        with self._lock:
            if self.state != INACTIVE:
                raise ValueError(f"cannot activate while {self.state}")
            if self.emergency:
                raise ValueError(f"stopped by {self._config.stop_topic}: release it, then call ~/reset")
            self._begin_anew()
            self.runtime.resume()
            self.state = ACTIVE
        self._output.event("start")
        log.info("active, %s", "commanding the robot" if self.enabled else "commanding nothing (not enabled)")

    def deactivate(self) -> None:
        """See Managed. The robot is told to hold once more, then nothing."""
        with self._lock:
            was_active, self.state = self.state == ACTIVE, UNCONFIGURED if self.state == UNCONFIGURED else INACTIVE
            self.runtime.stop(INACTIVE)
            command = self.runtime.tick(self._transport.now())
        if was_active:
            self._send(command, None)
            self._output.event("stop")

    def reset(self) -> None:
        """Forget the episode and a stop that is over; the node is inactive then.

        Raises:
            ValueError: the stop topic still says stop, or the policy does not answer.
        """
        if self._stop_pressed:
            raise ValueError(f"{self._config.stop_topic} still says stop: release it first")
        if self.state == ACTIVE:
            self._transport.transition(DEACTIVATE)
        with self._lock:
            self.emergency = False
            self._begin_anew()
        self._output.event("reset")

    def _begin_anew(self) -> None:
        self._frames.clear()
        self._see()
        try:
            self._policy.reset()
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

    def _receive(self, name: str, message: Any) -> None:
        stream = self.streams[name]
        if name == next(n for n, other in self.streams.items() if other.source.topic == stream.source.topic):
            self._record(stream.source.topic, stream.source.type, message)  # once, of a topic that several sources use
        with self._lock:
            if not stream.receive(message, self._transport.stamp(message)):
                return
            self._watchdog.feed(name, stream.latest.stamp)  # type: ignore[union-attr]
            if self._config.step_on == OBSERVATION and self.state == ACTIVE:
                self._moment()

    def _receive_camera_info(self, topic: str, message: Any) -> None:
        self._converter.camera_infos[topic] = message
        self._record(topic, "sensor_msgs/CameraInfo", message)

    def _receive_tf(self, topic: str, message: Any) -> None:
        self._converter.transforms.add(message.transforms, static=topic == "/tf_static")
        self._record(topic, "tf2_msgs/TFMessage", message)

    def _receive_stop(self, message: Any) -> None:
        self._record(self._config.stop_topic, "std_msgs/Bool", message)
        self._stop_pressed = bool(message.data)
        if message.data:
            with self._lock:
                self.emergency = True
                self.runtime.stop("stop_topic")

    def _moment(self) -> None:
        """Act, once, on a complete set of samples of one moment."""
        moments = [stream.moment for stream in self.streams.values()]
        stamps = [stamp for stamp in moments if stamp is not None]
        if not stamps or max(stamps) - min(stamps) <= SAME_TIME_S:
            self._see()
            self._requests.put((0, [self._frame()]))

    def _see(self) -> None:
        for stream in self.streams.values():
            stream.num_seen = stream.num_received

    # -- what goes out

    def _frame(self) -> Frame:
        return {key: [s.latest for s in group if s.latest is not None] for key, group in self._streams.items()}

    def _step(self, now: float) -> None:
        with self._lock:
            stale = self._watchdog.stale(now)
            if stale or self.state != ACTIVE:
                self._frames.clear()  # a history with a hole in it is no history
            else:
                self._frames.append(self._frame())
                request = self.runtime.ask(now)
                if request is not None:
                    self._requests.put((request, list(self._frames)))
            if self.state != ACTIVE:
                return
            T_base_ee = self._ee_pose()
            command = self.runtime.tick(now, None if T_base_ee is None else T_base_ee[:3, 3], stale)
        self._send(command, T_base_ee)

    def _send(self, command: Command, T_base_ee: np.ndarray | None) -> None:
        self.last = command
        self.counts.update((command.state, *command.reasons))
        self._output.command(command, T_base_ee, publish=self.enabled)

    def _ee_pose(self) -> np.ndarray | None:
        """T_base_ee [4, 4] now; its rotation is only filled in where ee_rotation is given."""
        group = self._streams.get(self._ee_key)
        if not group or any(stream.latest is None for stream in group):
            return None
        try:
            state = joined(self._ee_key, [s.latest for s in group if s.latest is not None], self._features[self._ee_key])
        except ValueError:
            return None  # whoever asks the policy says what is wrong
        T = np.eye(4)
        T[:3, 3] = state[self._ee_position_entries]
        if self._ee_rotation_entries:
            x, y = state[self._ee_rotation_entries].astype(float).reshape(2, 3)
            x /= np.linalg.norm(x)
            y -= (x @ y) * x
            y /= np.linalg.norm(y)
            T[:3, :3] = np.stack([x, y, np.cross(x, y)], axis=1)
        return T

    def _observation(self, frames: list[Frame]) -> dict[str, np.ndarray]:
        """{key: [1, To, ...]}, and the task [1] if the policy wants it; before To frames were seen the first is repeated."""
        frames = [frames[0]] * (self._policy.spec.obs_horizon - len(frames)) + frames
        values = {key: [joined(key, frame[key], feature) for frame in frames] for key, feature in self._features.items()}
        observation = {key: np.stack(steps)[None] for key, steps in values.items()}
        if TASK in self._policy.spec.observation:
            observation[TASK] = np.array([self._config.task])
        return observation

    def _infer(self) -> None:
        while (item := self._requests.get()) is not None:
            self._ask(*item)

    def _ask(self, request: int, frames: list[Frame]) -> None:
        asked = time.monotonic()
        try:
            chunk = self._policy.sample(self._observation(frames))[0, 0]
        except (PolicyTimeout, ValueError) as error:
            log.error("%s", error)
            with self._lock:
                self.counts["policy_failed"] += 1
                self.runtime.failed(request)
            return
        with self._lock:
            self.seconds.append(time.monotonic() - asked)
            if not self.runtime.offer(chunk, request):
                self.counts["chunk_too_late"] += 1

    def _follow(self) -> None:
        """step_on: observation. One control step for every moment that _moment() saw, however long the policy takes."""
        while (item := self._requests.get()) is not None:
            frame = item[1][0]
            now = max(sample.stamp for samples in frame.values() for sample in samples)
            with self._lock:
                if self.state != ACTIVE:
                    continue
                self._frames.append(frame)
                frames, request = list(self._frames), self.runtime.ask(now)
            if request is not None:
                self._ask(request, frames)
            with self._lock:
                if self.state != ACTIVE:
                    continue
                T_base_ee = self._ee_pose()
                command = self.runtime.tick(now, None if T_base_ee is None else T_base_ee[:3, 3])
            self._send(command, T_base_ee)
