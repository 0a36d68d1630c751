"""The gymnasium environment: a robot, a task and sensors in a randomised world, on either engine."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator

from robopolicy import spec
from robopolicy.sim import robot, world
from robopolicy.sim.description import panda_urdf
from robopolicy.sim.distributions import Distribution
from robopolicy.sim.engine import Engine, check_renderer, whole_steps
from robopolicy.sim.experts import Expert
from robopolicy.sim.randomize import World, draw, parse, stream
from robopolicy.sim.randomize import nominal as nominal_world
from robopolicy.sim.robot import ACTION_HIGH, ACTION_LOW, ACTION_NAMES, Panda
from robopolicy.sim.sensors import Sensors
from robopolicy.sim.tasks import Task, make_task, parameter_names
from robopolicy.sim.unsafe import HELD, Limits

PUSH_PROBABILITY = 0.04  # of a push starting at a control step
PUSH_DECAY = 0.7  # of a push from one control step to the next
MAX_ATTEMPTS = 200  # to draw an initial state that the task accepts
Command = tuple[np.ndarray, float]


@dataclass(frozen=True)
class _Token:
    engine: Any
    robot: Panda
    clock: int
    due: float
    pending: tuple[tuple[int, Command], ...]
    disturbance: np.ndarray
    generators: tuple[Any, ...]
    sensors: tuple[Any, ...]


def make_engine(name: str, antialiasing: bool = False, renderer: str = "cpu") -> Engine:
    """The physics engine "bullet" or "mujoco"; each is imported when it is first asked for.

    antialiasing, renderer: of the bullet engine's pictures; the mujoco engine's are always antialiased, by its own ray caster.
    """
    check_renderer(name, renderer)
    if name == "bullet":
        from robopolicy.sim.bullet import BulletEngine

        return BulletEngine(antialiasing=antialiasing, renderer=renderer)
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
        observation.segmentation.<camera> uint8 [S, S]: 0 background, 1 table, 2 robot, 3 + i the i-th body of the scene.
        observation.points float32 [num_points, 3]: partial point cloud of the front camera (m, base frame).
        observation.environment_state float32: privileged, the task's environment_names; never late, without noise.

    Reward: "sparse" 1 at success else 0; "dense" the task's progress. Terminates at success; the time limit is gymnasium's
    (make(..., max_episode_steps=N); conf/task gives each task its own). reset() returns the drawn world in
    info["randomization"] and the seed that replays it. reset(options={"levels": {parameter: 0..1}}) shrinks what is drawn
    towards the nominal, options={"level": 0..1} all of it: for curricula (sim/adaptive.py).

    Args:
        task: name of a task (conf/task), or a Task. engine: "bullet" or "mujoco".
        observation: subset of state, images.<camera>, depth.<camera>, segmentation.<camera>, points, environment_state;
            cameras front, wrist. None = the task's own choice, which is never privileged.
        randomization: preset name (conf/randomization) or mapping (randomize.parse).
        nominal: {parameter: value} overrides of the nominal world.
        antialiasing: 2 x 2 samples a pixel in images (the twin always antialiases).
        renderer: "cpu", or "gl" for OpenGL through EGL, on a GPU where there is one (pip install robopolicy[gl]; not in the
            twin). Their pictures agree but not to the bit; "gl" promises equal bits only with the same driver and device.

    Raises:
        ValueError: unknown task, engine, renderer, observation, reward, preset or parameter; the message names what exists.
        ImportError, RuntimeError: renderer="gl" without moderngl or OpenGL; the message says what to install.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        task: str | Task = "lift",
        engine: str = "bullet",
        observation: tuple[str, ...] | None = None,
        image_size: int = 84,
        num_points: int = 128,
        randomization: str | Mapping[str, Any] = "none",
        control_hz: float = 20.0,
        reward: str = "sparse",
        nominal: Mapping[str, Any] | None = None,
        antialiasing: bool = False,
        renderer: str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        self.task = make_task(task) if isinstance(task, str) else task
        if reward not in ("sparse", "dense"):
            raise ValueError(f"reward={reward!r}; {spec.did_you_mean(reward, ('sparse', 'dense'))}")
        self.reward_kind, self.render_mode = reward, render_mode
        self.control_hz, self.period = float(control_hz), 1.0 / control_hz
        self._initial = tuple(parse(self.task.initial, self.task.parameters))  # names
        self._nominal, self._distributions = randomized(self.task, randomization, nominal or {}, engine)
        selected = tuple(observation or self.task.observation)
        self.sensors = Sensors(selected, self.task.environment_names, int(image_size), int(num_points))
        self.features = self.sensors.features
        self.observation_space = gymnasium.spaces.Dict({key: _space(f) for key, f in self.features.items()})
        self.action_space = gymnasium.spaces.Box(ACTION_LOW, ACTION_HIGH, dtype=np.float32)
        self.action_spec = spec.FeatureSpec((len(ACTION_NAMES),), "float32", "m, rad, 0..1", "base", ACTION_NAMES)
        self.engine, self.robot = make_engine(engine, antialiasing, renderer), Panda(period=self.period)
        whole_steps(self.period, self.engine.time_step)
        self._ee_of: np.ndarray | None = None

    @property
    def T_base_ee(self) -> np.ndarray:
        """End-effector pose [4, 4], without noise or delay."""
        q, _ = self.engine.joints()
        if q is not self._ee_of:  # an engine gives the same array until something moves
            self._ee_of, self._T_base_ee = q, robot.forward(q)
        return self._T_base_ee

    @property
    def gripper_opening(self) -> float:
        """Distance between the fingers (m)."""
        return self.engine.joints()[1]

    def expert(self, rng: np.random.Generator | None = None) -> Expert:
        """The scripted expert of the task; with a generator, one that misjudges where things are."""
        return self.task.expert(rng)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Draw a world from the seed (or the next one) and start an episode in it."""
        super().reset(seed=seed)
        self.episode_seed = int(seed if seed is not None else self.np_random.integers(2**31))
        levels = self._levels(options or {})
        self.world = self._draw(levels)
        self.scene = world.scene(self.world, self.task.bodies(self.world), self.episode_seed)
        self.engine.build(self.scene)
        self.robot.start(self.engine.joints()[0], self.world.scalar("robot.gain"), self.world.scalar("robot.gripper_speed"))
        self._clock, self._due, self._pending, self._disturbance = 0, 0.0, deque[tuple[int, Command]](), np.zeros(3)
        self._delay = round(self.world.scalar("robot.action_delay") / self.engine.time_step)
        self._disturbance_rng, self._rate_rng = (stream(self.episode_seed, name) for name in ("disturbance", "rate"))
        self.sensors.start(self.world, self.episode_seed, self.engine)
        self._simulate()
        info = {**self._info(), "seed": self.episode_seed, "randomization": dict(self.world)}
        return self.observe(), {**info, "levels": levels} if levels else info

    def _levels(self, options: Mapping[str, Any]) -> dict[str, Any]:
        unknown = set(options) - {"level", "levels"}
        if unknown:
            raise ValueError(f"reset options {sorted(unknown)}; use level or levels")
        randomization = [name for name in self._distributions if name not in self._initial]
        levels = dict.fromkeys(randomization, options["level"]) if "level" in options else {}
        for name, level in dict(options.get("levels", {})).items():
            if name not in randomization:
                raise ValueError(f"levels has {name!r}; {spec.did_you_mean(name, randomization)}")
            levels[name] = level
        return levels

    def _draw(self, levels: Mapping[str, Any]) -> World:
        for attempt in range(MAX_ATTEMPTS):
            drawn = draw(self._distributions, self._nominal, self.episode_seed, levels, dict.fromkeys(self._initial, attempt))
            if self.task.feasible(drawn):
                return drawn
        raise ValueError(
            f"task {self.task.name!r} accepted none of {MAX_ATTEMPTS} initial states drawn with seed {self.episode_seed}; "
            f"check what randomization and nominal say of {', '.join(self._initial)}"
        )

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """advance(), then observe()."""
        reward, terminated, truncated, info = self.advance(action)
        return self.observe(), reward, terminated, truncated, info

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """step() without the observation, for steps at which nobody looks: rendering is most of a step's cost."""
        action = np.asarray(action, np.float64)
        if action.shape != ACTION_LOW.shape or not np.isfinite(action).all():
            raise ValueError(f"action {action.tolist()}: expected {len(ACTION_NAMES)} finite numbers {ACTION_NAMES}")
        command = self.robot.act(self._disturbed(action), self.T_base_ee)
        self._pending.append((self._clock + self._delay, command))
        self._simulate()
        info = self._info()
        reward = info["progress"] if self.reward_kind == "dense" else float(info["success"])
        return reward, info["success"], False, info

    def _simulate(self) -> None:
        """One control period; commands take effect when they are due."""
        end = self._clock + self._period_steps()
        seen = self.sensors.seen(self._clock, end)
        while self._clock < end:
            while self._pending and self._pending[0][0] <= self._clock:
                self.engine.command(*self._pending.popleft()[1])
            stops = (end, seen, self._pending[0][0] if self._pending else end)
            until = min(stop for stop in stops if stop > self._clock)
            self.engine.advance((until - self._clock) * self.engine.time_step)
            self._clock = until
            if until == seen:
                self.sensors.record(until)

    def _period_steps(self) -> int:
        """Physics steps of the coming control period, whose end is rounded: the robot's clock is not the policy's."""
        self._due += self.period / self.world.scalar("robot.rate")
        jitter = self.world.scalar("robot.rate_jitter")
        tick = self._due + (jitter * self._rate_rng.standard_normal() if jitter else 0.0)
        return max(1, round(tick / self.engine.time_step) - self._clock)

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

    def unsafe(self, limits: Limits) -> set[str]:
        """Names of the unsafe events that are happening now."""
        grip = float(self.engine.grip_forces().max())
        found = {"collision"} if self.engine.arm_force() > limits.collision else set()
        if grip > limits.force:
            found.add("force")
        if grip < HELD and any(self.engine.velocity(name)[2] < -limits.drop for name in self.task.tracked):
            found.add("drop")
        return found

    def observe(self) -> dict[str, np.ndarray]:
        """The observation of the present state; draws fresh sensor noise."""
        return self.sensors.observe(self._clock, lambda: self.task.environment_state(self.engine, self.world))

    def render(self) -> np.ndarray | None:
        """uint8 [256, 256, 3] of the front camera, without sensor noise, when render_mode is "rgb_array"."""
        return self.picture(256) if self.render_mode == "rgb_array" else None

    def picture(self, size: int, camera: str = "front") -> np.ndarray:
        """uint8 [size, size, 3] of `camera` now, without sensor noise."""
        return self.engine.render(world.camera(camera, self.world, self.T_base_ee, size)).rgb

    def save_state(self) -> _Token:
        """A token for restore_state(), valid until the next reset()."""
        generators = tuple(rng.bit_generator.state for rng in (self._disturbance_rng, self._rate_rng))
        return _Token(
            self.engine.save_state(),
            self.robot.copy(),
            self._clock,
            self._due,
            tuple(self._pending),
            self._disturbance.copy(),
            generators,
            self.sensors.save(),
        )

    def restore_state(self, token: _Token) -> None:
        """Return to a saved state: the same actions then give the same trajectory, bit for bit."""
        self.engine.restore_state(token.engine)
        self.robot, self._pending = token.robot.copy(), deque(token.pending)
        self._clock, self._due = token.clock, token.due
        self._disturbance = token.disturbance.copy()
        for generator, state in zip((self._disturbance_rng, self._rate_rng), token.generators, strict=True):
            generator.bit_generator.state = state
        self.sensors.restore(token.sensors)

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()


def randomized(
    task: Task, randomization: str | Mapping[str, Any], overrides: Mapping[str, Any], engine: str = "bullet"
) -> tuple[World, dict[str, Distribution]]:
    """The nominal world of a task on an engine, and what is drawn around it: the randomisation and the initial states.

    Raises:
        RandomizationError: what is wrong with `randomization` (preset name or mapping) or `overrides` of the nominal world.
    """
    parameters = {**world.PARAMETERS, **task.parameters}
    shifts = {name: value for name, value in world.TWIN.items() if name in parameters} if engine == "mujoco" else {}
    around = nominal_world(parameters, shifts, overrides)
    return around, {**parse(task.initial, parameters), **parse(randomization, parameters, around, parameter_names())}


def check_settings(env_id: str, env_kwargs: Mapping[str, Any]) -> None:
    """Whether gymnasium.make(env_id, **env_kwargs) will work, found out in milliseconds: it starts no simulator.

    Raises:
        ValueError: as the environment. FileNotFoundError: the robot's description is not whole.
    """
    environment = load_env_creator(str(gymnasium.spec(env_id).entry_point))
    known = [*inspect.signature(environment).parameters, "max_episode_steps"]
    for name in env_kwargs:
        if name not in known:
            raise ValueError(f"{env_id} has no setting {name!r}; {spec.did_you_mean(name, known)}")
    if environment is not RobotEnv:
        environment.check_settings(env_kwargs)  # type: ignore[union-attr]
        return
    given = {**gymnasium.spec(env_id).kwargs, **env_kwargs}
    check_renderer(given["engine"], given.get("renderer", "cpu"))
    task = make_task(given["task"])
    randomized(task, given.get("randomization", "none"), given.get("nominal") or {}, given["engine"])
    Sensors(tuple(given.get("observation") or task.observation), task.environment_names, 8, 8)
    panda_urdf()


def _space(feature: spec.FeatureSpec) -> gymnasium.spaces.Box:
    low, high = (0, 255) if feature.dtype == "uint8" else (-np.inf, np.inf)
    if feature.unit == "m" and len(feature.shape) == 2 and not feature.names:
        low = 0.0
    return gymnasium.spaces.Box(low, high, feature.shape, np.dtype(feature.dtype).type)
