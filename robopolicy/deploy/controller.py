"""Sensor arrays in, commands out, a policy beside it: the whole of a node but for ROS.

    controller = Controller(policy, {"camera": "observation.images.front", ...}, limits=..., settings=...)
    controller.receive("camera", stamp, array)      # from any thread, whenever a message comes
    command = controller.step(now)                  # from one thread, at controller.control_hz
    if command.publish: send(command.action)

Part of the robot-side island: numpy, msgpack and pyzmq only.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:
    from .inference import Inference
    from .monitor import Gate
    from .runtime import Command, Runtime, RuntimeSettings
    from .synchronise import BadMessage, Snapshot, Synchronizer
else:  # this folder itself is on the path
    from inference import Inference
    from monitor import Gate
    from runtime import Command, Runtime, RuntimeSettings
    from synchronise import BadMessage, Snapshot, Synchronizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .limits import SafetyLimits
    from .synchronise import Value

log = logging.getLogger(__name__)

TASK = "task"  # robopolicy.spec.TASK
_SENT = 1000  # published translations that are remembered


def find_entries(spec: Any, names: tuple[str, ...]) -> tuple[str, list[int]]:
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


def limit_problems(spec: Any, limits: SafetyLimits, ee_position: tuple[str, ...], joints: tuple[str, ...]) -> list[str]:
    """Limits that do not fit the policy's actions, or what is measured, a sentence each: nothing would ever move."""
    problems = []
    if limits.action_dim != spec.action_dim:
        problems.append(f"the limits describe {limits.action_dim} action entries, the policy has {spec.action_dim}")
    if limits.workspace_low is not None and len(ee_position) != 3:
        problems.append(
            "a workspace needs ee_position, the names of the three observation entries with the end effector's position; given "
            f"{list(ee_position)}"
        )
    if limits.joint_low is not None and len(limits.joint_low) != len(joints):
        problems.append(
            f"joint_low and joint_high are of {len(limits.joint_low)} joints: `joints` must name as many measured ones; given "
            f"{list(joints)}"
        )
    if limits.max_absolute_speed is not None and not 0 < len(joints) <= len(limits.absolute):
        problems.append(
            f"max_absolute_speed needs `joints`, the names of the measured values at which the first of the "
            f"{len(limits.absolute)} absolute entries start; given {list(joints)}"
        )
    return problems


def missing_for(
    spec: Any, keys: Any, limits: SafetyLimits, task: str, ee_position: tuple[str, ...], joints: tuple[str, ...]
) -> list[str]:
    """Everything that a robot with the observation `keys` lacks to run a policy of `spec`, a sentence each."""
    problems = []
    for key, feature in spec.observation.items():
        if key == TASK:
            if not task or (feature.values and task not in feature.values):
                problems.append(f"task {task!r}: say which; the policy knows {list(feature.values)}")
        elif key not in keys:
            problems.append(f"{key} ({feature.dtype} {list(feature.shape)}): no topic provides it")
    unknown = sorted(set(keys) - set(spec.observation))
    if unknown and problems:
        problems.append(f"the policy does not know {', '.join(unknown)}")
    return problems + limit_problems(spec, limits, ee_position, joints)


class Controller:
    """Synchronises streams, asks the policy, schedules, limits.

    Args:
        policy: a RemotePolicy, or any Policy.
        streams: {stream name: observation key}; streams of one key are joined along the last axis, in this order.
        limits: what the robot may be told.
        settings: timing; None = the defaults.
        task: what to do, for a policy that can do several things.
        ee_position, joints: names of the observation entries that are the end effector's position (three, m, base frame) and
            the measured joints; () = unknown.
        enabled: False (the default) is a dry run: commands are made and not to be sent.
        threaded: False calls the policy within step(), for a replay without latency.

    Raises:
        ValueError: the streams do not give what the policy needs; the message lists all that is missing.
    """

    def __init__(
        self,
        policy: Any,
        streams: Mapping[str, str],
        *,
        limits: SafetyLimits,
        settings: RuntimeSettings | None = None,
        task: str = "",
        ee_position: tuple[str, ...] = (),
        joints: tuple[str, ...] = (),
        enabled: bool = False,
        threaded: bool = True,
    ) -> None:
        spec = policy.spec
        problems = missing_for(spec, set(streams.values()), limits, task, ee_position, joints)
        if problems:
            raise ValueError("this robot cannot run this policy:" + "".join(f"\n  {problem}" for problem in problems))
        self.policy, self.task, self.settings = policy, task, settings or RuntimeSettings()
        self._ee, self._joints = find_entries(spec, ee_position), find_entries(spec, joints)
        self._names = {key: [name for name, owner in streams.items() if owner == key] for key in spec.observation}
        self._synchronizer = Synchronizer(
            [name for names in self._names.values() for name in names],
            obs_horizon=spec.obs_horizon,
            step_s=1 / spec.control_hz,
            max_age_s=self.settings.max_age_s,
            tolerance_s=self.settings.tolerance_s,
        )
        gate = Gate(getattr(policy, "band", {}), getattr(policy, "patience", 1), self.settings.slow_speed)
        self.runtime = Runtime(
            limits=limits,
            execute_horizon=spec.execute_horizon,
            policy_hz=spec.control_hz,
            settings=self.settings,
            gate=gate,
            enabled=enabled,
        )
        self._inference = Inference(policy, threaded=threaded)
        self._lock = threading.Lock()
        self._last_s = -np.inf
        self._sent: deque[tuple[float, np.ndarray]] = deque(maxlen=_SENT)  # time and translation of published commands
        self._complaints: Counter[tuple[str, str]] = Counter()  # by stream and reason
        self._rng: np.random.Generator | None = None
        self._ages: dict[str, float] = {}

    @property
    def control_hz(self) -> float:
        """Rate (Hz) at which step() is to be called."""
        return self.runtime.control_hz

    @property
    def counters(self) -> dict[str, int]:
        """Control steps by state and by reason, and events."""
        with self._lock:
            return dict(self.runtime.counters)

    def receive(self, stream: str, stamp: float, value: Value) -> str:
        """A message of `stream`, measured at `stamp` (s): an array, or a function that makes it when it is needed.

        Returns "" or why it was refused, which is counted.
        """
        with self._lock:
            refused = self._synchronizer.feed(stream, stamp, value)
            if refused:
                self.runtime.counters[f"refused:{stream}:{refused}"] += 1
            return refused

    def step(self, now: float) -> Command:
        """The command of the control step at `now` (s)."""
        with self._lock:
            self._take_answers(now)
            if now < self._last_s:
                self._synchronizer.forget()
                self._sent.clear()
            for stream in self._synchronizer.forget_future(now):
                self.runtime.counters[f"from_the_future:{stream}"] += 1
            self._last_s = now
            self._ages = self._synchronizer.watchdog.ages(now)
            snapshot, blocked = self._synchronizer.observe(now)
            ee_position = joints = None
            if snapshot is not None:
                try:
                    joints, ee_position = self._measured(*self._joints)[0], self._ee_position()
                    self._ask(now, snapshot)
                except BadMessage as error:
                    self._log(error)
                    self._synchronizer.drop(error.stream)
                    blocked = (f"bad:{error.stream}",)
            command = self.runtime.tick(now, ee_position, blocked, joints)
            if command.publish and command.action is not None:
                self._sent.append((now, command.action[list(self.runtime.limits.translation)]))
            return command

    def stop(self, reason: str, *, abrupt: bool = True) -> None:
        """Stop, latched: at a standstill with the next command, or braking within the limits."""
        with self._lock:
            self.runtime.stop(reason, abrupt=abrupt)

    def estop(self, active: bool) -> None:
        """The emergency stop's state; active stops, latched."""
        with self._lock:
            self.runtime.estop(active)

    def resume(self) -> bool:
        """Leave STOPPED. False while the emergency stop is active, and until step() has told the robot to stand."""
        with self._lock:
            return self.runtime.resume()

    def enable(self, enabled: bool) -> None:
        """Whether commands are to be sent; False = a dry run. Enabled after one, it begins anew: from a standstill."""
        with self._lock:
            self.runtime.enable(enabled)

    def reset(self, seed: int | None = None) -> None:
        """A new episode: old frames, plans and scores are dropped, and a robot that moves brakes first. The policy's own
        reset() is called too. `seed` makes its samples repeatable, with the seeds that policies.wrappers.ChunkExecutor draws.
        """
        self.policy.reset()
        with self._lock:
            self._synchronizer.forget()
            self.runtime.reset()
            self._rng = None if seed is None else np.random.default_rng(seed)

    def close(self) -> None:
        """Stop, and end the inference thread."""
        self.stop("shutdown")
        self._inference.close()

    def diagnostics(self) -> dict[str, Any]:
        """Plain values for a diagnostics topic: state, ages (s) of the streams at the last step, monitor, counters."""
        with self._lock:
            return {
                "policy": getattr(self.policy, "name", ""),
                "stopped": self.runtime.stopped,
                "enabled": self.runtime.enabled,
                "ages_s": dict(self._ages),
                "monitor": self.runtime.gate.level,
                "lead_steps": self.runtime.lead_steps,
                "counters": dict(self.runtime.counters),
            }

    def _take_answers(self, now: float) -> None:
        for answer in self._inference.answers():
            if answer.replaced:
                self.runtime.stop("policy_replaced", abrupt=False)
            if answer.chunks is None:
                self.runtime.failed(answer.request)
            else:
                self.runtime.offer(answer.chunks, answer.request, now, answer.score)

    def _ask(self, now: float, snapshot: Snapshot) -> None:
        request = self.runtime.ask(now, snapshot.stamp)
        if request is None:
            return
        try:
            observation = {key: self._history(snapshot, key)[None] for key in self.policy.spec.observation if key != TASK}
        except BadMessage:
            self.runtime.failed(request)
            raise
        if TASK in self.policy.spec.observation:
            observation[TASK] = np.array([self.task])
        seed = None if self._rng is None else int(self._rng.integers(2**31))
        self._inference.submit(request, observation, self.settings.num_candidates, seed)
        self._take_answers(now)

    def _log(self, error: BadMessage) -> None:
        """Say each reason once, then every thousandth time: a stream may be bad at every step."""
        kind = error.stream, re.sub(r"[0-9.]+", "", error.why)  # without times and counts
        self._complaints[kind] += 1
        if self._complaints[kind] % 1000 == 1:
            log.error("%s (%d so far)", error, self._complaints[kind])

    def _measured(self, key: str, index: list[int]) -> tuple[np.ndarray | None, float]:
        """Entries `index` of the newest messages of observation `key`, and since when (s) the robot may have moved; None
        without a key.
        """
        if not key:
            return None, -np.inf
        frames = [self._synchronizer.newest(name) for name in self._names[key]]
        return self._joined(key, [frame.array() for frame in frames], ())[index], min(frame.stamp for frame in frames)

    def _ee_position(self) -> np.ndarray | None:
        """Where the end effector is once what it was told has happened [3]: as measured last, and moved since."""
        position, stamp = self._measured(*self._ee)
        if position is None or len(self.runtime.limits.translation) != len(position):
            return position
        since = stamp - self.settings.response_s
        return position.astype(np.float64) + sum(motion for sent, motion in self._sent if sent >= since)

    def _history(self, snapshot: Snapshot, key: str) -> np.ndarray:
        """Observation `key` [To, ...]."""
        return self._joined(key, [snapshot.history(name) for name in self._names[key]], (self.policy.spec.obs_horizon,))

    def _joined(self, key: str, parts: list[np.ndarray], leading: tuple[int, ...]) -> np.ndarray:
        feature = self.policy.spec.observation[key]
        ends = {part.shape[:-1] for part in parts}
        joinable = len(ends) == 1 and all(part.ndim for part in parts)
        value = np.concatenate(parts, axis=-1) if joinable else parts[0]
        if value.shape != (*leading, *feature.shape):
            shapes = ", ".join(str(list(part.shape)) for part in parts)
            raise BadMessage(self._names[key][0], f"{key} is {shapes}, the policy needs {[*leading, *feature.shape]}")
        return value.astype(feature.dtype, copy=False)
