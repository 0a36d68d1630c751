"""How the mass of a body is spread: what both engines are told, so that the same body moves in the same way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from robopolicy.sim.scene import Body, Shape


@dataclass(frozen=True)
class MassProperties:
    """The principal frame of a body, in the body's own frame, and the moments of inertia (kg m2, [3]) about its axes.

    position [3] (m) is the centre of mass. quaternion [4] (xyzw) is the identity where the body's own axes are principal.
    """

    position: np.ndarray
    quaternion: np.ndarray
    inertia: np.ndarray


def volume(shape: Shape) -> float:
    """Volume of a shape (m3)."""
    return float(np.prod(shape.size)) * {"box": 8.0, "cylinder": 2.0 * np.pi, "sphere": 4.0 / 3.0 * np.pi}[shape.kind]


def shape_masses(body: Body) -> np.ndarray:
    """The share (kg) of body.mass in each of its shapes, by volume, [S]. Where shapes overlap, both count."""
    volumes = np.array([volume(shape) for shape in body.shapes])
    return body.mass * volumes / volumes.sum()


def mass_properties(body: Body) -> MassProperties:
    """Centre of mass, principal axes and moments of a body of solid shapes, by the parallel axis theorem."""
    masses = shape_masses(body)
    centres = np.array([shape.position for shape in body.shapes])
    centre = masses @ centres / body.mass if body.mass > 0 else centres.mean(axis=0)
    inertia = np.zeros((3, 3))
    for mass, shape, at in zip(masses, body.shapes, centres - centre, strict=True):
        axes = Rotation.from_quat(shape.quaternion).as_matrix()
        inertia += axes @ np.diag(mass * _unit_inertia(shape)) @ axes.T + mass * (at @ at * np.eye(3) - np.outer(at, at))
    if np.abs(inertia - np.diag(np.diag(inertia))).max() <= 1e-9 * inertia.max():
        return MassProperties(centre, np.array([0.0, 0.0, 0.0, 1.0]), np.diag(inertia).copy())
    moments, axes = np.linalg.eigh(inertia)
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    return MassProperties(centre, Rotation.from_matrix(axes).as_quat(), moments)


def _unit_inertia(shape: Shape) -> np.ndarray:
    """Principal moments [3] (m2) of a solid shape of 1 kg about its centre."""
    squares = np.square(shape.size)
    if shape.kind == "sphere":
        return 0.4 * squares
    if shape.kind == "box":
        return (squares.sum() - squares) / 3.0
    radius, height = squares[0], squares[2]
    return np.array([radius / 4.0 + height / 3.0] * 2 + [radius / 2.0])
