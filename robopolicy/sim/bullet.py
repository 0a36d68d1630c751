"""The PyBullet world: rigid-body physics by Bullet, pictures by our own rasteriser fed with Bullet's poses.

The settings are those with which a Panda's grasp is stable: a gear constraint between the fingers, friction anchors on the
pads, 180 Hz with 30 solver iterations (more and shorter steps with fewer iterations hold better at the same cost:
tools/bench_sim.py --stability), and a position gain that follows the time step so that the arm's lag does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from robopolicy.sim.bullet_client import BulletClient, p, quiet
from robopolicy.sim.collision import collision_urdf, merged_visuals
from robopolicy.sim.engine import check_renderer, whole_steps
from robopolicy.sim.inertia import mass_properties
from robopolicy.sim.meshes import shape_mesh
from robopolicy.sim.raster import Part, Rasterizer
from robopolicy.sim.robot import MAX_OPENING, NUM_JOINTS
from robopolicy.sim.scene import FIRST_BODY, ROBOT, Body, Camera, Frame, Joint, Scene
from robopolicy.spec import did_you_mean

TIME_STEP = 1 / 180
SOLVER_ITERATIONS = 30
RESIDUAL = 1e-3  # of the solver, below which it stops early: what moves freely costs less
_BASE = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # pose of the robot's base: position, quaternion
_ARM = list(range(NUM_JOINTS))
_FINGERS = [NUM_JOINTS, NUM_JOINTS + 1]
_ARM_FORCES = [87.0] * 4 + [40.0] * 3  # N m


class _Handle(NamedTuple):
    """Where Bullet keeps a body: link -1 is the base."""

    uid: int
    link: int


@dataclass(frozen=True)
class _Move:
    """What the engine was told: a command held for a number of physics steps."""

    q_target: np.ndarray
    opening: float
    num_steps: int


def _rasterizer(renderer: str) -> type[Rasterizer]:
    """The class that draws. A missing OpenGL shows here rather than at the first picture."""
    check_renderer("bullet", renderer)
    if renderer == "cpu":
        return Rasterizer
    from robopolicy.sim import gl

    gl.device()
    return gl.GLRasterizer


class BulletEngine:
    """robopolicy.sim.engine.Engine on PyBullet.

    Args:
        antialiasing: see Rasterizer. renderer: "cpu" (raster.py) or "gl" (gl.py).

    Raises:
        ValueError: another renderer. ImportError, RuntimeError: renderer="gl" without moderngl or OpenGL.
    """

    time_step = TIME_STEP

    def __init__(self, antialiasing: bool = False, renderer: str = "cpu") -> None:
        self._supersample = 2 if antialiasing else 1
        self._rasterizer = _rasterizer(renderer)
        with quiet():
            self._client: BulletClient | None = BulletClient()

    @property
    def _p(self) -> BulletClient:
        if self._client is None:
            raise RuntimeError("the simulator is closed: make a new environment")
        return self._client

    def build(self, scene: Scene) -> None:
        """See Engine.build."""
        c = self._p
        c.resetSimulation()
        c.setGravity(0, 0, -9.81)
        c.setPhysicsEngineParameter(
            fixedTimeStep=TIME_STEP, numSubSteps=0, numSolverIterations=SOLVER_ITERATIONS, solverResidualThreshold=RESIDUAL
        )
        self._scene = scene
        self._add_table(scene)
        self._add_robot(scene)
        self._spread = {body.name: mass_properties(body) for body in scene.bodies}
        self._bodies = {body.name: self._add_body(body) for body in scene.bodies}
        self._free_joints(scene)
        self._prepare_drawing(scene)
        self._moves: list[_Move] = []
        self._joints: tuple[np.ndarray, float] | None = None
        self.command(np.asarray(scene.robot_joints), MAX_OPENING)

    def _add_table(self, scene: Scene) -> None:
        half = scene.table_half
        shape = self._p.createCollisionShape(p.GEOM_BOX, halfExtents=[half, half, 0.05])
        position = [scene.table_x, 0, scene.table_height - 0.05]
        self._table = self._p.createMultiBody(0, shape, -1, position)
        self._p.changeDynamics(self._table, -1, lateralFriction=scene.table_friction, restitution=scene.table_restitution)

    def _add_robot(self, scene: Scene) -> None:
        c = self._p
        self._robot = robot = c.loadURDF(collision_urdf(), useFixedBase=True)
        c.setCollisionFilterPair(robot, self._table, -1, -1, 0)  # the base stands where the table would be
        for joint, q in zip([*_ARM, *_FINGERS], [*scene.robot_joints, 0.04, 0.04], strict=True):
            c.resetJointState(robot, joint, q)
        for link in range(-1, c.getNumJoints(robot)):
            c.changeDynamics(robot, link, linearDamping=0, angularDamping=0, jointDamping=scene.joint_damping)
        for finger in _FINGERS:
            c.changeDynamics(robot, finger, lateralFriction=scene.finger_friction, spinningFriction=0.002, frictionAnchor=1)
        gear = c.createConstraint(robot, _FINGERS[0], robot, _FINGERS[1], p.JOINT_GEAR, [1, 0, 0], [0, 0, 0], [0, 0, 0])
        c.changeConstraint(gear, gearRatio=-1, erp=0.1, maxForce=50)

    def _add_body(self, body: Body) -> _Handle:
        """A body without a joint is the base of its multi-body; one with a joint is the only link of a fixed base.

        Bullet by itself would put the centre of mass into the origin and take the inertia of the bounding box.
        """
        c, joint, spread = self._p, body.joint, self._spread[body.name]
        shape = self._collision_shape(body) if body.collides else -1
        if joint is None:
            frames = body.position, body.quaternion, spread.position.tolist(), spread.quaternion.tolist()
            uid, link = c.createMultiBody(body.mass, shape, -1, *frames), -1
        else:
            uid, link = self._add_jointed(body, joint, shape), 0
        c.changeDynamics(
            uid,
            link,
            lateralFriction=body.friction,
            spinningFriction=body.spinning_friction,
            rollingFriction=body.rolling_friction,
            restitution=body.restitution,
            linearDamping=body.linear_damping,
            angularDamping=body.angular_damping,
        )
        if body.mass > 0:
            c.changeDynamics(uid, link, localInertiaDiagonal=spread.inertia.tolist())
        return _Handle(uid, link)

    def _collision_shape(self, body: Body) -> int:
        kinds = {"box": p.GEOM_BOX, "cylinder": p.GEOM_CYLINDER, "sphere": p.GEOM_SPHERE}
        return self._p.createCollisionShapeArray(
            shapeTypes=[kinds[s.kind] for s in body.shapes],
            halfExtents=[s.size for s in body.shapes],
            radii=[s.size[0] for s in body.shapes],
            lengths=[2 * s.size[2] for s in body.shapes],
            collisionFramePositions=[s.position for s in body.shapes],
            collisionFrameOrientations=[s.quaternion for s in body.shapes],
        )

    def _add_jointed(self, body: Body, joint: Joint, shape: int) -> int:
        c, spread = self._p, self._spread[body.name]
        uid = c.createMultiBody(
            0,
            -1,
            -1,
            body.position,
            body.quaternion,
            linkMasses=[body.mass],
            linkCollisionShapeIndices=[shape],
            linkVisualShapeIndices=[-1],
            linkPositions=[[0, 0, 0]],
            linkOrientations=[[0, 0, 0, 1]],
            linkInertialFramePositions=[spread.position.tolist()],
            linkInertialFrameOrientations=[spread.quaternion.tolist()],
            linkParentIndices=[0],
            linkJointTypes=[p.JOINT_PRISMATIC if joint.kind == "slide" else p.JOINT_REVOLUTE],
            linkJointAxis=[joint.axis],
        )
        c.changeDynamics(uid, 0, jointLowerLimit=joint.low, jointUpperLimit=joint.high, jointDamping=joint.damping)
        c.setJointMotorControl2(uid, 0, p.VELOCITY_CONTROL, targetVelocity=0, force=joint.friction)  # dry friction
        return uid

    def _free_joints(self, scene: Scene) -> None:
        """Bodies on joints do not collide with what cannot move: the joint guides them."""
        for body in scene.bodies:
            for other in scene.bodies:
                if body.joint is not None and other.joint is None and other.mass == 0:
                    (uid, link), (fixed, _) = self._bodies[body.name], self._bodies[other.name]
                    self._p.setCollisionFilterPair(uid, fixed, link, -1, 0)
            if body.joint is not None:
                self._p.setCollisionFilterPair(self._bodies[body.name].uid, self._table, 0, -1, 0)

    def _prepare_drawing(self, scene: Scene) -> None:
        visuals = merged_visuals()
        self._links = sorted({link for link, _, _ in visuals} - {-1})
        frame = {link: i for i, link in enumerate([-1, *self._links])}
        arm = [Part(mesh, frame[link], ROBOT, np.multiply(rgb, scene.robot_rgb).tolist()) for link, mesh, rgb in visuals]
        bodies = [
            Part(shape_mesh(shape), len(frame) + i, FIRST_BODY + i, shape.rgb, shape.texture)
            for i, body in enumerate(scene.bodies)
            for shape in body.shapes
        ]
        self._raster = self._rasterizer(arm + bodies, scene, supersample=self._supersample)

    def joints(self) -> tuple[np.ndarray, float]:
        """See Engine.joints."""
        if self._joints is None:
            q = np.array([state[0] for state in self._p.getJointStates(self._robot, _ARM + _FINGERS)])
            self._joints = q[:NUM_JOINTS], float(q[NUM_JOINTS:].sum())
        return self._joints

    def command(self, q_target: np.ndarray, opening: float) -> None:
        """See Engine.command."""
        gain = min(1.0, TIME_STEP / self._scene.arm_time_constant)
        self._q_target, self._opening = np.array(q_target, np.float64), float(opening)
        self._p.setJointMotorControlArray(
            self._robot,
            _ARM,
            p.POSITION_CONTROL,
            targetPositions=self._q_target.tolist(),
            forces=_ARM_FORCES,
            positionGains=[gain] * NUM_JOINTS,
            velocityGains=[1.0] * NUM_JOINTS,
        )
        fingers = [self._opening / 2] * 2
        forces = [self._scene.grip_force] * 2
        self._p.setJointMotorControlArray(self._robot, _FINGERS, p.POSITION_CONTROL, targetPositions=fingers, forces=forces)

    def advance(self, seconds: float) -> None:
        """See Engine.advance."""
        self._simulate(whole_steps(seconds, self.time_step))

    def _simulate(self, num_steps: int) -> None:
        step = self._p.stepSimulation
        for _ in range(num_steps):
            step()
        self._joints = None
        self._moves.append(_Move(self._q_target, self._opening, num_steps))

    def _handle(self, name: str) -> _Handle:
        if name not in self._bodies:
            raise ValueError(f"no body {name!r}; {did_you_mean(name, self._bodies)}")
        return self._bodies[name]

    def _where(self, name: str) -> tuple[Any, Any]:
        uid, link = self._handle(name)
        if link >= 0:
            return self._p.getLinkState(uid, link, 0, 1)[4:6]
        found = self._p.getBasePositionAndOrientation(uid)  # of the principal frame
        spread = self._spread[name]
        if not spread.position.any() and spread.quaternion[3] == 1.0:
            return found
        own = self._p.invertTransform(spread.position.tolist(), spread.quaternion.tolist())
        return self._p.multiplyTransforms(*found, *own)

    def pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """See Engine.pose."""
        position, quaternion = self._where(name)
        return np.array(position), np.array(quaternion)

    def velocity(self, name: str) -> np.ndarray:
        """See Engine.velocity."""
        uid, link = self._handle(name)
        if link < 0:
            centre, (linear, angular) = self._p.getBasePositionAndOrientation(uid)[0], self._p.getBaseVelocity(uid)
        else:
            state = self._p.getLinkState(uid, link, 1, 1)
            centre, linear, angular = state[0], state[6], state[7]
        (x, y, z), (a, b, c) = self.pose(name)[0] - centre, angular
        return np.array(linear) + [b * z - c * y, c * x - a * z, a * y - b * x]

    def joint_position(self, name: str) -> float:
        """See Engine.joint_position."""
        uid, link = self._handle(name)
        if link < 0:
            jointed = [body.name for body in self._scene.bodies if body.joint]
            raise ValueError(f"body {name!r} has no joint; {did_you_mean(name, jointed)}")
        return float(self._p.getJointState(uid, link)[0])

    def grip_forces(self) -> np.ndarray:
        """See Engine.grip_forces."""
        contacts = [self._p.getContactPoints(bodyA=self._robot, linkIndexA=finger) for finger in _FINGERS]
        return np.array([sum(c[9] for c in points if c[2] != self._robot) for points in contacts])

    def arm_force(self) -> float:
        """See Engine.arm_force."""
        contacts = self._p.getContactPoints(bodyA=self._robot)
        return float(sum(c[9] for c in contacts if c[2] != self._robot and c[3] in _ARM))

    def snapshot(self) -> np.ndarray:
        """See Engine.snapshot. Position and quaternion of the arm's base, its visible links and the bodies, [n, 7]."""
        links = [state[4] + state[5] for state in self._p.getLinkStates(self._robot, self._links, 0, 1)]
        bodies = [position + quaternion for position, quaternion in map(self._where, self._bodies)]
        return np.array([_BASE, *links, *bodies])

    def render(self, camera: Camera, rgb: bool = True, snapshot: np.ndarray | None = None) -> Frame:
        """See Engine.render."""
        return self._raster.render(self.snapshot() if snapshot is None else snapshot, camera, rgb)

    def save_state(self) -> tuple[_Move, ...]:
        """See Engine.save_state."""
        return tuple(self._moves)

    def restore_state(self, token: tuple[_Move, ...]) -> None:
        """See Engine.restore_state. Replays the episode so far, at about a thousand control steps per second.

        Bullet's own saved states leave out parts of its contact caches, and the trajectory after one is off by micrometres.
        """
        self.build(self._scene)
        for move in token:
            self.command(move.q_target, move.opening)
            self._simulate(move.num_steps)

    def close(self) -> None:
        """See Engine.close."""
        if self._client is not None:
            self._client.disconnect()
            self._client = None
