"""The held-out simulator: the world of sim.bullet in MuJoCo, with nothing in common but the scene and the robot's description.

Another solver (Newton, elliptic cones, soft contacts, 2 ms), another actuator model (a torque-limited PD with gravity
compensation instead of a velocity-level gain) and another renderer (sim.raycast).
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from robopolicy.sim import raycast
from robopolicy.sim.engine import whole_steps
from robopolicy.sim.robot import MAX_OPENING, NUM_JOINTS
from robopolicy.sim.scene import Camera, Frame, Scene
from robopolicy.sim.twin_model import TIME_STEP, BodyFrame, compile_scene, looks, robot_geoms, xyzw
from robopolicy.spec import did_you_mean

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


@dataclass(frozen=True)
class _World:
    """A compiled scene and its state. past: room for the poses of a snapshot. frames: where bodies lie in their links.

    touching: places in the contact forces of the robot's geoms: 0 and 1 the fingers, 2 the rest of the arm.
    """

    scene: Scene
    model: mujoco.MjModel
    data: mujoco.MjData
    past: mujoco.MjData
    looks: raycast.Looks
    frames: dict[str, BodyFrame]
    touching: dict[int, int]


@dataclass(frozen=True)
class _Snapshot:
    world: _World
    qpos: np.ndarray


@dataclass(frozen=True)
class _Token:
    world: _World
    state: np.ndarray
    forces: np.ndarray


class MujocoEngine:
    """robopolicy.sim.engine.Engine on MuJoCo.

    Raises:
        RuntimeError: anything but build() and close() before the first build() or after close().
    """

    time_step = TIME_STEP

    def __init__(self) -> None:
        self._world: _World | None = None
        self._forces = np.zeros(3)

    @property
    def _built(self) -> _World:
        if self._world is None:
            raise RuntimeError("the twin holds no world: call build(scene) first")
        return self._world

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled world, for studies of the twin itself."""
        return self._built.model

    @property
    def data(self) -> mujoco.MjData:
        """Its state, for studies of the twin itself."""
        return self._built.data

    def build(self, scene: Scene) -> None:
        """See Engine.build. Raises ValueError where compile_scene does."""
        model, frames = compile_scene(scene)
        data, past = mujoco.MjData(model), mujoco.MjData(model)
        self._world = _World(scene, model, data, past, looks(model, scene), frames, robot_geoms(model))
        self._forces = np.zeros(3)
        data.qpos[: NUM_JOINTS + 2] = [*scene.robot_joints, MAX_OPENING / 2, MAX_OPENING / 2]
        self.command(np.asarray(scene.robot_joints), MAX_OPENING)
        mujoco.mj_forward(model, data)

    def joints(self) -> tuple[np.ndarray, float]:
        """See Engine.joints."""
        qpos = self.data.qpos
        return qpos[:NUM_JOINTS].copy(), float(qpos[NUM_JOINTS : NUM_JOINTS + 2].sum())

    def command(self, q_target: np.ndarray, opening: float) -> None:
        """See Engine.command."""
        self.data.ctrl[:NUM_JOINTS] = q_target
        self.data.ctrl[NUM_JOINTS:] = opening / 2

    def advance(self, seconds: float) -> None:
        """See Engine.advance."""
        steps = whole_steps(seconds, self.time_step)
        world = self._built
        mujoco.mj_step(world.model, world.data, steps)
        self._forces = _contact_forces(world)
        mujoco.mj_kinematics(world.model, world.data)  # a step leaves the poses of its start behind

    def _link(self, name: str) -> int:
        frames = self._built.frames
        if name not in frames:
            raise ValueError(f"no body {name!r}; {did_you_mean(name, frames)}")
        return self.model.body(name).id

    def pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """See Engine.pose. Raises ValueError naming the closest bodies."""
        link, own = self._link(name), self._built.frames[name]
        position, quaternion = np.empty(3), np.empty(4)
        at = self.data.xpos[link], self.data.xquat[link]
        mujoco.mju_mulPose(position, quaternion, *at, own.position, own.quaternion)
        return position, xyzw(quaternion)

    def velocity(self, name: str) -> np.ndarray:
        """See Engine.velocity. Raises ValueError naming the closest bodies."""
        link = self._link(name)
        mujoco.mj_comPos(self.model, self.data)  # what the Jacobian needs of the current positions
        jacobian = np.empty((3, self.model.nv))
        mujoco.mj_jac(self.model, self.data, jacobian, None, self.pose(name)[0], link)
        return jacobian @ self.data.qvel

    def joint_position(self, name: str) -> float:
        """See Engine.joint_position."""
        self._link(name)
        jointed = [body.name for body in self._built.scene.bodies if body.joint]
        if name not in jointed:
            raise ValueError(f"body {name!r} has no joint; {did_you_mean(name, jointed)}")
        return float(self.data.joint(name).qpos[0])

    def grip_forces(self) -> np.ndarray:
        """See Engine.grip_forces."""
        return self._forces[:2].copy()

    def arm_force(self) -> float:
        """See Engine.arm_force."""
        return float(self._forces[2])

    def snapshot(self) -> _Snapshot:
        """See Engine.snapshot."""
        return _Snapshot(self._built, self.data.qpos.copy())

    def render(self, camera: Camera, rgb: bool = True, snapshot: _Snapshot | None = None) -> Frame:
        """See Engine.render. Raises ValueError for a snapshot of another world."""
        world = self._built
        if snapshot is None:
            return raycast.render(world.model, world.data, camera, world.looks, world.scene.light, rgb)
        if snapshot.world is not world:
            raise ValueError("this snapshot was taken before the last build(); take one of the new world")
        world.past.qpos[:] = snapshot.qpos
        mujoco.mj_kinematics(world.model, world.past)
        return raycast.render(world.model, world.past, camera, world.looks, world.scene.light, rgb)

    def save_state(self) -> _Token:
        """See Engine.save_state. The state holds the solver's warm start, so a continuation is exact."""
        world = self._built
        state = np.empty(mujoco.mj_stateSize(world.model, _STATE))
        mujoco.mj_getState(world.model, world.data, state, _STATE)
        return _Token(world, state, self._forces)

    def restore_state(self, token: _Token) -> None:
        """See Engine.restore_state. Raises ValueError for a token of another world."""
        if token.world is not self._built:
            raise ValueError("this state was saved before the last build(); save_state() again in the new world")
        mujoco.mj_setState(token.world.model, token.world.data, token.state, _STATE)
        mujoco.mj_kinematics(token.world.model, token.world.data)
        self._forces = token.forces

    def close(self) -> None:
        """See Engine.close."""
        self._world = None


def _contact_forces(world: _World) -> np.ndarray:
    """Sums of the normal contact forces on each finger and on the rest of the arm [3] (N) in the last step."""
    forces, wrench = np.zeros(3), np.zeros(6)
    for i in range(world.data.ncon):
        for geom in world.data.contact[i].geom.tolist():
            if geom in world.touching:
                mujoco.mj_contactForce(world.model, world.data, i, wrench)
                forces[world.touching[geom]] += wrench[0]
    return forces
