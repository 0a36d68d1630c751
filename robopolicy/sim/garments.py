"""Sleeves: open cones of cloth, the garments that they belong to, and the rule that keeps a mass-spring cloth stable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

AROUND = 16  # vertices of a ring of the mesh
EDGE = 0.039  # m, wanted distance of rings
STABLE = 0.8  # least stable physics step over sqrt(vertex mass / stiffness): clean up to 1.0, explodes above 1.3
STEEPEST = 0.85  # sine above which a vertex of the rim lies on the arc that the gripper holds


@dataclass(frozen=True)
class Garment:
    """A sleeve. rim, cuff: radius (m) of its wide end, which is held and pulled, and of its narrow one. length (m).

    mass (kg), stiffness (N/m) and bending (N/m) of its springs, damping (N s/m), friction: lateral coefficient.
    """

    rim: float
    cuff: float
    length: float
    mass: float = 0.1
    stiffness: float = 40.0
    bending: float = 1.0
    damping: float = 0.1
    friction: float = 0.3

    @property
    def num_rings(self) -> int:
        """Rings of vertices along the sleeve."""
        return max(4, round(self.length / EDGE) + 1)

    def physics_steps(self, seconds: float) -> int:
        """The least number of equal steps of explicit integration in `seconds` that keeps the springs stable."""
        vertex_mass = self.mass / (AROUND * self.num_rings)
        return math.ceil(seconds / (STABLE * math.sqrt(vertex_mass / self.stiffness)) - 1e-9)

    def scaled(self, mass: float, stiffness: float, friction: float) -> Garment:
        """The same with physical properties times these factors."""
        return replace(
            self, mass=self.mass * mass, stiffness=self.stiffness * stiffness, friction=min(self.friction * friction, 1.0)
        )


GARMENTS: Mapping[str, Garment] = {
    "tshirt": Garment(rim=0.11, cuff=0.09, length=0.22, mass=0.08),
    "shirt": Garment(rim=0.11, cuff=0.075, length=0.35),
    "slim_shirt": Garment(rim=0.095, cuff=0.068, length=0.35),
    "gown": Garment(rim=0.13, cuff=0.105, length=0.35, mass=0.12),
    "jacket": Garment(rim=0.12, cuff=0.085, length=0.43, mass=0.16, stiffness=50.0, bending=1.5, friction=0.5),
    "loose_shirt": Garment(rim=0.125, cuff=0.08, length=0.30),
}


@dataclass(frozen=True)
class Sleeve:
    """A mesh: vertices float64 [V, 3] (m), ring by ring, the rim first, and faces int [F, 3], outward counter-clockwise.

    The rim lies in the plane x = 0 around the origin, the sleeve behind it, towards -x. held: vertices of the top of the rim.
    """

    vertices: np.ndarray
    faces: np.ndarray
    held: tuple[int, ...]

    @property
    def edges(self) -> np.ndarray:
        """Vertex pairs int [E, 2] that springs hold together, each once."""
        pairs = np.concatenate([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]])
        return np.unique(np.sort(pairs, axis=1), axis=0)


def sleeve(garment: Garment) -> Sleeve:
    """The undeformed sleeve of a garment: staggered rings, regular triangles."""
    rows, j = garment.num_rings, np.arange(AROUND)
    vertices, faces = [], []
    for i in range(rows):
        t, angle = i / (rows - 1), 2 * np.pi * (j + 0.5 * (i % 2)) / AROUND
        radius = garment.rim + (garment.cuff - garment.rim) * t
        vertices.append(np.column_stack([np.full(AROUND, -garment.length * t), radius * np.cos(angle), radius * np.sin(angle)]))
    for i in range(rows - 1):
        a, b = i * AROUND + j, i * AROUND + (j + 1) % AROUND
        c, d = a + AROUND, b + AROUND
        pairs = [(a, c, b), (b, c, d)] if i % 2 == 0 else [(a, c, d), (a, d, b)]
        faces += [np.column_stack(triangle) for triangle in pairs]
    held = np.flatnonzero(np.sin(2 * np.pi * j / AROUND) > STEEPEST)
    return Sleeve(np.concatenate(vertices), np.concatenate(faces), tuple(held.tolist()))


def stretch(vertices: np.ndarray, edges: np.ndarray, rest: np.ndarray) -> float:
    """The largest length of an edge over its length at rest [E]; infinite where the cloth is not finite."""
    if not np.isfinite(vertices).all():
        return math.inf
    return float((np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1) / rest).max())
