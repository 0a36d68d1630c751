"""The colour of every pixel, compiled by numba. Conventions as in kernels.py; all directions are in the camera's frame."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from robopolicy.sim.kernels import HALF, NO_FACE, ONE, OPTIONS, TABLE_FACE, ZERO

QUARTER, TWO, LARGEST, TINY = np.float32(0.25), np.float32(2), np.float32(255), np.float32(1e-12)
CHANNEL, FRACTION = 21, 12  # bits of a colour channel in a texel of the pyramid, and of the weights a texel is multiplied with
FULL = np.float32(1 / (255 << FRACTION))
SAME_SURFACE = np.float32(0.9)  # cosine between two faces of a mesh from which on a pixel does not tell them apart
DULL = np.float32(0.6)  # cosine below which there is no highlight: 0.6 ** 24 < 1e-5

_kernel = numba.njit(cache=True, **OPTIONS)
_inline = numba.njit(forceinline=True, **OPTIONS)


class Looks(NamedTuple):
    """Colour and texture (-1: none) of K meshes, rgb float32 [K, 3] and texture [K], and of the background; the textures as
    a pyramid, see texture_pyramid(); sky: background textures per radian.
    """

    rgb: np.ndarray
    texture: np.ndarray
    background_rgb: np.ndarray
    background_texture: int
    sky: float
    pyramid: np.ndarray


class Lamp(NamedTuple):
    """The directional light. axes float64 [3, 3]: columns and rows of its shadow map, and the unit vector towards it, in the
    base frame; the rest is as in scene.Light.
    """

    axes: np.ndarray
    rgb: np.ndarray
    ambient: float
    diffuse: float
    specular: float
    shadow: float


class Shadows(NamedTuple):
    """What kernels.cast() has drawn; texel (m) is 0 where nothing casts a shadow."""

    map: np.ndarray
    from_cam: np.ndarray
    columns: int
    rows: int
    texel: float


def texture_pyramid(bank: np.ndarray) -> np.ndarray:
    """Textures uint8 [K, S, S, 3] with their halvings, red | green << CHANNEL | blue << 2 CHANNEL, int64 [K, 2 S, S].

    Level l is in the rows from 2 S - (2 S >> l) on. One multiplication then weighs all three channels.
    """
    num, size = bank.shape[:2]
    pyramid = np.zeros((num, 2 * size, size), np.int64)
    level, start = bank.astype(np.float32), 0
    while True:
        side = level.shape[1]
        red, green, blue = np.moveaxis(np.round(level).astype(np.int64), -1, 0)
        pyramid[:, start : start + side, :side] = red | green << CHANNEL | blue << 2 * CHANNEL
        if side == 1:
            return pyramid
        start += side
        level = level.reshape(num, side // 2, 2, side // 2, 2, 3).mean(axis=(2, 4))


@_inline
def _texel(pyramid, texture, u, v, level):
    """Bilinear sample of one mip level in units of FULL; u and v in texture units, wrapped around."""
    size = pyramid.shape[2] >> level
    start = pyramid.shape[1] - (pyramid.shape[1] >> level)
    scale = np.float32(size << FRACTION)
    x, y = int(np.floor(u * scale)) - (1 << FRACTION >> 1), int(np.floor(v * scale)) - (1 << FRACTION >> 1)
    a, b = x & ((1 << FRACTION) - 1), y & ((1 << FRACTION) - 1)
    x0, y0 = x >> FRACTION & (size - 1), y >> FRACTION & (size - 1)
    x1, y1 = (x0 + 1) & (size - 1), start + ((y0 + 1) & (size - 1))
    y0 += start
    w11 = a * b >> FRACTION
    w01, w10, w00 = a - w11, b - w11, (1 << FRACTION) - a - b + w11
    P = pyramid[texture]
    total = P[y0, x0] * w00 + P[y0, x1] * w01 + P[y1, x0] * w10 + P[y1, x1] * w11
    mask = (1 << CHANNEL) - 1
    return np.float32(total & mask), np.float32(total >> CHANNEL & mask), np.float32(total >> 2 * CHANNEL)


@_inline
def _textured(pyramid, texture, u, v, footprint):
    """Sample in [0, 1], bilinear in two levels; footprint is the side of a pixel in texels of the finest level."""
    level, last = 0, np.float32(pyramid.shape[2] >> 1)
    footprint = min(max(footprint, ONE), last)
    while footprint >= TWO:
        footprint *= HALF
        level += 1
    r, g, b = _texel(pyramid, texture, u, v, level)
    blend = footprint - ONE
    if blend > ZERO:
        r2, g2, b2 = _texel(pyramid, texture, u, v, level + 1)
        r, g, b = r + blend * (r2 - r), g + blend * (g2 - g), b + blend * (b2 - b)
    return r * FULL, g * FULL, b * FULL


@_inline
def _azimuth(x, y):
    """atan2(y, x) in radians within 1e-4, by the polynomial 4.4.49 of Abramowitz and Stegun."""
    small, large = min(abs(x), abs(y)), max(abs(x), abs(y), TINY)
    t = small / large
    q = t * t
    angle = np.float32(-0.0851330) + np.float32(0.0208351) * q
    angle = np.float32(-0.3302995) + q * (np.float32(0.1801410) + q * angle)
    angle = t * (np.float32(0.9998660) + q * angle)
    if abs(y) > abs(x):
        angle = np.float32(np.pi / 2) - angle
    if x < ZERO:
        angle = np.float32(np.pi) - angle
    return angle if y >= ZERO else -angle


@_inline
def _background(looks, x, y, z, pixel):
    """Colour of what hangs around the scene in direction (x, y, z) of the base frame; pixel is the angle of a pixel (rad).

    The texture is wrapped around a sphere, by azimuth and by height (Lambert's cylindrical projection): it closes on itself.
    """
    red, green, blue = looks.background_rgb[0], looks.background_rgb[1], looks.background_rgb[2]
    if looks.background_texture >= 0:
        level = np.sqrt(x * x + y * y)
        length = np.sqrt(level * level + z * z)
        sky = np.float32(looks.sky)
        u, v = sky * _azimuth(x, y), -sky * z / length
        footprint = pixel * sky * np.float32(looks.pyramid.shape[2]) * length / max(level, TINY)
        r, g, b = _textured(looks.pyramid, looks.background_texture, u, v, footprint)
        red, green, blue = red * r, green * g, blue * b
    return red, green, blue


@_inline
def _sunlight(shadows, column, row, nearness):
    """Share of the light that reaches a point: percentage-closer filtering (Reeves et al. 1987), 2 x 2 bilinear taps."""
    left, top = int(np.floor(column)) - 1, int(np.floor(row)) - 1
    if left < 0 or top < 0 or left + 2 >= shadows.columns or top + 2 >= shadows.rows:
        return ONE
    a, b = column - np.float32(left + 1), row - np.float32(top + 1)
    total = ZERO
    for j in range(3):
        line = ZERO
        for i in range(3):
            if nearness >= shadows.map[top + j, left + i]:
                line += (ONE - a) if i == 0 else (a if i == 2 else ONE)
        total += line * ((ONE - b) if j == 0 else (b if j == 2 else ONE))
    return total / (TWO * TWO)


@_inline
def _same(geometry, f, g):
    """Whether two samples of a pixel show the same surface: one face, or faces of a mesh that hardly turn."""
    if f == g:
        return True
    if f < 0 or g < 0 or geometry.mesh_of_face[f] != geometry.mesh_of_face[g]:
        return False
    P = geometry.planes
    return P[0, f] * P[0, g] + P[1, f] * P[1, g] + P[2, f] * P[2, g] > SAME_SURFACE


@_inline
def _group(geometry, nearness, face, row, column, pending):
    """The first pending sample of a pixel of 2 x 2, and those that show the same surface.

    Returns what is then still pending, the face, mean nearness and position (in pixels) of the group, and its share of the
    pixel.
    """
    f, n, u, v, weight = -3, ZERO, ZERO, ZERO, ZERO
    for sample in range(4):
        if pending >> sample & 1:
            g = face[row + (sample >> 1), column + (sample & 1)]
            if f == -3:
                f = g
            if _same(geometry, f, g):
                pending -= 1 << sample
                n += nearness[row + (sample >> 1), column + (sample & 1)]
                u += np.float32(sample & 1)
                v += np.float32(sample >> 1)
                weight += ONE
    per = ONE / weight
    return pending, f, n * per, QUARTER + HALF * u * per, QUARTER + HALF * v * per, QUARTER * weight


@_inline
def _dot(a, x, y, z):
    return a[0] * x + a[1] * y + a[2] * z


@_inline
def _surface(geometry, in_cam, looks, f, x, y, z, pixel):
    """Unit normal and colour of the face f at a point of it; pixel is the side of the pixel there (m)."""
    k = geometry.mesh_of_face[f]
    T, S = in_cam[k], geometry.surface[f]
    x, y, z = x - T[0, 3], y - T[1, 3], z - T[2, 3]
    px = T[0, 0] * x + T[1, 0] * y + T[2, 0] * z
    py = T[0, 1] * x + T[1, 1] * y + T[2, 1] * z
    pz = T[0, 2] * x + T[1, 2] * y + T[2, 2] * z
    a, b, c = _dot(S[0:3], px, py, pz) + S[3], _dot(S[4:7], px, py, pz) + S[7], _dot(S[8:11], px, py, pz) + S[11]
    scale = ONE / np.sqrt(max(a * a + b * b + c * c, TINY))
    a, b, c = a * scale, b * scale, c * scale
    nx, ny, nz = _dot(T[0], a, b, c), _dot(T[1], a, b, c), _dot(T[2], a, b, c)
    red, green, blue = looks.rgb[k, 0], looks.rgb[k, 1], looks.rgb[k, 2]
    if looks.texture[k] >= 0:
        u, v = _dot(S[12:15], px, py, pz) + S[15], _dot(S[16:19], px, py, pz) + S[19]
        footprint = pixel * S[20] * np.float32(looks.pyramid.shape[2])
        r, g, b = _textured(looks.pyramid, looks.texture[k], u, v, footprint)
        red, green, blue = red * r, green * g, blue * b
    return nx, ny, nz, red, green, blue


@_kernel
def shade(geometry, in_cam, view, table, looks, lamp, shadows, nearness, face, rgb):
    """Colour of every pixel into rgb, uint8 [H, W, 3].

    nearness and face may be twice as large: then a pixel is the mean of 2 x 2 samples, and a surface that several of them show
    is shaded once, at their middle (multisampling).

    Ambient light is a little stronger opposite the lamp, mirrored at the vertical, so that unlit faces keep their shape. The
    shadow of a mesh is looked up a little off its surface: a texel along the normal, more where light grazes it.
    """
    E = view.T_base_cam
    height, width = rgb.shape[:2]
    fine = face.shape[0] // height
    step = np.float32(1 / view.focal)
    centre_x, centre_y = np.float32(view.centre_x), np.float32(view.centre_y)
    # The base frame's axes, the light and the shadow map as seen by the camera, in registers.
    R = (
        (np.float32(E[0, 0]), np.float32(E[0, 1]), np.float32(E[0, 2])),
        (np.float32(E[1, 0]), np.float32(E[1, 1]), np.float32(E[1, 2])),
        (np.float32(E[2, 0]), np.float32(E[2, 1]), np.float32(E[2, 2])),
    )
    A = lamp.axes
    lx = np.float32(A[2, 0] * E[0, 0] + A[2, 1] * E[1, 0] + A[2, 2] * E[2, 0])
    ly = np.float32(A[2, 0] * E[0, 1] + A[2, 1] * E[1, 1] + A[2, 2] * E[2, 1])
    lz = np.float32(A[2, 0] * E[0, 2] + A[2, 1] * E[1, 2] + A[2, 2] * E[2, 2])
    rise = np.float32(A[2, 2])
    M = shadows.from_cam
    ambient, diffuse, specular = np.float32(lamp.ambient), np.float32(lamp.diffuse), np.float32(lamp.specular)
    darkness, texel = np.float32(lamp.shadow), np.float32(shadows.texel)
    side = ONE if E[2, 3] > table.height else -ONE  # of the table that shows
    table_u, table_v = np.float32(E[0, 3] - table.x), np.float32(E[1, 3])
    repeats, size = np.float32(table.repeats), np.float32(looks.pyramid.shape[2])
    for row in range(height):
        for column in range(width):
            red, green, blue = ZERO, ZERO, ZERO
            pending = 1 if fine == 1 else 15  # bit i: sample i has no colour yet
            while pending:
                if fine == 1:
                    pending, f, n, u, v, weight = 0, face[row, column], nearness[row, column], HALF, HALF, ONE
                else:
                    pending, f, n, u, v, weight = _group(geometry, nearness, face, 2 * row, 2 * column, pending)
                u, v = (np.float32(column) + u - centre_x) * step, (np.float32(row) + v - centre_y) * step
                if f == NO_FACE:
                    dx, dy, dz = _dot(R[0], u, v, ONE), _dot(R[1], u, v, ONE), _dot(R[2], u, v, ONE)
                    r, g, b = _background(looks, dx, dy, dz, step)
                    red, green, blue = red + weight * r, green + weight * g, blue + weight * b
                    continue
                z = ONE / n
                x, y = u * z, v * z
                if f == TABLE_FACE:
                    nx, ny, nz, push = side * R[2][0], side * R[2][1], side * R[2][2], ZERO  # casts no shadow: no offset
                    r, g, b = table.rgb[0], table.rgb[1], table.rgb[2]
                    if table.texture >= 0:
                        tu, tv = (_dot(R[0], x, y, z) + table_u) * repeats, (_dot(R[1], x, y, z) + table_v) * repeats
                        tr, tg, tb = _textured(looks.pyramid, table.texture, tu, tv, z * step * repeats * size)
                        r, g, b = r * tr, g * tg, b * tb
                else:
                    nx, ny, nz, r, g, b = _surface(geometry, in_cam, looks, f, x, y, z, z * step)
                    push = texel
                towards = nx * lx + ny * ly + nz * lz
                up = R[2][0] * nx + R[2][1] * ny + R[2][2] * nz
                brightness = ambient * (np.float32(0.75) + np.float32(0.35) * (TWO * up * rise - towards))
                highlight = ZERO
                if towards > ZERO:
                    sunlight = ONE
                    if texel > ZERO:
                        push *= HALF + TWO * np.sqrt(max(ONE - towards * towards, ZERO))
                        x, y, z = x + push * nx, y + push * ny, z + push * nz
                        at, down, near = _dot(M[0], x, y, z), _dot(M[1], x, y, z), _dot(M[2], x, y, z)
                        lit = _sunlight(shadows, at + M[0, 3], down + M[1, 3], near + M[2, 3])
                        sunlight -= darkness * (ONE - lit)
                    brightness += diffuse * towards * sunlight
                    # Highlight (Blinn 1977): the half vector is that between the light and the way back to the eye.
                    length = ONE / np.sqrt(u * u + v * v + ONE)
                    away, ahead = (nx * u + ny * v + nz) * length, (lx * u + ly * v + lz) * length
                    cosine = (towards - away) / np.sqrt(max(TWO - TWO * ahead, TINY))
                    if cosine > DULL:
                        power_8 = cosine**8
                        highlight = specular * sunlight * power_8 * power_8 * power_8
                red += weight * (r * brightness + highlight) * lamp.rgb[0]
                green += weight * (g * brightness + highlight) * lamp.rgb[1]
                blue += weight * (b * brightness + highlight) * lamp.rgb[2]
            rgb[row, column, 0] = np.uint8(min(max(LARGEST * red + HALF, ZERO), LARGEST))
            rgb[row, column, 1] = np.uint8(min(max(LARGEST * green + HALF, ZERO), LARGEST))
            rgb[row, column, 2] = np.uint8(min(max(LARGEST * blue + HALF, ZERO), LARGEST))
