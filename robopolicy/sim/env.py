"""The gymnasium environment: a robot, a task and cameras in a randomised world, on either engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np

from robopolicy import spec
from robopolicy.sim import robot, world
from robopolicy.sim.camera import noisy_depth, point_cloud
from robopolicy.sim.distributions import Distribution
from robopolicy.sim.engine import Engine, whole_steps
from robopolicy.sim.experts import LiftExpert
from robopolicy.sim.photometry import noisy_image
from robopolicy.sim.randomize import World, draw, nominal, parse, stream
from robopolicy.sim.robot import ACTION_HIGH, ACTION_LOW, ACTION_NAMES, STATE_NAMES, ArmController
from robopolicy.sim.scene import Frame
from robopolicy.sim.tasks import TASKS

# Sensors have random streams of their own, so that what one of them measures does not depend on which others there are.
SENSORS = ("state", "points", *(f"{kind}.{name}" for name in world.CAMERAS for kind in ("images", "depth")))
PUSH_PROBABILITY = 0.04  # of a push starting at a control step
PUSH_DECAY = 0.7  # of a push from one control step to the next


@dataclass(frozen=True)
class _Token:
    engine: Any
    controller: ArmController
    last_grip: float
    disturbance: np.ndarray
    generators: tuple[Any, ...]


def make_engine(name: str) -> Engine:
    """The physics engine "bullet" or "mujoco"; each is imported when it is first asked for."""
    if name == "bullet":
        from robopolicy.sim.bullet import BulletEngine

        return BulletEngine()
    if name == "mujoco":
        from robopolicy.sim.twin import MujocoEngine

        return MujocoEngine()
    raise ValueError(f"engine={name!r}; {spec.did_you_mean(name, ('bullet', 'mujoco'))}")


class RobotEnv(gymnasium.Env):
    """A Franka Panda at a table, 20 Hz by default.

    Action float32 [7], clipped to its bounds:
        | 0-2 | dx dy dz | end-effector translation, m, base frame | -0.04 .. 0.04 |
        | 3-5 | rx ry rz | end-effector rotation vector, rad, base frame | -0.3 .. 0.3 |
        | 6 | gripper | opening command, 0 closed .. 1 open (0.08 m) | 0 .. 1 |

    Observation: a dict with the chosen keys (spec.py):
        observation.state float32 [17]: joints (rad), gripper opening (m), end-effector position (m) and 6-D rotation.
        observation.images.<camera> uint8 [S, S, 3]; observation.depth.<camera> float32 [S, S] (m, 0 = invalid).
        observation.points float32 [num_points, 3]: partial point cloud of the front camera (m, base frame).
        observation.environment_state float32: privileged, the task's environment_names.

    Reward: "sparse" 1 at success else 0; "dense" the task's progress. Terminates at success; the time limit is gymnasium's
    (make(..., max_episode_steps=N); each task registers its own). reset() returns the drawn world in
    info["randomization"] and the seed that replays it.

    Args:
        task: name of a task (tasks.py). engine: "bullet" or "mujoco".
        observation: subset of state, images.<camera>, depth.<camera>, points, environment_state; cameras front, wrist.
        randomization: preset name or mapping (randomize.parse). nominal: {parameter: value} overrides of the nominal.

    Raises:
        ValueError: unknown task, engine, observation, reward, preset or parameter; the message names what exists.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        task: str = "lift",
        engine: str = "bullet",
        observation: tuple[str, ...] | None = None,
        image_size: int = 84,
        num_points: int = 128,
        randomization: str | Mapping[str, Any] = "none",
        control_hz: float = 20.0,
        reward: str = "sparse",
        nominal: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"task={task!r}; {spec.did_you_mean(task, TASKS)}")
        if reward not in ("sparse", "dense"):
            raise ValueError(f"reward={reward!r}; {spec.did_you_mean(reward, ('sparse', 'dense'))}")
        self.task = TASKS[task]()
        self.control_hz, self.image_size, self.num_points = float(control_hz), int(image_size), int(num_points)
        self.reward_kind, self.render_mode = reward, render_mode
        self._selected = tuple(observation or self.task.observation)
        self._nominal, self._distributions = self._randomization(randomization, nominal or {}, engine)
        self.features = self._features()
        self.observation_space = gymnasium.spaces.Dict({key: _space(f) for key, f in self.features.items()})
        self.action_space = gymnasium.spaces.Box(ACTION_LOW, ACTION_HIGH, dtype=np.float32)
        self.action_spec = spec.FeatureSpec((len(ACTION_NAMES),), "float32", "m, rad, 0..1", "base", ACTION_NAMES)
        self.engine = make_engine(engine)
        whole_steps(self.period, self.engine.time_step)

    def _randomization(
        self, randomization: str | Mapping[str, Any], overrides: Mapping[str, Any], engine: str
    ) -> tuple[World, dict[str, Distribution]]:
        parameters = {**world.PARAMETERS, **self.task.nominal}
        twin = {name: value for name, value in world.TWIN.items() if engine == "mujoco" and name in parameters}
        around = nominal(parameters, twin, overrides)
        others = {name for task in TASKS.values() for name in task.nominal}
        initial = parse(self.task.initial, parameters, around)
        return around, {**initial, **parse(randomization, parameters, around, others)}

    def _features(self) -> spec.Features:
        size = self.image_size
        known = {
            "state": (spec.STATE, spec.FeatureSpec((len(STATE_NAMES),), "float32", "rad, m", "base", STATE_NAMES)),
            "points": (spec.POINTS, spec.FeatureSpec((self.num_points, 3), "float32", "m", "base", ("x", "y", "z"))),
            "environment_state": (
                spec.ENVIRONMENT_STATE,
                spec.FeatureSpec((len(self.task.environment_names),), "float32", "m, m/s", "base", self.task.environment_names),
            ),
        }
        for name in world.CAMERAS:
            known[f"images.{name}"] = (spec.image_key(name), spec.FeatureSpec((size, size, 3), "uint8", "", name))
            known[f"depth.{name}"] = (spec.depth_key(name), spec.FeatureSpec((size, size), "float32", "m", name))
        for short in self._selected:
            if short not in known:
                raise ValueError(f"observation has {short!r}; {spec.did_you_mean(short, known)}")
        return dict(known[short] for short in self._selected)

    @property
    def T_base_ee(self) -> np.ndarray:
        """Measured end-effector pose [4, 4]."""
        return robot.forward(self.engine.joints()[0])

    @property
    def gripper_opening(self) -> float:
        """Measured distance between the fingers (m)."""
        return self.engine.joints()[1]

    def expert(self) -> LiftExpert:
        """The scripted expert of the task."""
        return LiftExpert()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Draw a world from the seed (or the next one) and start an episode in it."""
        super().reset(seed=seed)
        self.episode_seed = int(seed if seed is not None else self.np_random.integers(2**31))
        self.world = draw(self._distributions, self._nominal, self.episode_seed)
        self.engine.build(world.scene(self.world, self.task.bodies(self.world), self.episode_seed))
        self.controller = ArmController(period=self.period)
        self.controller.reset(self.engine.joints()[0])
        self.last_grip, self._disturbance = 1.0, np.zeros(3)
        self._sensor_rngs = {name: stream(self.episode_seed, f"sensor.{name}") for name in SENSORS}
        self._disturbance_rng = stream(self.episode_seed, "disturbance")
        self.engine.advance(self.period)
        return self.observe(), {**self._info(), "seed": self.episode_seed, "randomization": dict(self.world)}

    @cached_property
    def period(self) -> float:
        """Seconds of one control step."""
        return 1.0 / self.control_hz

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """advance(), then observe()."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """step() without the observation, for steps at which nobody looks: rendering is most of a step's cost."""
        action = np.asarray(action, np.float64)
        if action.shape != ACTION_LOW.shape or not np.isfinite(action).all():
            raise ValueError(f"action {action.tolist()}: expected {len(ACTION_NAMES)} finite numbers {ACTION_NAMES}")
        self.last_grip = float(action[6])
        q, _ = self.engine.joints()
        self.engine.command(*self.controller.apply(self._disturbed(action), q, self.world.scalar("robot.gain")))
        self.engine.advance(self.period)
        info = self._info()
        reward = info["progress"] if self.reward_kind == "dense" else float(info["success"])
        return reward, info["success"], False, info

    def _generators(self) -> list[np.random.Generator]:
        return [*self._sensor_rngs.values(), self._disturbance_rng]

    def _disturbed(self, action: np.ndarray) -> np.ndarray:
        std = self.world.scalar("robot.disturbance")
        if std == 0:
            return action
        started = self._disturbance_rng.random() < PUSH_PROBABILITY
        push = self._disturbance_rng.normal(0.0, std, 3)
        self._disturbance = PUSH_DECAY * self._disturbance + started * push
        return action + np.concatenate([self._disturbance, np.zeros(4)])

    def _info(self) -> dict[str, Any]:
        outcome = self.task.evaluate(self.engine, self.T_base_ee, self.world)
        return {"success": outcome.success, "progress": float(outcome.progress), "task": self.task.name}

    def observe(self) -> dict[str, np.ndarray]:
        """The observation of the present state; draws fresh sensor noise."""
        out: dict[str, np.ndarray] = {}
        frames: dict[str, tuple[Frame, np.ndarray]] = {}
        for short, key in zip(self._selected, self.features, strict=True):
            kind, _, name = short.partition(".")
            if kind == "state":
                q, opening = self.engine.joints()
                noise = self._sensor_rngs["state"].normal(0.0, 1.0, len(q)) * self.world.scalar("sensor.state_noise")
                out[key] = robot.proprioception(q + noise, opening)
            elif kind == "environment_state":
                out[key] = self.task.environment_state(self.engine, self.world)
            else:
                name = name or "front"
                camera = world.camera(name, self.world, self.T_base_ee, self.image_size)
                if name not in frames:
                    frame = self.engine.render(camera, rgb=f"images.{name}" in self._selected)
                    frames[name] = frame, noisy_depth(frame.depth, self.world, self._sensor_rngs[f"depth.{name}"])
                frame, depth = frames[name]
                if kind == "images":
                    out[key] = noisy_image(frame.rgb, self.world, self._sensor_rngs[short])
                elif kind == "depth":
                    out[key] = depth
                else:
                    out[key] = point_cloud(depth, frame, camera, self.num_points, self._sensor_rngs["points"])
        return out

    def render(self) -> np.ndarray | None:
        """uint8 [256, 256, 3] of the front camera, without sensor noise, when render_mode is "rgb_array"."""
        return self.picture(256) if self.render_mode == "rgb_array" else None

    def picture(self, size: int, camera: str = "front") -> np.ndarray:
        """uint8 [size, size, 3] of `camera`, without sensor noise."""
        return self.engine.render(world.camera(camera, self.world, self.T_base_ee, size)).rgb

    def save_state(self) -> _Token:
        """A token for restore_state(), valid until the next reset()."""
        generators = tuple(generator.bit_generator.state for generator in self._generators())
        return _Token(
            self.engine.save_state(),
            self.controller.copy(),
            self.last_grip,
            self._disturbance.copy(),
            generators,
        )

    def restore_state(self, token: _Token) -> None:
        """Return to a saved state: the same actions then give the same trajectory, bit for bit."""
        self.engine.restore_state(token.engine)
        self.controller = token.controller.copy()
        self.last_grip, self._disturbance = token.last_grip, token.disturbance.copy()
        for generator, state in zip(self._generators(), token.generators, strict=True):
            generator.bit_generator.state = state

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()


def _space(feature: spec.FeatureSpec) -> gymnasium.spaces.Box:
    low, high = (0, 255) if feature.dtype == "uint8" else (-np.inf, np.inf)
    if feature.unit == "m" and len(feature.shape) == 2 and not feature.names:
        low = 0.0
    return gymnasium.spaces.Box(low, high, feature.shape, np.dtype(feature.dtype).type)
