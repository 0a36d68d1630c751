"""PyBullet's deformable world with one sleeve, a static arm, and what holds the sleeve by the top of its rim.

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
from robopolicy.sim.holders import GRAVITY, HOLDERS, Holder
from robopolicy.spec import did_you_mean

MARGIN = 0.006  # m between cloth and skin in contact
SETTLE_S = 0.18  # s that the cloth hangs before an episode begins
LEASH = 0.03  # m that where the gripper is to be may run ahead of where it is
MAX_STRETCH = 6.0  # of an edge over its rest length, above which the cloth has exploded


class ClothWorld:
    """One deformable world, rebuilt by every build(). The same calls give the same motion, bit for bit.

    holder: of the sleeve, "gripper" or "panda" (holders.py).
    """

    def __init__(self, holder: str = "gripper") -> None:
        if holder not in HOLDERS:
            raise ValueError(f"holder={holder!r}; {did_you_mean(holder, HOLDERS)}")
        self.holder: Holder = HOLDERS[holder]()
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
        places = self.mesh.vertices[held] + rim
        self.holder.start(c, places.mean(0), self.time_step)
        self.holder.hold(self._cloth, bodies, dict(zip(held, places, strict=True)))
        self.goal, self._turned = self.holder.position, self.holder.rotation
        for _ in range(round(SETTLE_S / self.time_step)):
            self.holder.step(self.goal, self._turned, np.zeros(3), np.zeros(3))
        self.force = np.zeros(3)

    @property
    def position(self) -> np.ndarray:
        """Where the gripper is [3] (m)."""
        return self.holder.position

    @property
    def rotation(self) -> Rotation:
        """How the gripper is turned since the start."""
        return self.holder.rotation

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
        """Move where the gripper is to be by `translation` [3] (m) and the rotation vector `turn` [3] (rad), over one period.

        Afterwards `force` [3] (N) is the mean force that the cloth put on the gripper.
        """
        start, before, num = self.goal, self._turned, self.steps_per_move
        seconds, total = num * self.time_step, np.zeros(3)
        for i in range(1, num + 1):
            rotation = Rotation.from_rotvec(turn * (i / num)) * before if turn.any() else before
            total += self.holder.step(start + translation * (i / num), rotation, translation / seconds, turn / seconds)
        ahead = start + translation - self.position
        distance = float(np.linalg.norm(ahead))
        self.goal = start + translation if distance <= LEASH else self.position + ahead * (LEASH / distance)
        self._turned = rotation
        self.force = total / num

    def close(self) -> None:
        """Free the world. Safe to call twice."""
        if self._client is not None:
            self._client.disconnect()
            self._client = None
            self._folder.cleanup()


def z_towards(direction: np.ndarray) -> Rotation:
    """A rotation that takes the z axis to `direction` [3]."""
    return Rotation.align_vectors(np.asarray(direction)[None], np.array([[0.0, 0.0, 1.0]]))[0]
