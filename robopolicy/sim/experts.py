"""What scripted experts are made of: pick, place, retreat, step_towards. The experts themselves stand beside their tasks.

They see privileged state and are stateless: what to do next follows from where things are, so they recover.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np

from robopolicy.geometry import pose, rotvec_between, rotvec_matrix, transform

if TYPE_CHECKING:
    import gymnasium

    from robopolicy.sim.env import RobotEnv

CLOSE = 0.012  # m, in each direction: the gripper is where it can grasp
MAX_TURN = 0.12  # rad per control step
HELD = 1.0  # N on each finger
PLACING = 0.5  # of the speed, when lowering something

Self = TypeVar("Self", bound="Expert")


@dataclass(frozen=True)
class Expert(ABC):
    """A scripted expert. Callable: env -> action float32 [7].

    grasp_offset [3] (m), yaw_offset (rad) and goal_offset [3] (m) are by how much it misjudges what it grasps and where
    that has to go: imperfect copies make mixed-quality experience. speed: m/s of the commanded end effector. hover:
    height (m) above a grasp from which it descends.
    """

    grasp_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    yaw_offset: float = 0.0
    goal_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    speed: float = 0.35
    hover: float = 0.09

    error: ClassVar[tuple[float, float, float]] = (0.018, 0.022, 0.008)  # m, std of an imperfect expert's grasp_offset
    yaw_error: ClassVar[float] = 0.3  # rad
    goal_error: ClassVar[float] = 0.0  # m, std in the plane
    opening: ClassVar[float] = 1.0  # of the gripper, before it grasps

    @classmethod
    def imperfect(cls: type[Self], rng: np.random.Generator) -> Self:
        """An expert that misjudges; about half of such experts fail."""
        grasp = rng.normal(0.0, cls.error)
        yaw = float(rng.normal(0.0, cls.yaw_error))
        x, y = rng.normal(0.0, 1.0, 2) * cls.goal_error
        return cls(grasp_offset=tuple(grasp.tolist()), yaw_offset=yaw, goal_offset=(float(x), float(y), 0.0))

    def __call__(self, env: gymnasium.Env) -> np.ndarray:
        """Action float32 [7] for the present state of an environment, wrapped or not."""
        return self.act(env.unwrapped)  # type: ignore[arg-type]

    @abstractmethod
    def act(self, env: RobotEnv) -> np.ndarray:
        """The action, for the environment itself."""


def pick(
    expert: Expert,
    env: RobotEnv,
    name: str,
    point: tuple[float, float, float] = (0.0, 0.0, 0.0),
    width: float | None = None,
    turned: float = 0.0,
    symmetry: float | None = None,
) -> np.ndarray | None:
    """The next action of grasping the body `name` from above, at `point` [3] (m) in its frame; None once it is held.

    width (m): of what is between the fingers, None = the body's first shape. turned (rad): of the gripper against the body
    about the vertical. symmetry (rad): turns of the body that make no difference; None = by its shape.
    """
    shape = next(body.shapes[0] for body in env.scene.bodies if body.name == name)
    if width is None:
        width = 2 * max(shape.size[:2])
    if symmetry is None:
        symmetry = np.pi / 2 if shape.kind == "box" else 1e-6
    T_body = pose(*env.engine.pose(name))
    grasp = transform(T_body, np.array(point)) + np.array(expert.grasp_offset)
    yaw = float(np.arctan2(T_body[1, 0], T_body[0, 0])) + turned + expert.yaw_offset
    turn = turn_to(env, gripper_down(yaw, env.T_base_ee, symmetry))
    to_grasp = grasp - env.T_base_ee[:3, 3]
    aside, height = float(np.linalg.norm(to_grasp[:2])), float(to_grasp[2])
    near = aside < CLOSE and abs(height) < CLOSE
    around = env.robot.closing and env.gripper_opening < 1.15 * width + 0.004 and aside < 0.03 and abs(height) < 0.03
    if around and env.engine.grip_forces().min() > HELD:  # it may have slipped a little: no reason to let go
        return None
    if near or around:
        return step_towards(env, to_grasp, turn, grip=0.0, speed=expert.speed, measured=True)
    open_grip = expert.opening
    if aside < 0.015 and np.linalg.norm(turn) < MAX_TURN:
        return step_towards(env, to_grasp, turn, grip=open_grip, speed=expert.speed, measured=True)
    above = to_grasp + [0.0, 0.0, expert.hover]
    if aside <= 0.05 and height <= -0.5 * expert.hover:
        above[2] = 0.0
    return step_towards(env, above, turn, grip=open_grip, speed=expert.speed, measured=True)


def place(
    expert: Expert,
    env: RobotEnv,
    name: str,
    goal: np.ndarray,
    clearance: float = 0.06,
    turn: np.ndarray | None = None,
    tolerance: float = CLOSE,
) -> np.ndarray:
    """The next action of bringing the held body `name` to `goal` [3] (m): up, across at `clearance` (m) over it, down.

    turn [3] (rad): what rotation the body still needs; None = it does not matter.
    """
    error = goal - env.engine.pose(name)[0]
    aside = float(np.linalg.norm(error[:2]))
    turned = 0.0 if turn is None else float(np.linalg.norm(turn))
    rotation = None if turn is None else turn_to(env, rotvec_matrix(turn) @ env.T_base_ee[:3, :3])
    descending = error[2] > -0.8 * clearance
    if aside < (2.5 if descending else 1.0) * tolerance and turned < (0.2 if descending else 0.05):
        return step_towards(env, error, rotation, grip=0.0, speed=PLACING * expert.speed, measured=True)
    delta = error + [0.0, 0.0, clearance]
    if delta[2] > 0.02:  # up first
        delta[:2] = 0.0
    return step_towards(env, delta, rotation, grip=0.0, speed=expert.speed, measured=True)


def retreat(env: RobotEnv) -> np.ndarray:
    """Let go, then up."""
    free = env.gripper_opening > 0.9 * env.robot.opening and env.engine.grip_forces().max() < HELD
    return step_towards(env, np.array([0.0, 0.0, 0.1 * free]), grip=1.0, speed=0.2)


def nearest_yaw(yaw: float, now: float, symmetry: float) -> float:
    """The angle (rad) nearest to `now` that differs from `yaw` by a multiple of `symmetry`."""
    return float(now + (yaw - now + symmetry / 2) % symmetry - symmetry / 2)


def gripper_down(yaw: float, T_base_ee: np.ndarray, symmetry: float) -> np.ndarray:
    """Rotation [3, 3] of a gripper that points down and is turned to `yaw` (rad), or to what comes nearest by symmetry."""
    yaw = nearest_yaw(yaw, float(np.arctan2(T_base_ee[1, 0], T_base_ee[0, 0])), symmetry)
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])


def turn_to(env: RobotEnv, rotation: np.ndarray) -> np.ndarray:
    """Rotation vector [3] (rad) from the commanded to the wanted rotation [3, 3] of the end effector."""
    return rotvec_between(env.robot.T_base_target[:3, :3], rotation)


def step_towards(
    env: RobotEnv, delta: np.ndarray, turn: np.ndarray | None = None, *, grip: float, speed: float, measured: bool = False
) -> np.ndarray:
    """The action that moves along `delta` [3] (m) and `turn` [3] (rad) as far as one control step allows at `speed` (m/s).

    Both count from the commanded pose; with measured=True `delta` counts from the measured one.
    """
    if measured:
        delta = delta + env.T_base_ee[:3, 3] - env.robot.T_base_target[:3, 3]
    turn = np.zeros(3) if turn is None else turn
    delta = delta * min(1.0, speed / env.control_hz / max(float(np.linalg.norm(delta)), 1e-9))
    turn = turn * min(1.0, MAX_TURN / max(float(np.linalg.norm(turn)), 1e-9))
    return np.concatenate([delta, turn, [grip]]).astype(np.float32)
