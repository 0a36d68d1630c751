"""Pictures of a MuJoCo world without OpenGL: one ray a pixel by MuJoCo's own ray caster, shading by numpy, shadows by
sim.shadows.

Unlike the rasteriser of the training simulator: facets are flat, the light is a lamp at a finite distance with hard shadows,
ambient light comes from above, textures are sampled bilinearly, and edges of things and shadows are anti-aliased.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from robopolicy.sim import shadows
from robopolicy.sim.scene import BACKGROUND, Camera, Frame, Light

VISIBLE_GROUP = 2  # geoms in this MuJoCo group are seen; collision geoms of other groups are not
TABLE_TILE = 0.6  # m of table that one repetition of a texture covers
BACKGROUND_TILES = 4  # times that a texture goes around the horizon; it is seen by direction alone
LAMP_DISTANCE = 2.5  # m from the lamp to the middle of the table
_GROUPS = np.eye(mujoco.mjNGROUP, dtype=np.uint8)[VISIBLE_GROUP]
_SHADOW_BIAS = 2e-3  # of the way to the lamp
_EDGE = 0.15  # difference in received light from which two neighbouring pixels are anti-aliased
_SUBPIXELS = ((-0.25, -0.25), (-0.25, 0.25), (0.25, -0.25), (0.25, 0.25))  # rows and columns around the centre
_SHININESS = 40.0


@dataclass(frozen=True)
class Looks:
    """What the G geoms look like, index = geom id; the last row is what a ray meets that hits nothing.

    segmentation: uint8 [G + 1]. rgb: float [G + 1, 3] in [0, 1]. texture: int [G + 1], multiplies rgb, -1 = plain; no meshes.
    bank: the textures, float [K, S, S, 3] in [0, 1]. table: geom id of the table, whose texture repeats every TABLE_TILE.
    casters: what shadows come from.
    """

    segmentation: np.ndarray
    rgb: np.ndarray
    texture: np.ndarray
    bank: np.ndarray
    table: int
    casters: shadows.Casters


@dataclass(frozen=True)
class Hits:
    """Where N rays end: geom int32 [N] (-1 = nowhere), distance float64 [N] in lengths of the ray, normal float64 [N, 3]."""

    geom: np.ndarray
    distance: np.ndarray
    normal: np.ndarray


def pixel_rays(camera: Camera, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Rays [N, 3] (base frame) through image positions in pixels, 0.5 = centre of the first.

    Their component along the optical axis is 1, so a distance in lengths of the ray is a depth in metres.
    """
    x = (columns - camera.width * camera.center[0]) / camera.focal
    y = (rows - camera.height * camera.center[1]) / camera.focal
    return np.stack([x, y, np.ones_like(x)], axis=-1) @ camera.T_base_cam[:3, :3].T


def cast(model: mujoco.MjModel, data: mujoco.MjData, origin: np.ndarray, rays: np.ndarray, near: float = 0.0) -> Hits:
    """First visible surface on each of the rays [N, 3] from `origin` [3] that is at least `near` lengths of the ray away."""
    n = len(rays)
    geom, distance, normal = np.full(n, -1, np.int32), np.full(n, -1.0), np.zeros(3 * n)
    if n:
        vectors = np.ascontiguousarray(rays, np.float64).reshape(-1)
        mujoco.mj_multiRay(model, data, origin, vectors, _GROUPS, True, -1, geom, distance, normal, n, mujoco.mjMAXVAL)
    hits = Hits(geom, distance, normal.reshape(n, 3))
    for i in np.flatnonzero((geom >= 0) & (distance < near)).tolist():
        _recast(model, data, origin + near * rays[i], rays[i], near, hits, i)
    return hits


def _recast(
    model: mujoco.MjModel, data: mujoco.MjData, start: np.ndarray, ray: np.ndarray, near: float, hits: Hits, i: int
) -> None:
    """Write into hits[i] what the ray meets that starts `near` lengths further on."""
    geom = np.empty(1, np.int32)
    beyond = mujoco.mj_ray(model, data, start, ray, _GROUPS, True, -1, geom, hits.normal[i])
    hits.geom[i] = geom[0]
    hits.distance[i] = near + beyond if geom[0] >= 0 else -1.0


def _bilinear(bank: np.ndarray, texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Colours [N, 3] of the textures [N] of `bank` at uv [N, 2], which repeat with period 1."""
    size = bank.shape[1]
    at = (uv % 1.0) * size - 0.5
    low = np.floor(at).astype(np.int64)
    (u1, v1), (u, v) = (at - low).T[:, :, None], low.T
    rows, columns = (v % size, (v + 1) % size), (u % size, (u + 1) % size)
    upper = bank[texture, rows[0], columns[0]] * (1 - u1) + bank[texture, rows[0], columns[1]] * u1
    lower = bank[texture, rows[1], columns[0]] * (1 - u1) + bank[texture, rows[1], columns[1]] * u1
    return upper * (1 - v1) + lower * v1


def _uv(model: mujoco.MjModel, data: mujoco.MjData, geom: np.ndarray, points: np.ndarray, table: int) -> np.ndarray:
    """Texture coordinates [N, 2] of points [N, 3] on the geoms [N].

    A face of a box and an end of a cylinder span [0, 1]; the side of a cylinder and a sphere have one turn about z as u, from
    bottom to top as v. The table has one unit a TABLE_TILE.
    """
    local = np.einsum("nji,nj->ni", data.geom_xmat[geom].reshape(-1, 3, 3), points - data.geom_xpos[geom])
    size, kind, uv = model.geom_size[geom], model.geom_type[geom], np.zeros((len(geom), 2))
    for type_, uv_of in _UV.items():
        of = np.flatnonzero((kind == type_) & (geom != table))
        if of.size:
            uv[of] = uv_of(local[of], size[of])
    on_table = geom == table
    uv[on_table] = local[on_table, :2] / TABLE_TILE
    return uv


def _box_uv(local: np.ndarray, size: np.ndarray) -> np.ndarray:
    face = np.argmax(np.abs(local) / size, axis=1)
    axes = np.array([[1, 2], [0, 2], [0, 1]])[face]
    return np.take_along_axis(local, axes, 1) / (2 * np.take_along_axis(size, axes, 1)) + 0.5


def _cylinder_uv(local: np.ndarray, size: np.ndarray) -> np.ndarray:
    radius, half_height = size[:, :1], size[:, 1]
    side = np.stack([_turn(local), local[:, 2] / (2 * half_height) + 0.5], axis=1)
    on_end = np.abs(local[:, 2]) / half_height > np.linalg.norm(local[:, :2], axis=1) / radius[:, 0]
    return np.where(on_end[:, None], local[:, :2] / (2 * radius) + 0.5, side)


def _sphere_uv(local: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.stack([_turn(local), _latitude(local)], axis=1)


def _turn(vectors: np.ndarray) -> np.ndarray:
    """Angle about z from x, in turns."""
    return np.arctan2(vectors[:, 1], vectors[:, 0]) / (2 * np.pi)


def _latitude(vectors: np.ndarray) -> np.ndarray:
    """0 straight down to 1 straight up."""
    return np.arctan2(vectors[:, 2], np.hypot(vectors[:, 0], vectors[:, 1])) / np.pi + 0.5


_UV = {
    int(mujoco.mjtGeom.mjGEOM_BOX): _box_uv,
    int(mujoco.mjtGeom.mjGEOM_CYLINDER): _cylinder_uv,
    int(mujoco.mjtGeom.mjGEOM_SPHERE): _sphere_uv,
}


def _albedo(model: mujoco.MjModel, data: mujoco.MjData, looks: Looks, geom: np.ndarray, points: np.ndarray) -> np.ndarray:
    rgb = looks.rgb[geom]
    textured = np.flatnonzero(looks.texture[geom] >= 0)
    if textured.size:
        on = geom[textured]
        uv = _uv(model, data, on, points[textured], looks.table)
        rgb[textured] *= _bilinear(looks.bank, looks.texture[on], uv)
    return rgb


def _background(looks: Looks, rays: np.ndarray) -> np.ndarray:
    """Colours [N, 3] of what N rays see that hit nothing.

    Its texture goes BACKGROUND_TILES times around the horizon, by azimuth and height (Lambert's cylindrical projection).
    """
    if looks.texture[-1] < 0:
        return np.repeat(looks.rgb[-1:], len(rays), axis=0)
    uv = np.stack([_turn(rays), -rays[:, 2] / (2 * np.pi * np.linalg.norm(rays, axis=1))], axis=1) * BACKGROUND_TILES
    return looks.rgb[-1] * _bilinear(looks.bank, np.full(len(rays), looks.texture[-1]), uv)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def lamp_position(light: Light, model: mujoco.MjModel, data: mujoco.MjData, table: int) -> np.ndarray:
    """Position [3] (m, base frame) of the lamp that shines on the middle of the table from light.direction."""
    middle = data.geom_xpos[table] + [0.0, 0.0, model.geom_size[table, 2]]
    return middle + LAMP_DISTANCE * _unit(np.asarray(light.direction, np.float64))


def _shade(
    model: mujoco.MjModel, data: mujoco.MjData, looks: Looks, light: Light, origin: np.ndarray, rays: np.ndarray, hits: Hits
) -> tuple[np.ndarray, np.ndarray]:
    """Colours float [N, 3] of what N rays hit, and how much light falls on it, float [N].

    Lambert and Blinn-Phong reflection of the lamp, its shadows, and ambient light that is stronger from above.
    """
    colours, received = np.empty((len(rays), 3)), np.zeros(len(rays))
    off, on = np.flatnonzero(hits.geom < 0), np.flatnonzero(hits.geom >= 0)
    colours[off] = _background(looks, rays[off])
    geom, normal, ray = hits.geom[on], hits.normal[on], rays[on]
    points = origin + hits.distance[on, None] * ray
    normal = np.where(np.einsum("ni,ni->n", normal, ray)[:, None] > 0, -normal, normal)

    lamp = lamp_position(light, model, data, looks.table)
    from_lamp = points - lamp
    to_lamp = -_unit(from_lamp)
    lambert = np.maximum(np.einsum("ni,ni->n", normal, to_lamp), 0.0)
    facing = np.flatnonzero(lambert > 0)
    blocked = shadows.hidden(looks.casters, data, lamp, points[facing], 1.0 - _SHADOW_BIAS)
    direct = (lambert > 0).astype(np.float64)
    direct[facing] -= light.shadow * blocked
    half = _unit(to_lamp - _unit(ray))
    gloss = direct * np.maximum(np.einsum("ni,ni->n", normal, half), 0.0) ** _SHININESS

    received[on] = light.ambient * (0.8 + 0.2 * normal[:, 2]) + light.diffuse * lambert * direct
    albedo = _albedo(model, data, looks, geom, points)
    colours[on] = (albedo * received[on, None] + light.specular * gloss[:, None]) * light.rgb
    return colours, received


def _edges(geom: np.ndarray, received: np.ndarray) -> np.ndarray:
    """Which pixels differ from a neighbour in the geom seen [H, W] or in the light on it [H, W]: bool [H, W]."""
    edges = np.zeros(geom.shape, bool)
    for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = (geom[a] != geom[b]) | (np.abs(received[a] - received[b]) > _EDGE)
        edges[a] |= differs
        edges[b] |= differs
    return edges


def render(model: mujoco.MjModel, data: mujoco.MjData, camera: Camera, looks: Looks, light: Light, rgb: bool = True) -> Frame:
    """What `camera` sees of the geoms in VISIBLE_GROUP at data's last kinematics.

    Surfaces nearer than camera.near are cut away, also those of a geom that the camera is inside of. Depth and segmentation
    are those of pixel centres; beyond camera.far depth is 0. With rgb=False the colours are zeros.
    """
    shape = (camera.height, camera.width)
    rows, columns = (axis.reshape(-1) + 0.5 for axis in np.indices(shape))
    origin = np.ascontiguousarray(camera.T_base_cam[:3, 3], np.float64)
    rays = pixel_rays(camera, rows, columns)
    hits = cast(model, data, origin, rays, camera.near)
    seen = (hits.geom >= 0) & (hits.distance <= camera.far)
    depth = np.where(seen, hits.distance, 0.0).astype(np.float32).reshape(shape)
    segmentation = np.where(seen, looks.segmentation[hits.geom], BACKGROUND).astype(np.uint8).reshape(shape)
    if not rgb:
        return Frame(np.zeros((*shape, 3), np.uint8), depth, segmentation)

    colours, received = _shade(model, data, looks, light, origin, rays, hits)
    edge = np.flatnonzero(_edges(hits.geom.reshape(shape), received.reshape(shape)))
    offsets = np.array(_SUBPIXELS)[:, :, None]
    fine = pixel_rays(camera, (rows[edge] + offsets[:, 0]).reshape(-1), (columns[edge] + offsets[:, 1]).reshape(-1))
    fine_colours, _ = _shade(model, data, looks, light, origin, fine, cast(model, data, origin, fine, camera.near))
    colours[edge] = fine_colours.reshape(len(_SUBPIXELS), -1, 3).mean(axis=0)
    return Frame((np.clip(colours, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8).reshape(*shape, 3), depth, segmentation)
