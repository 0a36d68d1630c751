"""Colours of what rays hit, for sim.raycast: textures, a lamp at a finite distance, and ambient light from above.

Loops compiled by numba and cached on disk; every ray is on its own, and nothing here keeps state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mujoco
import numba
import numpy as np

TABLE_TILE = 0.6  # m of table that one repetition of a texture covers
BACKGROUND_TILES = 4  # times that a texture goes around the horizon; it is seen by direction alone
_BOX, _CYLINDER = int(mujoco.mjtGeom.mjGEOM_BOX), int(mujoco.mjtGeom.mjGEOM_CYLINDER)
_SHININESS = 40
_TURN = 2.0 * np.pi
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"nsz", "arcp", "contract", "afn", "reassoc"}}
_kernel = numba.njit(cache=True, **_OPTIONS)
_inline = numba.njit(forceinline=True, **_OPTIONS)


class Surfaces(NamedTuple):
    """The G geoms: rgb float64 [G + 1, 3] and texture int64 [G + 1], whose last row is the background; MuJoCo's type [G],
    size [G, 3], position [G, 3] and rotation [G, 9]; bank uint8 [K, S, S, 3]; table: the geom whose texture repeats.
    """

    rgb: np.ndarray
    texture: np.ndarray
    kind: np.ndarray
    size: np.ndarray
    position: np.ndarray
    rotation: np.ndarray
    bank: np.ndarray
    table: int


class Lamp(NamedTuple):
    """position [3] (m, base frame) and rgb [3] of the lamp; the rest is as in scene.Light."""

    position: np.ndarray
    rgb: np.ndarray
    ambient: float
    diffuse: float
    specular: float
    shadow: float


@_kernel
def shade(surfaces, lamp, geom, normals, points, rays, hidden, colours, received):
    """Colours [N, 3] of what N rays hit, and how much light falls on it, received [N]: Lambert and Blinn-Phong.

    geom [N] (-1 = nothing), normals [N, 3] (either side), points [N, 3], hidden bool [N] (from the lamp): where the rays end.
    """
    for n in range(len(geom)):
        x, y, z = rays[n, 0], rays[n, 1], rays[n, 2]
        length = 1.0 / np.sqrt(x * x + y * y + z * z)
        x, y, z = x * length, y * length, z * length
        g = geom[n]
        red, green, blue = surfaces.rgb[g, 0], surfaces.rgb[g, 1], surfaces.rgb[g, 2]
        if surfaces.texture[g] >= 0:
            u, v = _sky_uv(x, y, z) if g < 0 else _uv(surfaces, g, points[n, 0], points[n, 1], points[n, 2])
            r, b, c = _texel(surfaces.bank, surfaces.texture[g], u, v)
            red, green, blue = red * r, green * b, blue * c
        if g < 0:
            colours[n, 0], colours[n, 1], colours[n, 2], received[n] = red, green, blue, 0.0
            continue
        nx, ny, nz = normals[n, 0], normals[n, 1], normals[n, 2]
        if nx * x + ny * y + nz * z > 0.0:
            nx, ny, nz = -nx, -ny, -nz
        lx, ly, lz = lamp.position[0] - points[n, 0], lamp.position[1] - points[n, 1], lamp.position[2] - points[n, 2]
        length = 1.0 / np.sqrt(lx * lx + ly * ly + lz * lz)
        lx, ly, lz = lx * length, ly * length, lz * length
        lambert, light, gloss = nx * lx + ny * ly + nz * lz, lamp.ambient * (0.8 + 0.2 * nz), 0.0
        if lambert > 0.0:
            direct = 1.0 - lamp.shadow if hidden[n] else 1.0
            light += lamp.diffuse * lambert * direct
            hx, hy, hz = lx - x, ly - y, lz - z
            cosine = (nx * hx + ny * hy + nz * hz) / np.sqrt(hx * hx + hy * hy + hz * hz)
            gloss = lamp.specular * direct * max(cosine, 0.0) ** _SHININESS
        received[n] = light
        colours[n, 0] = (red * light + gloss) * lamp.rgb[0]
        colours[n, 1] = (green * light + gloss) * lamp.rgb[1]
        colours[n, 2] = (blue * light + gloss) * lamp.rgb[2]


@_inline
def _sky_uv(x, y, z):
    """By azimuth and height: Lambert's cylindrical projection, which closes on itself."""
    return BACKGROUND_TILES / _TURN * np.arctan2(y, x), -BACKGROUND_TILES / _TURN * z


@_inline
def _uv(surfaces, g, x, y, z):
    """Texture coordinates of a point on a geom.

    A face of a box and an end of a cylinder span [0, 1]; the side of a cylinder and a sphere have one turn about z as u, and
    from bottom to top as v. The table has one unit a TABLE_TILE.
    """
    R = surfaces.rotation
    x, y, z = x - surfaces.position[g, 0], y - surfaces.position[g, 1], z - surfaces.position[g, 2]
    a = R[g, 0] * x + R[g, 3] * y + R[g, 6] * z
    b = R[g, 1] * x + R[g, 4] * y + R[g, 7] * z
    c = R[g, 2] * x + R[g, 5] * y + R[g, 8] * z
    if g == surfaces.table:
        return a / TABLE_TILE, b / TABLE_TILE
    size = surfaces.size
    if surfaces.kind[g] == _BOX:
        a, b, c = a / size[g, 0], b / size[g, 1], c / size[g, 2]
        if abs(a) >= max(abs(b), abs(c)):
            a, b = b, c
        elif abs(b) >= abs(c):
            b = c
        return 0.5 + 0.5 * a, 0.5 + 0.5 * b
    level = np.sqrt(a * a + b * b)
    if surfaces.kind[g] == _CYLINDER:
        if abs(c) * size[g, 0] > level * size[g, 1]:
            return 0.5 + 0.5 * a / size[g, 0], 0.5 + 0.5 * b / size[g, 0]
        return np.arctan2(b, a) / _TURN, 0.5 + 0.5 * c / size[g, 1]
    return np.arctan2(b, a) / _TURN, 0.5 + np.arctan2(c, level) / np.pi


@_inline
def _texel(bank, k, u, v):
    """Bilinear sample in [0, 1] of texture k, which repeats with period 1."""
    size = bank.shape[1]
    x, y = (u - np.floor(u)) * size - 0.5, (v - np.floor(v)) * size - 0.5
    left, top = int(np.floor(x)), int(np.floor(y))
    a, b = x - left, y - top
    x0, x1, y0, y1 = left % size, (left + 1) % size, top % size, (top + 1) % size
    w00, w01, w10, w11 = (1 - a) * (1 - b) / 255, a * (1 - b) / 255, (1 - a) * b / 255, a * b / 255
    return (
        w00 * bank[k, y0, x0, 0] + w01 * bank[k, y0, x1, 0] + w10 * bank[k, y1, x0, 0] + w11 * bank[k, y1, x1, 0],
        w00 * bank[k, y0, x0, 1] + w01 * bank[k, y0, x1, 1] + w10 * bank[k, y1, x0, 1] + w11 * bank[k, y1, x1, 1],
        w00 * bank[k, y0, x0, 2] + w01 * bank[k, y0, x1, 2] + w10 * bank[k, y1, x0, 2] + w11 * bank[k, y1, x1, 2],
    )
