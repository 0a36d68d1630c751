"""Pictures of a MuJoCo world without OpenGL: one ray a pixel by MuJoCo's own ray caster.

Shadows are those of sim.shadows, colours those of sim.lamplight.

Unlike the rasteriser of the training simulator: facets are flat, the light is a lamp at a finite distance with hard shadows,
ambient light comes from above, textures are sampled bilinearly, and edges of things and shadows are anti-aliased.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np

from robopolicy.sim import lamplight, shadows
from robopolicy.sim.scene import BACKGROUND, Camera, Frame, Light

VISIBLE_GROUP = 2  # geoms in this MuJoCo group are seen; collision geoms of other groups are not
LAMP_DISTANCE = 2.5  # m from the lamp to the middle of the table
_GROUPS = np.eye(mujoco.mjNGROUP, dtype=np.uint8)[VISIBLE_GROUP]
_SHADOW_BIAS = 2e-3  # of the way to the lamp
_EDGE = 0.15  # difference in received light from which two neighbouring pixels are anti-aliased
_SUBPIXELS = ((-0.25, -0.25), (-0.25, 0.25), (0.25, -0.25), (0.25, 0.25))  # rows and columns around the centre


@dataclass(frozen=True)
class Looks:
    """What the G geoms look like, index = geom id; the last row is what a ray meets that hits nothing.

    segmentation: uint8 [G + 1]. rgb: float64 [G + 1, 3] in [0, 1]. texture: int64 [G + 1], multiplies rgb, -1 = plain.
    bank: the textures, uint8 [K, S, S, 3]. table: geom id of the table. casters: what shadows come from.
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


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def lamp_position(light: Light, model: mujoco.MjModel, data: mujoco.MjData, table: int) -> np.ndarray:
    """Position [3] (m, base frame) of the lamp that shines on the middle of the table from light.direction."""
    middle = data.geom_xpos[table] + [0.0, 0.0, model.geom_size[table, 2]]
    return middle + LAMP_DISTANCE * _unit(np.asarray(light.direction, np.float64))


def _shade(
    model: mujoco.MjModel, data: mujoco.MjData, looks: Looks, light: Light, origin: np.ndarray, rays: np.ndarray, hits: Hits
) -> tuple[np.ndarray, np.ndarray]:
    """Colours float64 [N, 3] of what N rays hit, and how much light falls on it, float64 [N]."""
    lamp = lamplight.Lamp(
        lamp_position(light, model, data, looks.table),
        np.array(light.rgb, np.float64),
        *(float(x) for x in (light.ambient, light.diffuse, light.specular, light.shadow)),
    )
    points = origin + hits.distance[:, None] * rays
    on = np.flatnonzero(hits.geom >= 0)
    hidden = np.zeros(len(rays), np.bool_)
    hidden[on] = shadows.hidden(looks.casters, data, lamp.position, points[on], 1.0 - _SHADOW_BIAS)
    geoms = model.geom_type, model.geom_size, data.geom_xpos, data.geom_xmat
    surfaces = lamplight.Surfaces(looks.rgb, looks.texture, *geoms, looks.bank, looks.table)
    colours, received = np.empty((len(rays), 3)), np.empty(len(rays))
    lamplight.shade(surfaces, lamp, hits.geom, hits.normal, points, rays, hidden, colours, received)
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
