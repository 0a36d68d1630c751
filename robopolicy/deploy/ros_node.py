"""The node: sensor topics in, guarded commands out, a policy at the other end of a socket in between.

Two threads besides ROS's own callbacks: the control timer, which always has an answer (the next step of a chunk, or hold),
and one that waits for the policy. Part of the robot-side island: numpy, msgpack, pyzmq, and ROS behind ros_transport.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter, deque
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:
    from .client import PolicyTimeout, RemotePolicy, RemoteSpec
    from .ros_config import ARRAY, TWIST, NodeConfig
    from .runtime import Command, Runtime, Watchdog
else:  # this folder itself is on the path
    from client import PolicyTimeout, RemotePolicy, RemoteSpec
    from ros_config import ARRAY, TWIST, NodeConfig
    from runtime import Command, Runtime, Watchdog

if TYPE_CHECKING:
    from .ros_transport import Transport

log = logging.getLogger(__name__)

TASK = "task"  # robopolicy.spec.TASK


def find_entries(spec: RemoteSpec, names: tuple[str, ...]) -> tuple[str, list[int]]:
    """The observation key that has all the entries `names`, and where they are in it; ("", []) without names.

    Raises:
        ValueError: no key has them; the message lists the names that there are.
    """
    if not names:
        return "", []
    for key, feature in spec.observation.items():
        if set(names) <= set(feature.names):
            return key, [feature.names.index(name) for name in names]
    known = {key: feature.names for key, feature in spec.observation.items() if feature.names}
    raise ValueError(f"no observation has the entries {list(names)}; named entries: {known}")


class InferenceNode:
    """Runs `policy` on a robot through `transport` as `config` says. With enabled=False it does all but publish.

    Raises:
        ValueError: the mapping does not give what the policy needs.
    """

    def __init__(self, transport: Transport, policy: RemotePolicy, config: NodeConfig, *, enabled: bool = False) -> None:
        spec = policy.spec
        keys = [key for key in spec.observation if key != TASK]
        missing = sorted(set(keys) - set(config.observation))
        if missing:
            raise ValueError(f"the mapping lacks {missing}; the policy needs {sorted(spec.observation)}")
        if TASK in spec.observation and not config.task:
            raise ValueError(f"the mapping lacks {TASK!r}: say which; the policy knows {list(spec.observation[TASK].values)}")
        if config.limits.action_dim != spec.action_dim:
            raise ValueError(f"the limits describe {config.limits.action_dim} action entries, the policy has {spec.action_dim}")
        if config.command.type == TWIST and (len(config.limits.translation), len(config.limits.rotation)) != (3, 3):
            raise ValueError(f"{TWIST} needs 3 translation and 3 rotation entries; use {ARRAY} for other actions")
        self._transport, self._policy, self._config, self._enabled = transport, policy, config, enabled
        self._ee_key, self._ee_entries = find_entries(spec, config.ee_position)
        self._sources = {f"{key}[{n}]": (key, s) for key in keys for n, s in enumerate(config.observation[key])}
        self._latest: dict[str, np.ndarray] = {}
        self._frames: dict[str, deque[np.ndarray]] = {key: deque(maxlen=spec.obs_horizon) for key in keys}
        self._watchdog = Watchdog(self._sources, config.max_age_s)
        self.runtime = Runtime(
            limits=config.limits,
            execute_horizon=spec.execute_horizon,
            lead_steps=config.lead_steps,
            timeout_s=policy.timeout_ms / 1000,
        )
        self.counts: Counter[str] = Counter()  # control steps by state and by reason
        self._lock = threading.Lock()
        self._requests: queue.Queue[tuple[int, dict[str, np.ndarray]] | None] = queue.Queue()
        self._publish = self._advertise()

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set or ROS shuts down. The last command is a hold."""
        for name, (_, source) in self._sources.items():
            self._transport.subscribe(source.topic, source.type, partial(self._receive, name))
        if self._config.stop_topic:
            self._transport.subscribe(self._config.stop_topic, "std_msgs/Bool", self._stop, reliable=True)
        worker = threading.Thread(target=self._infer, name="inference", daemon=True)
        worker.start()
        try:
            self._transport.spin(self._policy.spec.control_hz, self._step, stop)
        finally:
            with self._lock:
                self.runtime.stop("shutdown")
            self._step()
            self._requests.put(None)
            worker.join(timeout=2.0)
            log.info("control steps: %s", dict(self.counts))

    def _receive(self, name: str, message: Any) -> None:
        key, source = self._sources[name]
        try:
            value = source.convert(message, self._policy.spec.observation[key].shape)
        except (ValueError, ImportError, OSError) as error:  # the stream goes stale, which holds the robot
            log.error("%s: %s", source.topic, error)
            return
        with self._lock:
            self._latest[name] = value
            self._watchdog.feed(name, self._transport.stamp(message))

    def _stop(self, message: Any) -> None:
        if message.data:
            with self._lock:
                self.runtime.stop("stop_topic")

    def _step(self) -> Command:
        now = self._transport.now()
        with self._lock:
            stale = self._watchdog.stale(now)
            if stale:
                for frames in self._frames.values():
                    frames.clear()  # a history with a hole in it is no history
            else:
                self._record_frame()
                request = self.runtime.ask(now)
                if request is not None:
                    self._requests.put((request, self._observation()))
            command = self.runtime.tick(now, self._ee_position(), stale)
            self.counts.update((command.state, *command.reasons))
        if self._enabled and command.action is not None:
            self._publish(command.action)
        return command

    def _record_frame(self) -> None:
        for key, frames in self._frames.items():
            values = [self._latest[name] for name, (owner, _) in self._sources.items() if owner == key]
            value = np.concatenate(values, axis=-1).astype(self._policy.spec.observation[key].dtype, copy=False)
            frames.append(value)

    def _observation(self) -> dict[str, np.ndarray]:
        """{key: [1, To, ...]}, and the task [1] if the policy wants it; before To frames were seen the first is repeated."""
        missing = self._policy.spec.obs_horizon
        observation = {
            key: np.stack([frames[0]] * (missing - len(frames)) + list(frames))[None] for key, frames in self._frames.items()
        }
        if TASK in self._policy.spec.observation:
            observation[TASK] = np.array([self._config.task])
        return observation

    def _ee_position(self) -> np.ndarray | None:
        frames = self._frames.get(self._ee_key)
        return frames[-1][self._ee_entries] if frames else None

    def _infer(self) -> None:
        while (item := self._requests.get()) is not None:
            request, observation = item
            try:
                chunk = self._policy.sample(observation)[0, 0]
            except (PolicyTimeout, ValueError) as error:
                log.error("%s", error)
                with self._lock:
                    self.counts["policy_failed"] += 1
                    self.runtime.failed(request)
                continue
            with self._lock:
                if not self.runtime.offer(chunk, request):
                    self.counts["chunk_too_late"] += 1

    def _advertise(self) -> Any:
        config, hz = self._config.command, self._policy.spec.control_hz
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
