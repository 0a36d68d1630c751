"""The dressing environment: a gripper pulls a sleeve of cloth along a static human arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from robopolicy import spec
from robopolicy.sim import dress_world, world
from robopolicy.sim.arm import FINGER, crossing
from robopolicy.sim.cloth import ClothWorld
from robopolicy.sim.dress_experts import DressExpert
from robopolicy.sim.dress_sensors import DressSensors, Moment, features
from robopolicy.sim.dress_view import DressView
from robopolicy.sim.dress_world import ALL, DressTask
from robopolicy.sim.env import PUSH_DECAY, PUSH_PROBABILITY
from robopolicy.sim.garments import GARMENTS
from robopolicy.sim.holders import DOWN, HOLDERS
from robopolicy.sim.randomize import draw, nominal, parse, stream
from robopolicy.sim.scene import Camera, Frame
from robopolicy.sim.tasks import parameter_names
from robopolicy.sim.unsafe import Limits

MAX_TRANSLATION, MAX_ROTATION = 0.02, 0.1  # m and rad per control step: of the whole translation, of each rotation entry
CLEARANCE = 0.012  # m: the gripper slides along the arm this far away instead of coming closer; the torso stops it there
MAX_PULL = 10.0  # N of the cloth on the gripper, or of what it touches, above which it yields
SUCCESS = 0.7  # of the upper arm
TRANSLATION, YAW, TURNS = ("dx", "dy", "dz"), ("yaw",), ("rx", "ry", "rz")
ROTATIONS = ("yaw", "full")
POSITIVE = ("image_size", "num_points", "voxel", "control_hz")  # settings that are numbers above 0
EXPLODED = "exploded"


@dataclass(frozen=True)
class _Token:
    seed: int
    region: str
    moves: tuple[tuple[np.ndarray, np.ndarray], ...]
    disturbance: np.ndarray
    peak_force: float
    pushes: Any
    sensors: Any


class _Pictures:
    """What looks at the environment from outside (view, film) draws through this, as through an Engine."""

    def __init__(self, env: DressEnv) -> None:
        self._env = env

    def render(self, camera: Camera, rgb: bool = True) -> Frame:
        """What a camera sees now, without noise."""
        return self._env.look(camera, rgb, antialiasing=True)


class DressEnv(gymnasium.Env):
    """A gripper holds a sleeve by the top of its rim and pulls it over hand, forearm and upper arm of a person who sits still.

    Action float32 [4], or [6] with rotation="full", clipped to its bounds:
        | 0-2 | dx dy dz | translation of the gripper, m, base frame; cut to a length of 0.02 | -0.02 .. 0.02 |
        | 3 | yaw | turn about the vertical, rad | -0.1 .. 0.1 |
        | or 3-5 | rx ry rz | rotation vector, rad, base frame | -0.1 .. 0.1 |

    Observation: a dict with the chosen keys (spec.py):
        observation.state float32 [9]: gripper position (m) and 6-D rotation.
        observation.points float32 [num_points, 5]: x y z (m, base frame), one-hot arm and garment; voxels of the pixels of
            the front camera. The arm is as it was seen before the garment came; the garment is what is visible now. Rows
            of zeros are padding.
        observation.images.<camera>, observation.depth.<camera>, observation.segmentation.<camera> (3 arm, 4 torso,
            5 garment, 2 gripper), observation.environment_state: as in RobotEnv.

    The gripper yields to forces above MAX_PULL: it does not go on against them. Cloth of springs stretches without end, and
    policies that may pull as hard as they like learn to stretch it over the arm.

    Reward: dress_world.reward(), absolute progress at every step. An episode ends at its time limit. It also ends, truncated
    and with info["fault"], when the cloth explodes ("exploded"), when no garment or no arm is seen ("empty_cloud") and when
    a depth image is not finite ("bad_depth"); such a step teaches nothing and should not be learned from.

    info: upper_ratio, whole_ratio (dressed shares), success (upper_ratio > 0.7), progress (whole_ratio), force_n and
    peak_force_n (at the gripper; of this simulator, not to be taken for a real garment's), clearance_m (gripper to skin),
    fault, task. reset(options={"region": name}) overrides the region for one episode.

    Args:
        region: of arm poses: "all", or of dress_world ("straight", "bent-level"). garments: of garments.GARMENTS; None = all.
        holder: what holds the sleeve: "gripper", which is where it is told to be, or "panda", a robot that follows with a
            lag. Clouds and depth leave the robot out (a real one is masked by its description); pictures show it.
        rotation: "yaw" or "full". voxel: side (m) of the cubes that keep one point each; the paper's is 0.0625.
        randomization: of camera, light, colours and sensors (preset name or mapping). Pose, garment, its physics and the
            start are drawn in every episode. nominal: {parameter: value} overrides; what every episode draws is drawn still.
        initial: {parameter: distribution} in place of what every episode draws otherwise.
        observation, image_size, num_points, control_hz, antialiasing, render_mode: see RobotEnv.

    Raises:
        ValueError: an unknown region, garment, observation, preset or parameter; the message names what exists.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        observation: Sequence[str] | None = None,
        image_size: int = 96,
        num_points: int = 96,
        voxel: float = 0.05,
        region: str = ALL,
        garments: Sequence[str] | None = None,
        rotation: str = "yaw",
        holder: str = "gripper",
        randomization: str | Mapping[str, Any] = "none",
        nominal: Mapping[str, Any] | None = None,
        initial: Mapping[str, Any] | None = None,
        control_hz: float = 20.0,
        antialiasing: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.task, self.render_mode, self.antialiasing = DressTask(), render_mode, antialiasing
        self.region, self._garments = region, tuple(garments if garments is not None else GARMENTS)
        self._nominal, self._drawn = settings(region, self._garments, randomization, nominal or {}, initial or {})
        self._initial = dict(initial or {})
        check_values(dict(zip(POSITIVE, (image_size, num_points, voxel, control_hz), strict=True)))
        check_values({"rotation": rotation, "holder": holder})
        self.control_hz, self.period = float(control_hz), 1.0 / control_hz
        self.rotation_kind = rotation
        selected = tuple(observation or ("state", "points"))
        self.sensors = DressSensors(selected, int(image_size), int(num_points), float(voxel))
        self.features = self.sensors.features
        names = (*TRANSLATION, *(YAW if rotation == "yaw" else TURNS))
        high = np.array([MAX_TRANSLATION] * 3 + [MAX_ROTATION] * (len(names) - 3), np.float32)
        self.action_space = gymnasium.spaces.Box(-high, high, dtype=np.float32)
        self.action_spec = spec.FeatureSpec(high.shape, "float32", "m, rad", "base", names)
        self.observation_space = gymnasium.spaces.Dict({key: _space(feature) for key, feature in self.features.items()})
        self.cloth, self.engine = ClothWorld(holder), _Pictures(self)

    # the state of the world

    @property
    def T_base_ee(self) -> np.ndarray:
        """Pose of the gripper [4, 4], its z axis pointing down."""
        T = np.eye(4)
        T[:3, :3] = (self.cloth.rotation * DOWN).as_matrix()
        T[:3, 3] = self.cloth.position
        return T

    @property
    def rim_centre(self) -> np.ndarray:
        """Where the middle [3] (m) of the undeformed rim would be."""
        held = self.cloth.mesh.vertices[list(self.cloth.mesh.held)].mean(0)
        return self.cloth.position - self.cloth.rotation.apply(held)

    @property
    def yaw(self) -> float:
        """Turn (rad) of the gripper about the vertical since the start."""
        x = self.cloth.rotation.apply([1.0, 0.0, 0.0])
        return float(np.arctan2(x[1], x[0]))

    @property
    def threaded(self) -> bool:
        """Whether the arm passes through the opening."""
        return self._at >= 0

    def action_towards(self, translation: np.ndarray, yaw: float) -> np.ndarray:
        """The action that moves by `translation` [3] (m) and turns to `yaw` (rad) as far as one step goes."""
        length = float(np.linalg.norm(translation))
        turn = np.clip((yaw - self.yaw + np.pi) % (2 * np.pi) - np.pi, -MAX_ROTATION, MAX_ROTATION)
        turns = [turn] if self.rotation_kind == "yaw" else [0.0, 0.0, turn]
        return np.array([*(translation * min(1.0, MAX_TRANSLATION / max(length, 1e-9))), *turns], np.float32)

    def expert(self, rng: np.random.Generator | None = None) -> DressExpert:
        """The scripted expert; with a generator, one that misjudges where the arm is."""
        return DressExpert() if rng is None else DressExpert.imperfect(rng)

    # episodes

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Draw a world from the seed (or the next one) and start an episode in it."""
        super().reset(seed=seed)
        unknown = set(options or {}) - {"region"}
        if unknown:
            raise ValueError(f"reset options {sorted(unknown)}; use region")
        self._start(
            int(seed if seed is not None else self.np_random.integers(2**31)), (options or {}).get("region", self.region)
        )
        observation = self.observe()
        return observation, {
            **self._info(),
            "seed": self.episode_seed,
            "region": self._region,
            "randomization": dict(self.world),
        }

    def _start(self, seed: int, region: str) -> None:
        self.episode_seed, self._region = seed, region
        distributions = self._drawn
        if region != self.region:
            bend, elevation = dress_world.region_ranges(region)
            pose = {"arm": {"bend": {"uniform": list(bend)}, "elevation": {"uniform": list(elevation)}}}
            distributions = {**distributions, **parse(pose, dress_world.PARAMETERS)}
        self.world = draw(distributions, self._nominal, seed)
        self.arm = dress_world.arm_of(self.world)
        rim = FINGER + self.world.vector("start.offset")
        self.cloth.build(dress_world.garment_of(self.world), self.arm, rim, self.period)
        self._view = DressView(
            self.arm,
            self.cloth.mesh,
            self.cloth.holder,
            dress_world.scene_of(self.world),
            self.world.colour("arm.rgb"),
            self.world.colour("garment.rgb"),
            int(self.world.scalar("garment.texture")),
        )
        self._pushes = stream(seed, "disturbance")
        self._moves: list[tuple[np.ndarray, np.ndarray]] = []
        self._disturbance, self._peak_force, self._exploded = np.zeros(3), 0.0, False
        self._follow()
        self.sensors.start(self.world, seed, self.arm, lambda camera, rgb: self._view.render(camera, None, rgb))

    @property
    def fault(self) -> str:
        """Why this episode can teach nothing from here on, "" while all is well."""
        return EXPLODED if self._exploded else self.sensors.fault

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """advance(), then observe()."""
        reward, _, _, info = self.advance(action)
        observation = self.observe()
        if self.fault:  # perhaps only found by looking
            reward, info = 0.0, {**info, "success": False, "fault": self.fault}
        return observation, reward, False, bool(self.fault), info

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """step() without the observation, for steps at which nobody looks."""
        action = np.asarray(action, np.float64)
        if action.shape != self.action_space.shape or not np.isfinite(action).all():
            names = self.action_spec.names
            raise ValueError(f"action {action.tolist()}: expected {len(names)} finite numbers {names}")
        action = np.clip(action, self.action_space.low, self.action_space.high)  # type: ignore[attr-defined]
        translation = action[:3] * min(1.0, MAX_TRANSLATION / max(float(np.linalg.norm(action[:3])), 1e-9))
        turn = np.array([0.0, 0.0, action[3]]) if self.rotation_kind == "yaw" else action[3:]
        start = self.cloth.goal
        wanted = self._yielded(translation + self._push())
        target = self.arm.within_reach(start, start + wanted, CLEARANCE)
        self._move(target - start, turn)
        info = self._info()
        ring = self.cloth.rim(self._vertices)
        value = 0.0 if self.fault else dress_world.reward(self.arm, ring, self._at, info["force_n"], info["clearance_m"])
        return value, False, bool(self.fault), info

    def _yielded(self, translation: np.ndarray) -> np.ndarray:
        """The move [3] (m) of where the gripper is to be: `translation`, or back and aside where the force is too high."""
        if not float(np.linalg.norm(self.cloth.force)) > MAX_PULL:  # nor where it is not finite
            return translation
        return self.cloth.position - self.cloth.goal + sideways(translation, self.cloth.force)

    def _move(self, translation: np.ndarray, turn: np.ndarray) -> None:
        self._moves.append((translation, turn))
        self.cloth.move(translation, turn)
        self._follow()
        self._peak_force = max(self._peak_force, self._force())

    def _push(self) -> np.ndarray:
        std, rng = self.world.scalar("robot.disturbance"), self._pushes
        if std == 0:
            return np.zeros(3)
        started, push = rng.random() < PUSH_PROBABILITY, rng.normal(0.0, std, 3)
        self._disturbance = PUSH_DECAY * self._disturbance + started * push
        return self._disturbance

    def _follow(self) -> None:
        """Where the cloth is now, and how far it is pulled on."""
        self._vertices = self.cloth.vertices()
        self._exploded = self._exploded or self.cloth.exploded(self._vertices)
        self._at = -1.0 if self._exploded else crossing(self.cloth.rim(self._vertices), self.arm.reach)

    def _force(self) -> float:
        force = float(np.linalg.norm(self.cloth.force))
        return force if np.isfinite(force) else 0.0

    def _info(self) -> dict[str, Any]:
        upper, whole = self.arm.dressed(self._at)
        return {
            "success": upper > SUCCESS and not self.fault,
            "progress": whole,
            "task": self.task.name,
            "upper_ratio": upper,
            "whole_ratio": whole,
            "force_n": self._force(),
            "peak_force_n": self._peak_force,
            "clearance_m": float(self.arm.nearest(self.cloth.position[None])[0][0]),
            "fault": self.fault,
        }

    def unsafe(self, limits: Limits) -> set[str]:
        """See RobotEnv.unsafe. Only the pull at the gripper counts: nothing collides or drops here."""
        return {"force"} if self._force() > limits.force else set()

    # what is seen

    def look(self, camera: Camera, rgb: bool = True, antialiasing: bool = False) -> Frame:
        """What a camera sees now, without noise. Where the cloth has exploded it is left out."""
        there = None if self._exploded else self._vertices
        return self._view.render(camera, there, rgb, antialiasing)

    def observe(self) -> dict[str, np.ndarray]:
        """The observation of the present state; draws fresh sensor noise. Sets `fault` where nothing can be made of it."""
        rim, ratios = self.cloth.rim(self._vertices).mean(0), self.arm.dressed(self._at)
        return self.sensors.observe(Moment(self.T_base_ee, rim, ratios, partial(self.look, antialiasing=self.antialiasing)))

    def render(self) -> np.ndarray | None:
        """uint8 [256, 256, 3] of the front camera, without sensor noise, when render_mode is "rgb_array"."""
        return self.picture(256) if self.render_mode == "rgb_array" else None

    def picture(self, size: int, camera: str = "front") -> np.ndarray:
        """uint8 [size, size, 3] of `camera` now, without sensor noise."""
        return self.engine.render(world.camera(camera, self.world, self.T_base_ee, size)).rgb

    # branching

    def save_state(self) -> _Token:
        """A token for restore_state()."""
        rest = (self._disturbance.copy(), self._peak_force, self._pushes.bit_generator.state, self.sensors.save())
        return _Token(self.episode_seed, self._region, tuple(self._moves), *rest)

    def restore_state(self, token: _Token) -> None:
        """Return to a saved state by replaying the episode, at about a hundred steps per second: then all is as it was."""
        self._start(token.seed, token.region)
        for move in token.moves:
            self._move(*move)
        self._disturbance, self._peak_force = token.disturbance.copy(), token.peak_force
        self._pushes.bit_generator.state = token.pushes
        self.sensors.restore(token.sensors)

    def close(self) -> None:
        """Free the simulator."""
        self.cloth.close()

    @staticmethod
    def check_settings(given: Mapping[str, Any]) -> None:
        """Whether DressEnv(**given) will work, without starting a simulator. Raises ValueError as it does."""
        garments = tuple(GARMENTS if given.get("garments") is None else given["garments"])
        options = (given.get("randomization", "none"), given.get("nominal") or {}, given.get("initial") or {})
        settings(given.get("region", ALL), garments, *options)
        features(tuple(given.get("observation") or ("state",)), 8, 8)
        check_values(given)


def sideways(translation: np.ndarray, force: np.ndarray) -> np.ndarray:
    """`translation` [3] without what goes against a `force` [3]."""
    against = -force / np.linalg.norm(force)
    return translation - max(float(translation @ against), 0.0) * against


def check_values(given: Mapping[str, Any]) -> None:
    """Raises ValueError for numbers among the settings `given` that are not above 0, and for choices that there are not."""
    for name in POSITIVE:
        value = given.get(name, 1)
        if not isinstance(value, int | float) or not 0 < value < np.inf:
            raise ValueError(f"{name}={value!r} does not work: give a number above 0")
    for name, known in (("rotation", ROTATIONS), ("holder", HOLDERS)):
        value = str(given.get(name, next(iter(known))))
        if value not in known:
            raise ValueError(f"{name}={value!r}; {spec.did_you_mean(value, known)}")


def settings(
    region: str, garments: Sequence[str], randomization: Any, overrides: Mapping[str, Any], initial: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The nominal world, and what is drawn around it. Raises ValueError for what does not exist."""
    parameters = dress_world.PARAMETERS
    around = nominal(parameters, overrides)
    others = {*parameter_names(), *world.PARAMETERS} - set(parameters)
    drawn = {**parse(dress_world.initial(region, garments), parameters, around), **parse(initial, parameters, around)}
    return around, {**drawn, **parse(randomization, parameters, around, others)}


def _space(feature: spec.FeatureSpec) -> gymnasium.spaces.Box:
    low, high = (0, 255) if feature.dtype == "uint8" else (-np.inf, np.inf)
    return gymnasium.spaces.Box(low, high, feature.shape, np.dtype(feature.dtype).type)
