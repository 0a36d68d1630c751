"""PyBullet's deformable world with one sleeve, a static arm and a gripper that holds the sleeve by the top of its rim.

PyBullet 3.2.7 has traps: a removed body with anchors corrupts the heap, saved states leave the cloth out, and a mesh file is
cached by its name. So a world is rebuilt for every episode, branches by replaying, and caching is off.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from robopolicy.sim.arm import Arm, Capsule
from robopolicy.sim.bullet_client import BulletClient, p, quiet
from robopolicy.sim.garments import AROUND, Garment, sleeve, stretch

GRAVITY = np.array([0.0, 0.0, -9.81])
MARGIN = 0.006  # m between cloth and skin in contact
GRIPPER_MASS = 50.0  # kg of the free body that stands for the gripper: its lost velocity measures the force on it
SETTLE_S = 0.18  # s that the cloth hangs before an episode begins
_NO_SPIN = np.zeros(3)
MAX_STRETCH = 6.0  # of an edge over its rest length, above which the cloth has exploded


class ClothWorld:
    """One deformable world, rebuilt by every build(). The same calls give the same motion, bit for bit."""

    def __init__(self) -> None:
        with quiet():
            self._client: BulletClient | None = BulletClient()
        self._folder = tempfile.TemporaryDirectory(prefix="robopolicy_cloth_")
        self._file = Path(self._folder.name) / "sleeve.obj"

    @property
    def _p(self) -> BulletClient:
        if self._client is None:
            raise RuntimeError("the simulator is closed: make a new environment")
        return self._client

    def build(self, garment: Garment, arm: Arm, rim: np.ndarray, period: float) -> None:
        """Hang the sleeve with the middle of its rim at `rim` [3] (m) and let it settle. period: s of one move()."""
        c = self._p
        self.garment, self.arm, self.mesh = garment, arm, sleeve(garment)
        self.steps_per_move = garment.physics_steps(period)
        self.time_step = period / self.steps_per_move
        self._edges = self.mesh.edges
        self._rest = np.linalg.norm(np.subtract(*self.mesh.vertices[self._edges.T]), axis=1)
        c.resetSimulation(p.RESET_USE_DEFORMABLE_WORLD)
        c.setGravity(*GRAVITY.tolist())
        c.setTimeStep(self.time_step)
        c.setPhysicsEngineParameter(sparseSdfVoxelSize=0.25)
        c.setPhysicsEngineParameter(enableFileCaching=0)
        bodies = [self._capsule(capsule) for capsule in arm.capsules]
        self._cloth = self._load(garment, rim)
        held = list(self.mesh.held)
        self.rotation = Rotation.identity()
        self.position = self.mesh.vertices[held].mean(0) + rim
        shape = c.createCollisionShape(p.GEOM_SPHERE, radius=0.01)
        self._gripper = c.createMultiBody(GRIPPER_MASS, shape, -1, self.position.tolist())
        for other in [self._cloth, *bodies]:
            c.setCollisionFilterPair(self._gripper, other, -1, -1, 0)
        for vertex in held:
            offset = self.mesh.vertices[vertex] + rim - self.position
            c.createSoftBodyAnchor(self._cloth, vertex, self._gripper, -1, offset.tolist())
        for _ in range(round(SETTLE_S / self.time_step)):
            self._step(self.position, self.rotation, _NO_SPIN)
        self.force = np.zeros(3)

    def _capsule(self, capsule: Capsule) -> int:
        c, axis = self._p, capsule.end - capsule.start
        length = float(np.linalg.norm(axis))
        shape = c.createCollisionShape(p.GEOM_CAPSULE, radius=capsule.radius, height=length)
        middle = (capsule.start + capsule.end) / 2
        return c.createMultiBody(0, shape, -1, middle.tolist(), z_towards(axis).as_quat().tolist())

    def _load(self, garment: Garment, rim: np.ndarray) -> int:
        lines = ["v {:.6f} {:.6f} {:.6f}\n".format(*vertex) for vertex in self.mesh.vertices]
        lines += ["f {} {} {}\n".format(*(face + 1)) for face in self.mesh.faces]
        self._file.write_text("".join(lines))
        return self._p.loadSoftBody(
            str(self._file),
            basePosition=rim.tolist(),
            scale=1,
            mass=garment.mass,
            useNeoHookean=0,
            useMassSpring=1,
            useBendingSprings=1,
            springElasticStiffness=garment.stiffness,
            springDampingStiffness=garment.damping,
            springDampingAllDirections=1,
            springBendingStiffness=garment.bending,
            useSelfCollision=0,
            useFaceContact=1,
            collisionMargin=MARGIN,
            frictionCoeff=garment.friction,
        )

    def vertices(self) -> np.ndarray:
        """The cloth's vertices float64 [V, 3] (m), in the order of `mesh`."""
        return np.array(self._p.getMeshData(self._cloth, -1, flags=p.MESH_DATA_SIMULATION_MESH)[1])

    def rim(self, vertices: np.ndarray) -> np.ndarray:
        """The ring [AROUND, 3] of the opening, of vertices()."""
        return vertices[:AROUND]

    def exploded(self, vertices: np.ndarray) -> bool:
        """Whether the cloth is no cloth any more: not finite, or stretched beyond MAX_STRETCH."""
        return stretch(vertices, self._edges, self._rest) > MAX_STRETCH

    def move(self, translation: np.ndarray, turn: np.ndarray) -> None:
        """Move the gripper by `translation` [3] (m) and the rotation vector `turn` [3] (rad), evenly over one period.

        Afterwards `force` [3] (N) is the mean force that the cloth put on the gripper.
        """
        start, before, num = self.position, self.rotation, self.steps_per_move
        spin, total = turn / (num * self.time_step), np.zeros(3)
        for i in range(1, num + 1):
            rotation = Rotation.from_rotvec(turn * (i / num)) * before if turn.any() else before
            total += self._step(start + translation * (i / num), rotation, spin)
        self.force = total / num

    def _step(self, position: np.ndarray, rotation: Rotation, spin: np.ndarray) -> np.ndarray:
        """One physics step that takes the gripper to a pose, turning at `spin` [3] (rad/s); the cloth's force [3] (N) on it.

        The gripper gets the velocity that leads there and is then put there: what it lost on the way is the cloth's doing.
        """
        c, dt = self._p, self.time_step
        velocity = (position - self.position) / dt
        c.resetBaseVelocity(self._gripper, velocity.tolist(), spin.tolist())
        c.stepSimulation()
        after = np.array(c.getBaseVelocity(self._gripper)[0])
        self.position, self.rotation = position, rotation
        c.resetBasePositionAndOrientation(self._gripper, position.tolist(), rotation.as_quat().tolist())
        return GRIPPER_MASS * ((after - velocity) / dt - GRAVITY)

    def close(self) -> None:
        """Free the world. Safe to call twice."""
        if self._client is not None:
            self._client.disconnect()
            self._client = None
            self._folder.cleanup()


def z_towards(direction: np.ndarray) -> Rotation:
    """A rotation that takes the z axis to `direction` [3]."""
    return Rotation.align_vectors(np.asarray(direction)[None], np.array([[0.0, 0.0, 1.0]]))[0]
