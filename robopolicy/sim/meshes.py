"""Triangle meshes that the rasteriser draws: boxes, cylinders, spheres, and the Panda's visuals at about 500 faces a link.

The Panda's meshes come with pybullet_data. They are built once into the user's cache folder, never shipped.
"""

from __future__ import annotations

import os
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from robopolicy.geometry import pose, transform
from robopolicy.resources import cache_dir
from robopolicy.sim.description import link_indices, origin_pose, panda_urdf
from robopolicy.sim.scene import Shape

FACES_PER_LINK = 500
KEEP_MESH = 700  # meshes up to this size (the fingers) are left as they are
VIEWS, VIEW_SIZE = 40, 512  # pictures, and their side in pixels, that decide which faces of a link can be seen
MIN_PIECE = 0.0001  # share of a link's surface below which a piece goes: screws
KEEP_PIECE, MIN_FACES = 140, 16  # pieces up to this size are left as they are; larger ones keep at least MIN_FACES
AGGRESSIVENESS = 3.0  # of the edge collapse, 0 to 10: slow and careful to fast and rough
CREASE = np.radians(40.0)  # edges sharper than this stay sharp
CACHE_NAME = f"panda-visuals-v1-{FACES_PER_LINK}.npz"


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh: vertices float32 [V, 3] (m), unit normals float32 [V, 3], texture coordinates float32 [V, 2] (one
    texture per unit), faces int32 [F, 3], counter-clockwise seen from outside.
    """

    vertices: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    faces: np.ndarray

    def moved(self, T: np.ndarray) -> Mesh:
        """The same mesh in another frame, in which its own has the pose T [4, 4]."""
        vertices, normals = self.vertices @ T[:3, :3].T + T[:3, 3], self.normals @ T[:3, :3].T
        return Mesh(vertices.astype(np.float32), normals.astype(np.float32), self.uv, self.faces)


@dataclass(frozen=True)
class PandaVisual:
    """A part of one link that has one colour. link: PyBullet's link index, -1 the base; mesh in the link's URDF frame.

    rgb: colour in [0, 1], near white for the shells and dark grey for joints and fingertips: multiply it by the scene's own.
    """

    link: int
    mesh: Mesh
    rgb: tuple[float, float, float]


def _box() -> Mesh:
    """The cube from -1 to 1: 24 vertices, flat normals, uv in [0, 1] on every face."""
    vertices: list[np.ndarray] = []
    normals: list[np.ndarray] = []
    faces: list[tuple[int, int, int]] = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            n, u = np.zeros(3), np.zeros(3)
            n[axis], u[(axis + 1) % 3] = sign, 1.0
            v = np.cross(n, u)
            start = len(vertices)
            vertices += [n + a * u + b * v for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            faces += [(start, start + 1, start + 2), (start, start + 2, start + 3)]
            normals += [n] * 4
    uv = np.tile([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], (6, 1))
    return _mesh([np.array(vertices)], [np.array(normals)], [uv], [np.array(faces)])


def _cylinder(sides: int = 24) -> Mesh:
    """The cylinder of radius 1 and from -1 to 1 along z: smooth side; uv wraps once around the side and spans each end."""
    angle = np.linspace(0.0, 2 * np.pi, sides + 1)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    vertices, normals, uv, faces = [], [], [], []
    for z, v in ((-1.0, 0.0), (1.0, 1.0)):
        vertices.append(np.column_stack([ring, np.full(sides + 1, z)]))
        normals.append(np.column_stack([ring, np.zeros(sides + 1)]))
        uv.append(np.column_stack([angle / (2 * np.pi), np.full(sides + 1, v)]))
    i, up = np.arange(sides), sides + 1
    faces += [np.column_stack([i, i + 1, i + 1 + up]), np.column_stack([i, i + 1 + up, i + up])]
    for z in (-1.0, 1.0):
        start = sum(map(len, vertices))
        vertices.append(np.column_stack([ring[:-1], np.full(sides, z)]))
        normals.append(np.tile([0.0, 0.0, z], (sides, 1)))
        uv.append(0.5 + 0.5 * ring[:-1])
        fan = start + np.column_stack([np.zeros(sides - 2, int), np.arange(1, sides - 1), np.arange(2, sides)])
        faces.append(fan if z > 0 else fan[:, ::-1])
    return _mesh(vertices, normals, uv, faces)


def _sphere(sides: int = 24) -> Mesh:
    """The sphere of radius 1: uv by longitude and latitude."""
    rows = sides // 2
    latitude, longitude = np.meshgrid(
        np.linspace(-np.pi / 2, np.pi / 2, rows + 1), np.linspace(0, 2 * np.pi, sides + 1), indexing="ij"
    )
    unit = np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=-1)
    uv = np.stack([longitude / (2 * np.pi), latitude / np.pi + 0.5], axis=-1)
    row, column = (a.reshape(-1) for a in np.indices((rows, sides)))
    a = row * (sides + 1) + column
    b, c, d = a + 1, a + sides + 2, a + sides + 1
    lower, upper = np.column_stack([a, b, c])[row > 0], np.column_stack([a, c, d])[row < rows - 1]
    return _mesh([unit.reshape(-1, 3)], [unit.reshape(-1, 3)], [uv.reshape(-1, 2)], [lower, upper])


def _mesh(vertices: list[np.ndarray], normals: list[np.ndarray], uv: list[np.ndarray], faces: list[np.ndarray]) -> Mesh:
    points, directions, texture = (np.concatenate(parts).astype(np.float32) for parts in (vertices, normals, uv))
    return Mesh(points, directions, texture, np.concatenate(faces).astype(np.int32))


@cache
def _unit_mesh(kind: str) -> Mesh:
    return {"box": _box, "cylinder": _cylinder, "sphere": _sphere}[kind]()


def shape_mesh(shape: Shape) -> Mesh:
    """The mesh of a shape in its body's frame."""
    unit = _unit_mesh(shape.kind)  # a shape is this stretched along its axes, which leaves the normals as they are
    stretched = Mesh((unit.vertices * shape.size).astype(np.float32), unit.normals, unit.uv, unit.faces)
    return stretched.moved(pose(np.array(shape.position), np.array(shape.quaternion)))


def panda_visuals() -> list[PandaVisual]:
    """The Panda as pybullet_data's franka_panda/panda.urdf shows it, from the cache, built there on first use (seconds).

    A link comes as one visual per shade; links without a visual do not come at all. Safe when several processes build at once:
    each writes a file of its own and renames it into place.
    """
    return list(_load(cache_dir() / CACHE_NAME))


@lru_cache(maxsize=2)
def _load(path: Path) -> tuple[PandaVisual, ...]:
    if not path.exists():
        _save(path, list(_build(panda_urdf())))
    with np.load(path, allow_pickle=False) as data:
        return tuple(
            PandaVisual(
                link=int(link),
                mesh=Mesh(**{name: data[f"{i}.{name}"] for name in Mesh.__dataclass_fields__}),
                rgb=(float(rgb[0]), float(rgb[1]), float(rgb[2])),
            )
            for i, (link, rgb) in enumerate(zip(data["link"], data["rgb"], strict=True))
        )


def _save(path: Path, visuals: list[PandaVisual]) -> None:
    arrays = {f"{i}.{name}": getattr(v.mesh, name) for i, v in enumerate(visuals) for name in Mesh.__dataclass_fields__}
    arrays["link"] = np.array([v.link for v in visuals], np.int32)
    arrays["rgb"] = np.array([v.rgb for v in visuals], np.float32)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _build(urdf: Path) -> Iterator[PandaVisual]:
    """Decimated visuals of every link of `urdf`. PyBullet's index of a link is that of the joint it is the child of."""
    root = ET.parse(urdf).getroot()
    index_of = link_indices(root)
    for link in root.findall("link"):
        for visual in link.findall("visual"):
            mesh = visual.find("geometry/mesh")
            if mesh is None:
                continue
            path = urdf.parent / mesh.attrib["filename"].removeprefix("package://")
            T = origin_pose(visual)
            vertices, faces, colours = _read_obj(path)
            if len(faces) > KEEP_MESH:
                seen = _seen_from_outside(vertices, faces)
                faces, colours = faces[seen], colours[seen]
            parts = _shades(vertices, faces, colours)
            area = sum(_area(vertices, faces) for vertices, faces, _ in parts)
            for vertices, faces, rgb in parts:
                if len(colours) > KEEP_MESH:
                    vertices, faces = _decimate(vertices, faces, faces_per_area=FACES_PER_LINK / area)
                placed = transform(T, vertices)
                yield PandaVisual(link=index_of[link.attrib["name"]], mesh=_smooth(placed, faces), rgb=rgb)


def _read_obj(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [V, 3], triangles [F, 3] and diffuse colour per triangle [F, 3] of a Wavefront OBJ with its MTL beside it."""
    colours, vertices, faces, shades = {}, [], [], []
    material = path.with_suffix(".mtl")
    for line in material.read_text().splitlines() if material.exists() else ():
        word, *rest = line.split() or [""]
        if word == "newmtl":
            name = rest[0]
        elif word == "Kd":
            colours[name] = [float(x) for x in rest[:3]]
    current = [1.0, 1.0, 1.0]
    for line in path.read_text().splitlines():
        word, *rest = line.split() or [""]
        if word == "v":
            vertices.append([float(x) for x in rest[:3]])
        elif word == "usemtl":
            current = colours.get(rest[0], current)
        elif word == "f":
            corners = [int(corner.split("/")[0]) - 1 for corner in rest]
            for i in range(1, len(corners) - 1):
                faces.append([corners[0], corners[i], corners[i + 1]])
                shades.append(current)
    return np.array(vertices), np.array(faces, np.int64), np.array(shades)


def _shades(
    vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, tuple[float, float, float]]]:
    """The light and the dark part of a mesh, (vertices, faces, rgb) each, with equal vertices merged."""
    dark, parts = colours.mean(axis=1) < 0.5, []
    for chosen in (~dark, dark):
        if chosen.any():
            points, inverse = np.unique(np.round(vertices[faces[chosen]].reshape(-1, 3), 6), axis=0, return_inverse=True)
            triangles = inverse.reshape(-1, 3)
            i, j, k = triangles.T
            rgb = np.median(colours[chosen], axis=0)
            parts.append((points, triangles[(i != j) & (j != k) & (i != k)], (float(rgb[0]), float(rgb[1]), float(rgb[2]))))
    return parts


def _seen_from_outside(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Mask [F] of the faces that show in one of VIEWS orthographic pictures from all around, and their neighbours.

    The original links are full of hidden parts; decimation would spend faces on them and push them through the shell.
    """
    from robopolicy.sim import kernels

    centre, radius = (vertices.max(axis=0) + vertices.min(axis=0)) / 2, np.linalg.norm(np.ptp(vertices, axis=0)) / 2
    points, triangles = ((vertices - centre) / radius).astype(np.float32), faces.astype(np.int32)
    everything, seen = np.arange(len(faces), dtype=np.int32), np.zeros(len(faces), bool)
    nearness, face = np.empty((VIEW_SIZE, VIEW_SIZE), np.float32), np.empty((VIEW_SIZE, VIEW_SIZE), np.int32)
    for i in range(VIEWS):
        z = 1 - (2 * i + 1) / VIEWS  # points of a Fibonacci spiral on the sphere
        azimuth = i * np.pi * (3 - np.sqrt(5))
        right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
        direction = np.array([np.sqrt(1 - z * z) * np.cos(azimuth), np.sqrt(1 - z * z) * np.sin(azimuth), z])
        axes = np.stack([right * VIEW_SIZE / 2, np.cross(right, direction) * VIEW_SIZE / 2, direction])
        screen = (points @ axes.T + [VIEW_SIZE / 2, VIEW_SIZE / 2, 2.0]).astype(np.float32)
        nearness[:], face[:] = 0.0, kernels.NO_FACE
        kernels.rasterise(screen, triangles, everything, len(faces), VIEW_SIZE, nearness, face)
        seen[face[face >= 0]] = True
    for _ in range(2):
        touched = np.zeros(len(vertices), bool)
        touched[faces[seen]] = True
        seen = touched[faces].any(axis=1)
    return seen


def _decimate(vertices: np.ndarray, faces: np.ndarray, faces_per_area: float) -> tuple[np.ndarray, np.ndarray]:
    """Thin every connected piece out to faces_per_area (1/m^2), by quadric edge collapse (Garland and Heckbert 1997)."""
    import fast_simplification

    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    links = coo_matrix((np.ones(len(edges)), edges.T), shape=(len(vertices), len(vertices)))
    num_pieces, piece_of_vertex = connected_components(links, directed=False)
    points, triangles, count = [], [], 0
    for piece in range(num_pieces):
        used, inverse = np.unique(faces[piece_of_vertex[faces[:, 0]] == piece], return_inverse=True)
        v, f = vertices[used].astype(np.float32), inverse.reshape(-1, 3).astype(np.int32)
        share = faces_per_area * _area(v, f)
        if share < MIN_PIECE * FACES_PER_LINK:
            continue
        if len(f) > max(share, KEEP_PIECE):
            v, f = fast_simplification.simplify(v, f, target_count=max(round(share), MIN_FACES), agg=AGGRESSIVENESS)
        points.append(v)
        triangles.append(f + count)
        count += len(v)
    return np.concatenate(points).astype(np.float64), np.concatenate(triangles).astype(np.int64)


def _area(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def _smooth(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    """Mesh with smooth normals: a corner averages, by area, the faces at its vertex that turn less than CREASE from its own."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    cross = np.cross(b - a, c - a)
    area = np.linalg.norm(cross, axis=1)
    faces, cross, area = faces[area > 1e-12], cross[area > 1e-12], area[area > 1e-12]
    corner_vertex, corner_face = faces.reshape(-1), np.repeat(np.arange(len(faces)), 3)
    unit = cross / area[:, None]
    smooth_with = (unit @ unit.T > np.cos(CREASE))[np.ix_(corner_face, corner_face)]
    smooth_with &= corner_vertex[:, None] == corner_vertex[None, :]
    normals = smooth_with @ cross[corner_face]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    rows = np.column_stack([corner_vertex, np.round(normals, 4)])
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return Mesh(
        vertices=vertices[corner_vertex[first]].astype(np.float32),
        normals=normals[first].astype(np.float32),
        uv=np.zeros((len(first), 2), np.float32),
        faces=inverse.reshape(-1, 3).astype(np.int32),
    )
