"""What the rasteriser's kernels know about a set of rigid meshes before they see where those are: constants of every face."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np

from robopolicy.sim.kernels import HALF, OPTIONS, ZERO
from robopolicy.sim.meshes import Mesh

SLIVER = 1e-5  # height over length of a face below which nothing is interpolated across it

_kernel = numba.njit(cache=True, **OPTIONS)


class Geometry(NamedTuple):
    """All meshes, one after the other, each in its own frame.

    points [3, V]; faces [F, 3]; planes [4, F]: outward unit normal n and n . p of a face's points; surface [F, 24]: see
    _prepare(); vertex_start, face_start [K + 1]; mesh_of_face [F]; spheres [K, 4]: centre and radius around a mesh;
    frame [K]: which of the poses moves it; segmentation [K].
    """

    points: np.ndarray
    faces: np.ndarray
    planes: np.ndarray
    surface: np.ndarray
    vertex_start: np.ndarray
    face_start: np.ndarray
    mesh_of_face: np.ndarray
    spheres: np.ndarray
    frame: np.ndarray
    segmentation: np.ndarray


def build(meshes: Sequence[Mesh], frame: Sequence[int], segmentation: Sequence[int]) -> Geometry:
    """The geometry of K meshes; frame [K] and segmentation [K] as in Geometry."""
    vertex_start = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    face_start = np.cumsum([0, *(len(m.faces) for m in meshes)])
    faces = np.empty((face_start[-1], 3), np.int32)
    for mesh, vertex, face in zip(meshes, vertex_start, face_start, strict=False):
        faces[face : face + len(mesh.faces)] = mesh.faces + vertex
    points, normals = _columns([m.vertices for m in meshes], 3), _columns([m.normals for m in meshes], 3)
    planes, surface = np.empty((4, len(faces)), np.float32), np.zeros((len(faces), 24), np.float32)
    _prepare(points, normals, _columns([m.uv for m in meshes], 2), faces, planes, surface)
    spheres = np.empty((len(meshes), 4), np.float32)
    _surround(points, vertex_start, spheres)
    return Geometry(
        points=points,
        faces=faces,
        planes=planes,
        surface=surface,
        vertex_start=vertex_start,
        face_start=face_start,
        mesh_of_face=np.repeat(np.arange(len(meshes), dtype=np.int32), np.diff(face_start)),
        spheres=spheres,
        frame=np.array(frame, np.int32),
        segmentation=np.array(segmentation, np.uint8),
    )


def _columns(arrays: list[np.ndarray], num: int) -> np.ndarray:
    """Rows [n, num] of all arrays, one after the other, transposed."""
    return np.ascontiguousarray(np.concatenate([np.empty((0, num), np.float32), *arrays]).T, np.float32)


@_kernel
def _prepare(points, normals, uv, faces, planes, surface):
    """Constants of every face into planes [4, F] and surface [F, 24].

    surface holds five rows of an affine map from a point of the face (in its mesh's frame) to normal x, y, z and texture
    coordinates u, v: value = row[:3] . p + row[3]. Element 20 is the texture units per metre.
    """
    for f in range(faces.shape[0]):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        ox, oy, oz = float(points[0, i]), float(points[1, i]), float(points[2, i])
        ax, ay, az = points[0, j] - ox, points[1, j] - oy, points[2, j] - oz
        bx, by, bz = points[0, k] - ox, points[1, k] - oy, points[2, k] - oz
        nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        area = max(np.sqrt(nx * nx + ny * ny + nz * nz), 1e-20)
        planes[0, f], planes[1, f], planes[2, f] = nx / area, ny / area, nz / area
        planes[3, f] = (nx * ox + ny * oy + nz * oz) / area
        aa, ab, bb = ax * ax + ay * ay + az * az, ax * bx + ay * by + az * bz, bx * bx + by * by + bz * bz
        scale = 1 / (area * area) if area > SLIVER * max(aa, bb) else 0.0
        g1x, g1y, g1z = (bb * ax - ab * bx) * scale, (bb * ay - ab * by) * scale, (bb * az - ab * bz) * scale
        g2x, g2y, g2z = (aa * bx - ab * ax) * scale, (aa * by - ab * ay) * scale, (aa * bz - ab * az) * scale
        for row in range(5):
            values = normals[row] if row < 3 else uv[row - 3]
            first, d1, d2 = float(values[i]), values[j] - float(values[i]), values[k] - float(values[i])
            x, y, z = d1 * g1x + d2 * g2x, d1 * g1y + d2 * g2y, d1 * g1z + d2 * g2z
            surface[f, 4 * row], surface[f, 4 * row + 1], surface[f, 4 * row + 2] = x, y, z
            middle = (d1 + d2) / 3 if scale == 0 else 0.0
            surface[f, 4 * row + 3] = first + middle - (x * ox + y * oy + z * oz)
        covered = abs((uv[0, j] - uv[0, i]) * (uv[1, k] - uv[1, i]) - (uv[1, j] - uv[1, i]) * (uv[0, k] - uv[0, i]))
        surface[f, 20] = np.sqrt(covered / area)


@_kernel
def _surround(points, vertex_start, spheres):
    """Centre and radius of a sphere around every mesh into spheres [K, 4]."""
    for k in range(spheres.shape[0]):
        start, stop = vertex_start[k], vertex_start[k + 1]
        for axis in range(3):
            low, high = np.float32(np.inf), np.float32(-np.inf)
            for i in range(start, stop):
                low, high = min(low, points[axis, i]), max(high, points[axis, i])
            spheres[k, axis] = HALF * (low + high)
        largest = ZERO
        for i in range(start, stop):
            x, y, z = points[0, i] - spheres[k, 0], points[1, i] - spheres[k, 1], points[2, i] - spheres[k, 2]
            largest = max(largest, x * x + y * y + z * z)
        spheres[k, 3] = np.float32(1.00001) * np.sqrt(largest) + np.float32(1e-6)
