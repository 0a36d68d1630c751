"""The rasteriser's inner loops, compiled by numba and cached on disk. float32 throughout; nothing here keeps state.

A picture is made in two steps, as in a visibility buffer (Burns and Hunt 2013): find the nearest face of every pixel,
then shade every pixel once. The stages, in order: move_points, project, rasterise, resolve, shade.

Shapes: V vertices, F faces, K meshes, H x W pixels, S x S texels of the shadow map. A pixel (column x, row y) is sampled
at its centre (x + 0.5, y + 0.5). "Nearness" is what the depth test compares: 1 / z for a camera, height along the light
for the shadow map; 0 means that nothing is there. Kernels call each other only within this file, because numba's cache
does not notice a change in another one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

NO_FACE, TABLE_FACE = -1, -2  # what a pixel of the face buffer holds where it shows no mesh
EDGE = np.float32(-1e-5)  # barycentric slack: neighbouring faces leave no pinholes between them
ZERO, HALF, ONE, TWO = (np.float32(x) for x in (0, 0.5, 1, 2))
LARGEST = np.float32(255)

# _nrt=False: kernels allocate nothing, so arrays need no reference counts; counting them costs half the time of shade().
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "_nrt": False,
    "error_model": "numpy",
    "fastmath": {"nsz", "arcp", "contract", "afn", "reassoc"},
}
_kernel = numba.njit(cache=True, **_OPTIONS)
_inline = numba.njit(forceinline=True, **_OPTIONS)


class View(NamedTuple):
    """A pinhole camera: T_base_cam float32 [3, 4], focal length and principal point (pixels), near and far (m)."""

    T_base_cam: np.ndarray
    focal: np.float32
    centre_x: np.float32
    centre_y: np.float32
    near: np.float32
    far: np.float32


class Table(NamedTuple):
    """The table top: a square of half side `half` around (x, 0) at `height` (m), `repeats` textures per metre."""

    x: np.float32
    height: np.float32
    half: np.float32
    rgb: np.ndarray
    texture: int
    repeats: np.float32


class Geometry(NamedTuple):
    """All meshes in the base frame, one after the other, and what belongs to them.

    points [V, 3], normals [V, 3] (in their mesh's frame), uv [V, 2], faces [F, 3], mesh_of_face [F], density [F] (texture
    units per metre), poses [K, 3, 4] (T_base_mesh), rgb [K, 3], texture [K] (-1: none), segmentation [K].
    """

    points: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    faces: np.ndarray
    mesh_of_face: np.ndarray
    density: np.ndarray
    poses: np.ndarray
    rgb: np.ndarray
    texture: np.ndarray
    segmentation: np.ndarray


class Lamp(NamedTuple):
    """The directional light. direction [3] is a unit vector towards it; T_light_base [3, 4] gives shadow-map coordinates
    (texel column, texel row, nearness); texel (m) is the size of one of them; the rest is as in scene.Light.
    """

    direction: np.ndarray
    rgb: np.ndarray
    ambient: np.float32
    diffuse: np.float32
    specular: np.float32
    shadow: np.float32
    T_light_base: np.ndarray
    texel: np.float32


@_kernel
def move_points(points, mesh_of_point, poses, out):
    """Vertices [V, 3] into the base frame: out[i] = poses[mesh_of_point[i]] applied to points[i]."""
    for i in range(points.shape[0]):
        k = mesh_of_point[i]
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        for j in range(3):
            out[i, j] = poses[k, j, 0] * x + poses[k, j, 1] * y + poses[k, j, 2] * z + poses[k, j, 3]


@_kernel
def project(points, view, out):
    """Image coordinates and nearness, out [V, 3], of points [V, 3] in the base frame; nearness 0 behind the near plane."""
    T = view.T_base_cam
    for i in range(points.shape[0]):
        x, y, z = points[i, 0] - T[0, 3], points[i, 1] - T[1, 3], points[i, 2] - T[2, 3]
        z_cam = T[0, 2] * x + T[1, 2] * y + T[2, 2] * z
        out[i, 2] = ZERO
        if z_cam > view.near:
            nearness = ONE / z_cam
            out[i, 0] = view.centre_x + view.focal * nearness * (T[0, 0] * x + T[1, 0] * y + T[2, 0] * z)
            out[i, 1] = view.centre_y + view.focal * nearness * (T[0, 1] * x + T[1, 1] * y + T[2, 1] * z)
            out[i, 2] = nearness


@_kernel
def project_light(points, T_light_base, out):
    """Shadow-map coordinates, out [V, 3], of points [V, 3] in the base frame."""
    T = T_light_base
    for i in range(points.shape[0]):
        for j in range(3):
            out[i, j] = T[j, 0] * points[i, 0] + T[j, 1] * points[i, 1] + T[j, 2] * points[i, 2] + T[j, 3]


@_kernel
def rasterise(screen, faces, nearness, face):
    """The nearest front-facing face of every pixel, by depth test, into nearness and face (both [H, W]).

    A face with a vertex behind the near plane is dropped, not clipped.
    """
    height, width = nearness.shape
    nearness[:] = ZERO
    face[:] = NO_FACE
    for f in range(faces.shape[0]):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        x0, y0, z0 = screen[i, 0], screen[i, 1], screen[i, 2]
        x1, y1, z1 = screen[j, 0] - x0, screen[j, 1] - y0, screen[j, 2]
        x2, y2, z2 = screen[k, 0] - x0, screen[k, 1] - y0, screen[k, 2]
        if z0 <= ZERO or z1 <= ZERO or z2 <= ZERO:
            continue
        area = x1 * y2 - x2 * y1
        if area >= ZERO:  # rows grow downwards: counter-clockwise faces have negative area
            continue
        left = max(0, int(np.ceil(x0 + min(ZERO, x1, x2) - HALF)))
        right = min(width - 1, int(np.floor(x0 + max(ZERO, x1, x2) - HALF)))
        top = max(0, int(np.ceil(y0 + min(ZERO, y1, y2) - HALF)))
        bottom = min(height - 1, int(np.floor(y0 + max(ZERO, y1, y2) - HALF)))
        if left > right or top > bottom:
            continue
        scale = ONE / area
        x1, y1, x2, y2 = x1 * scale, y1 * scale, x2 * scale, y2 * scale
        z1 -= z0
        z2 -= z0
        for row in range(top, bottom + 1):
            y = np.float32(row) + HALF - y0
            for column in range(left, right + 1):
                x = np.float32(column) + HALF - x0
                w1 = x * y2 - y * x2
                w2 = y * x1 - x * y1
                z = z0 + w1 * z1 + w2 * z2
                if min(w1, w2, ONE - w1 - w2) >= EDGE and z > nearness[row, column]:
                    nearness[row, column] = z
                    face[row, column] = f


@_inline
def _ray(view, row, column):
    """Direction in the base frame of the ray through a pixel's centre, with length 1 along the optical axis."""
    T = view.T_base_cam
    x = (np.float32(column) + HALF - view.centre_x) / view.focal
    y = (np.float32(row) + HALF - view.centre_y) / view.focal
    return T[0, 0] * x + T[0, 1] * y + T[0, 2], T[1, 0] * x + T[1, 1] * y + T[1, 2], T[2, 0] * x + T[2, 1] * y + T[2, 2]


@_kernel
def resolve(nearness, face, geometry, table, background_id, table_id, view, depth, segmentation):
    """Put the table in where no mesh is nearer (also in `face`); depth (m, 0 = none) and segmentation, both [H, W]."""
    T = view.T_base_cam
    height, width = nearness.shape
    for row in range(height):
        for column in range(width):
            dx, dy, dz = _ray(view, row, column)
            z = ZERO
            if face[row, column] >= 0:
                z = ONE / nearness[row, column]
            if dz != ZERO:
                s = (table.height - T[2, 3]) / dz
                inside = abs(T[0, 3] + s * dx - table.x) <= table.half and abs(T[1, 3] + s * dy) <= table.half
                if inside and s > view.near and (z == ZERO or s < z):
                    z = s
                    face[row, column] = TABLE_FACE
            depth[row, column] = ZERO
            if z == ZERO or z > view.far:
                face[row, column] = NO_FACE
                segmentation[row, column] = background_id
                continue
            depth[row, column] = z
            if face[row, column] == TABLE_FACE:
                segmentation[row, column] = table_id
            else:
                segmentation[row, column] = geometry.segmentation[geometry.mesh_of_face[face[row, column]]]


@_inline
def _mix(pyramid, texture, x0, x1, y0, y1, channel, w00, w01, w10, w11):
    """Weighted mean of four texels in one channel."""
    upper = w00 * np.float32(pyramid[texture, y0, x0, channel]) + w01 * np.float32(pyramid[texture, y0, x1, channel])
    lower = w10 * np.float32(pyramid[texture, y1, x0, channel]) + w11 * np.float32(pyramid[texture, y1, x1, channel])
    return upper + lower


@_inline
def _texel(pyramid, texture, u, v, level):
    """Bilinear sample in [0, 255] of one mip level; u and v in texture units, wrapped around."""
    size = pyramid.shape[2] >> level
    start = pyramid.shape[1] - (pyramid.shape[1] >> level)
    x, y = (u - np.floor(u)) * np.float32(size) - HALF, (v - np.floor(v)) * np.float32(size) - HALF
    left, top = np.floor(x), np.floor(y)
    a, b = x - left, y - top
    x0, y0 = int(left) & (size - 1), int(top) & (size - 1)
    x1, y1 = (x0 + 1) & (size - 1), start + ((y0 + 1) & (size - 1))
    y0 += start
    w00, w01, w10, w11 = (ONE - a) * (ONE - b), a * (ONE - b), (ONE - a) * b, a * b
    return (
        _mix(pyramid, texture, x0, x1, y0, y1, 0, w00, w01, w10, w11),
        _mix(pyramid, texture, x0, x1, y0, y1, 1, w00, w01, w10, w11),
        _mix(pyramid, texture, x0, x1, y0, y1, 2, w00, w01, w10, w11),
    )


@_inline
def _textured(pyramid, texture, u, v, footprint):
    """Trilinear sample in [0, 1]; footprint is the side of a pixel in texels of the finest level."""
    lod = np.float32(np.log2(min(max(footprint, ONE), HALF * np.float32(pyramid.shape[2]))))
    level = int(lod)
    blend = lod - np.float32(level)
    r, g, b = _texel(pyramid, texture, u, v, level)
    if blend > ZERO:
        r2, g2, b2 = _texel(pyramid, texture, u, v, level + 1)
        r, g, b = r + blend * (r2 - r), g + blend * (g2 - g), b + blend * (b2 - b)
    return r / LARGEST, g / LARGEST, b / LARGEST


@_inline
def _sunlight(shadow_map, lamp, x, y, z):
    """Share of the light that reaches a point: percentage-closer filtering (Reeves et al. 1987), 2 x 2 bilinear taps."""
    T = lamp.T_light_base
    size = shadow_map.shape[0]
    column = T[0, 0] * x + T[0, 1] * y + T[0, 2] * z + T[0, 3]
    row = T[1, 0] * x + T[1, 1] * y + T[1, 2] * z + T[1, 3]
    nearness = T[2, 0] * x + T[2, 1] * y + T[2, 2] * z + T[2, 3]
    left, top = int(np.floor(column)) - 1, int(np.floor(row)) - 1
    if left < 0 or top < 0 or left + 2 >= size or top + 2 >= size:
        return ONE
    a, b = column - np.float32(left + 1), row - np.float32(top + 1)
    total = ZERO
    for j in range(3):
        line = ZERO
        for i in range(3):
            if nearness >= shadow_map[top + j, left + i]:
                line += (ONE - a) if i == 0 else (a if i == 2 else ONE)
        total += line * ((ONE - b) if j == 0 else (b if j == 2 else ONE))
    return total / (TWO * TWO)


@_inline
def _surface(geometry, pyramid, f, x, y, z, pixel):
    """Unit normal and colour of the face f at a point of it; pixel is the side of the pixel there (m)."""
    k = geometry.mesh_of_face[f]
    i, j, m = geometry.faces[f, 0], geometry.faces[f, 1], geometry.faces[f, 2]
    w1, w2 = _barycentric(geometry.points, i, j, m, x, y, z)
    w0 = ONE - w1 - w2
    N, T, uv = geometry.normals, geometry.poses, geometry.uv
    a = w0 * N[i, 0] + w1 * N[j, 0] + w2 * N[m, 0]
    b = w0 * N[i, 1] + w1 * N[j, 1] + w2 * N[m, 1]
    c = w0 * N[i, 2] + w1 * N[j, 2] + w2 * N[m, 2]
    scale = ONE / np.sqrt(max(a * a + b * b + c * c, np.float32(1e-12)))
    nx = (T[k, 0, 0] * a + T[k, 0, 1] * b + T[k, 0, 2] * c) * scale
    ny = (T[k, 1, 0] * a + T[k, 1, 1] * b + T[k, 1, 2] * c) * scale
    nz = (T[k, 2, 0] * a + T[k, 2, 1] * b + T[k, 2, 2] * c) * scale
    red, green, blue = geometry.rgb[k, 0], geometry.rgb[k, 1], geometry.rgb[k, 2]
    if geometry.texture[k] >= 0:
        u = w0 * uv[i, 0] + w1 * uv[j, 0] + w2 * uv[m, 0]
        v = w0 * uv[i, 1] + w1 * uv[j, 1] + w2 * uv[m, 1]
        footprint = pixel * geometry.density[f] * np.float32(pyramid.shape[2])
        r, g, b = _textured(pyramid, geometry.texture[k], u, v, footprint)
        red, green, blue = red * r, green * g, blue * b
    return nx, ny, nz, red, green, blue


@_inline
def _barycentric(points, i, j, k, x, y, z):
    """Weights of the second and third corner of a face at the point (x, y, z) in its plane."""
    ax, ay, az = points[j, 0] - points[i, 0], points[j, 1] - points[i, 1], points[j, 2] - points[i, 2]
    bx, by, bz = points[k, 0] - points[i, 0], points[k, 1] - points[i, 1], points[k, 2] - points[i, 2]
    x, y, z = x - points[i, 0], y - points[i, 1], z - points[i, 2]
    aa, ab, bb = ax * ax + ay * ay + az * az, ax * bx + ay * by + az * bz, bx * bx + by * by + bz * bz
    pa, pb = ax * x + ay * y + az * z, bx * x + by * y + bz * z
    scale = ONE / max(aa * bb - ab * ab, np.float32(1e-20))
    w1, w2 = (bb * pa - ab * pb) * scale, (aa * pb - ab * pa) * scale
    return min(max(w1, ZERO), ONE), min(max(w2, ZERO), ONE)


@_inline
def _light(lamp, shadow_map, nx, ny, nz, x, y, z, dx, dy, dz, offset):
    """Brightness and highlight (Blinn 1977) at a point with normal n, seen along the ray d.

    Ambient light is a little stronger opposite the lamp, mirrored at the vertical, so that unlit faces keep their shape.
    The shadow is looked up a little off the surface: `offset` texels along the normal, more where light grazes it.
    """
    lx, ly, lz = lamp.direction[0], lamp.direction[1], lamp.direction[2]
    towards = nx * lx + ny * ly + nz * lz
    brightness = lamp.ambient * (np.float32(0.75) + np.float32(0.35) * (nz * lz - nx * lx - ny * ly))
    highlight = ZERO
    if towards > ZERO:
        sunlight = ONE
        if lamp.shadow > ZERO:
            push = offset * lamp.texel * (HALF + TWO * np.sqrt(max(ONE - towards * towards, ZERO)))
            sunlight -= lamp.shadow * (ONE - _sunlight(shadow_map, lamp, x + push * nx, y + push * ny, z + push * nz))
        brightness += lamp.diffuse * towards * sunlight
        length = ONE / np.sqrt(dx * dx + dy * dy + dz * dz)
        hx, hy, hz = lx - dx * length, ly - dy * length, lz - dz * length
        cosine = (nx * hx + ny * hy + nz * hz) / np.sqrt(max(hx * hx + hy * hy + hz * hz, np.float32(1e-12)))
        if cosine > ZERO:
            power_8 = cosine**8
            highlight = lamp.specular * sunlight * power_8 * power_8 * power_8
    return brightness, highlight


@_kernel
def shade(face, depth, geometry, table, background, pyramid, lamp, shadow_map, view, rgb):
    """Colour of every pixel into rgb, uint8 [H, W, 3]; background is uint8 [3]."""
    T = view.T_base_cam
    size = np.float32(pyramid.shape[2])
    for row in range(face.shape[0]):
        for column in range(face.shape[1]):
            f, s = face[row, column], depth[row, column]
            if f == NO_FACE:
                for c in range(3):
                    rgb[row, column, c] = background[c]
                continue
            dx, dy, dz = _ray(view, row, column)
            x, y, z = T[0, 3] + s * dx, T[1, 3] + s * dy, T[2, 3] + s * dz
            pixel = s / view.focal
            if f == TABLE_FACE:
                nx, ny, nz, offset = ZERO, ZERO, ONE if dz < ZERO else -ONE, ZERO  # casts no shadow: needs no offset
                red, green, blue = table.rgb[0], table.rgb[1], table.rgb[2]
                if table.texture >= 0:
                    u, v = (x - table.x) * table.repeats, y * table.repeats
                    r, g, b = _textured(pyramid, table.texture, u, v, pixel * table.repeats * size)
                    red, green, blue = red * r, green * g, blue * b
            else:
                nx, ny, nz, red, green, blue = _surface(geometry, pyramid, f, x, y, z, pixel)
                offset = ONE
            brightness, highlight = _light(lamp, shadow_map, nx, ny, nz, x, y, z, dx, dy, dz, offset)
            for c, colour in enumerate((red, green, blue)):
                value = LARGEST * (colour * brightness + highlight) * lamp.rgb[c] + HALF
                rgb[row, column, c] = np.uint8(min(max(value, ZERO), LARGEST))


@_kernel
def halve(picture, out):
    """Box filter: every pixel of out [H, W, 3] is the mean of 2 x 2 pixels of picture [2 H, 2 W, 3]."""
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            for c in range(3):
                total = np.int32(2)
                for i in range(2):
                    for j in range(2):
                        total += picture[2 * row + i, 2 * column + j, c]
                out[row, column, c] = total >> 2
