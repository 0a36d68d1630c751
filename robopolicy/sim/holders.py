"""What holds a sleeve: a gripper that is simply there, or a Panda. Both measure the force that the cloth puts on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from scipy.spatial.transform import Rotation

from robopolicy.geometry import inverse, transform
from robopolicy.sim import robot
from robopolicy.sim.bullet_client import BulletClient, p
from robopolicy.sim.collision import collision_urdf, merged_visuals
from robopolicy.sim.meshes import Mesh, shape_mesh
from robopolicy.sim.scene import Shape

GRAVITY = np.array([0.0, 0.0, -9.81])
DOWN = Rotation.from_rotvec([np.pi, 0.0, 0.0])  # a hand's own z axis points away from its palm
GRIPPER_MASS = 50.0  # kg of the free body that stands for a gripper: its lost velocity measures the force on it
T_WORLD_BASE = np.array([[0.0, -1.0, 0.0, 0.2], [1.0, 0.0, 0.0, -0.34], [0.0, 0.0, 1.0, 0.85], [0.0, 0.0, 0.0, 1.0]])
_HAND = 6  # the link of collision_urdf() that holds the hand
_FINGERS = [7, 8]
_CLOSED = 0.004  # m from the middle to each finger
_TIME_CONSTANT = 0.02  # s, lag of the joint controllers
_JOINT_FORCES = [87.0] * 4 + [40.0] * 3
_IK_STEPS = 200  # at the start, from the robot's home


Visual = tuple[int, Mesh, tuple[float, float, float]]  # frame, mesh in it, colour


class Holder(Protocol):
    """A gripper in a deformable world. position [3] (m) and rotation (identity at the start) are where it is."""

    position: np.ndarray
    rotation: Rotation
    solid: bool  # whether depth images show it

    def visuals(self) -> list[Visual]:
        """What shows of it."""

    def frames(self) -> np.ndarray:
        """Position (m) and quaternion (xyzw) of its frames now, [n, 7]."""

    def start(self, client: BulletClient, position: np.ndarray, time_step: float) -> None:
        """Appear in a new world at `position`, upright."""

    def hold(self, cloth: int, bodies: Sequence[int], vertices: dict[int, np.ndarray]) -> None:
        """Take the cloth by its vertices {index: place [3] (m)}, and pass through it and where it must through `bodies`."""

    def step(self, position: np.ndarray, rotation: Rotation, velocity: np.ndarray, spin: np.ndarray) -> np.ndarray:
        """One physics step towards a pose, at `velocity` (m/s) and `spin` (rad/s); the force [3] (N) of the cloth on it."""


class FreeGripper:
    """A heavy body that gets the velocity which leads to a pose and is then put there: what it lost is the cloth's doing."""

    solid = True
    _DARK = (0.2, 0.2, 0.22)

    def visuals(self) -> list[Visual]:
        """See Holder.visuals: a palm and two fingers."""
        palm = Shape("box", (0.025, 0.045, 0.03), position=(0.0, 0.0, 0.045))
        fingers = [Shape("box", (0.008, 0.012, 0.03), position=(side * 0.01, 0.0, 0.0)) for side in (-1.0, 1.0)]
        return [(0, shape_mesh(shape), self._DARK) for shape in (palm, *fingers)]

    def frames(self) -> np.ndarray:
        """See Holder.frames."""
        return np.concatenate([self.position, self.rotation.as_quat()])[None]

    def start(self, client: BulletClient, position: np.ndarray, time_step: float) -> None:
        """See Holder.start."""
        self._p, self._dt = client, time_step
        self.position, self.rotation = position, Rotation.identity()
        shape = client.createCollisionShape(p.GEOM_SPHERE, radius=0.01)
        self._body = client.createMultiBody(GRIPPER_MASS, shape, -1, position.tolist())

    def hold(self, cloth: int, bodies: Sequence[int], vertices: dict[int, np.ndarray]) -> None:
        """See Holder.hold."""
        for other in (cloth, *bodies):
            self._p.setCollisionFilterPair(self._body, other, -1, -1, 0)
        for vertex, place in vertices.items():
            self._p.createSoftBodyAnchor(cloth, vertex, self._body, -1, (place - self.position).tolist())

    def step(self, position: np.ndarray, rotation: Rotation, velocity: np.ndarray, spin: np.ndarray) -> np.ndarray:
        """See Holder.step."""
        c = self._p
        c.resetBaseVelocity(self._body, velocity.tolist(), spin.tolist())
        c.stepSimulation()
        after = np.array(c.getBaseVelocity(self._body)[0])
        self.position, self.rotation = position, rotation
        c.resetBasePositionAndOrientation(self._body, position.tolist(), rotation.as_quat().tolist())
        return GRIPPER_MASS * ((after - velocity) / self._dt - GRAVITY)


class PandaHolder:
    """A Panda beside the person, its hand pointing down, the sleeve between its closed fingers.

    It follows commanded poses by inverse kinematics and position control, with a lag. The force is estimated as on the real
    robot: from the joint torques, less those that the robot's own weight and motion take.
    """

    solid = False  # a real one is masked by its description, and the camera is placed so that it hides little

    def visuals(self) -> list[Visual]:
        """See Holder.visuals."""
        frame = {link: i for i, link in enumerate(self._links())}
        return [(frame[link], mesh, rgb) for link, mesh, rgb in merged_visuals()]

    def _links(self) -> list[int]:
        return sorted({-1, *(link for link, _, _ in merged_visuals())})

    def frames(self) -> np.ndarray:
        """See Holder.frames."""
        base = [*T_WORLD_BASE[:3, 3], *Rotation.from_matrix(T_WORLD_BASE[:3, :3]).as_quat()]
        states = self._p.getLinkStates(self._body, self._links()[1:], 0, 1)
        return np.array([base, *(state[4] + state[5] for state in states)])

    def start(self, client: BulletClient, position: np.ndarray, time_step: float) -> None:
        """See Holder.start."""
        self._p, self._dt = client, time_step
        base = Rotation.from_matrix(T_WORLD_BASE[:3, :3]).as_quat().tolist()
        self._body = client.loadURDF(collision_urdf(), T_WORLD_BASE[:3, 3].tolist(), base, useFixedBase=True)
        self._goal = robot.inverse(robot.HOME, self._in_base(position, Rotation.identity()), _IK_STEPS)
        for joint, q in enumerate([*self._goal, _CLOSED, _CLOSED]):
            client.resetJointState(self._body, joint, q)
        for link in range(-1, client.getNumJoints(self._body)):
            client.changeDynamics(self._body, link, linearDamping=0, angularDamping=0, jointDamping=0)
        self._measure()
        self._velocity = np.zeros(robot.NUM_JOINTS + len(_FINGERS))

    def hold(self, cloth: int, bodies: Sequence[int], vertices: dict[int, np.ndarray]) -> None:
        """See Holder.hold."""
        for link in range(-1, self._p.getNumJoints(self._body)):
            self._p.setCollisionFilterPair(self._body, cloth, link, -1, 0)
        centre, quaternion = self._p.getLinkState(self._body, _HAND)[:2]
        turned = Rotation.from_quat(quaternion).inv()
        for vertex, place in vertices.items():
            self._p.createSoftBodyAnchor(cloth, vertex, self._body, _HAND, turned.apply(place - np.array(centre)).tolist())

    def step(self, position: np.ndarray, rotation: Rotation, velocity: np.ndarray, spin: np.ndarray) -> np.ndarray:
        """See Holder.step."""
        c = self._p
        self._goal = robot.inverse(self._goal, self._in_base(position, rotation), 2)
        gain = min(1.0, self._dt / _TIME_CONSTANT)
        joints = list(range(robot.NUM_JOINTS))
        options = {"positionGains": [gain] * robot.NUM_JOINTS, "velocityGains": [1.0] * robot.NUM_JOINTS}
        c.setJointMotorControlArray(
            self._body, joints, p.POSITION_CONTROL, targetPositions=self._goal.tolist(), forces=_JOINT_FORCES, **options
        )
        c.setJointMotorControlArray(self._body, _FINGERS, p.POSITION_CONTROL, targetPositions=[_CLOSED] * 2, forces=[40.0] * 2)
        c.stepSimulation()
        self._measure()
        return self._external_force()

    def _external_force(self) -> np.ndarray:
        """Force [3] (N, world frame) on the hand that explains the torques: J^T F = inverse dynamics - torques."""
        states = self._p.getJointStates(self._body, [*range(robot.NUM_JOINTS), *_FINGERS])
        q, velocity, torque = ([state[i] for state in states] for i in (0, 1, 3))
        acceleration = (np.array(velocity) - self._velocity) / self._dt
        self._velocity = np.array(velocity)
        own = self._p.calculateInverseDynamics(self._body, q, velocity, acceleration.tolist())
        gap = (np.array(own) - torque)[: robot.NUM_JOINTS]
        wrench = np.linalg.lstsq(robot.jacobian(np.array(q[: robot.NUM_JOINTS])).T, gap, rcond=None)[0]
        return T_WORLD_BASE[:3, :3] @ wrench[:3]

    def _in_base(self, position: np.ndarray, rotation: Rotation) -> np.ndarray:
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = (rotation * DOWN).as_matrix(), position
        return inverse(T_WORLD_BASE) @ T

    def joints(self) -> np.ndarray:
        """Joint positions [7] (rad)."""
        return np.array([state[0] for state in self._p.getJointStates(self._body, list(range(robot.NUM_JOINTS)))])

    def _measure(self) -> None:
        T = robot.forward(self.joints())
        self.position = transform(T_WORLD_BASE, T[:3, 3])
        self.rotation = Rotation.from_matrix(T_WORLD_BASE[:3, :3] @ T[:3, :3]) * DOWN.inv()


HOLDERS: dict[str, Callable[[], Holder]] = {"gripper": FreeGripper, "panda": PandaHolder}
