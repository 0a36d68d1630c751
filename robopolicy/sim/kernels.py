"""The rasteriser's geometry loops, compiled by numba and cached on disk: which face does a pixel show, and which does the lamp.

A picture is made in two steps, as in a visibility buffer (Burns and Hunt 2013): find the nearest face of every pixel (here),
then shade every pixel once (shading.py). float32 throughout, nothing here keeps state or allocates.

Shapes: V vertices, F faces, K meshes, H x W pixels. A pixel (column x, row y) is sampled at its centre (x + 0.5, y + 0.5).
"Nearness" is what the depth test compares: 1 / z for a camera, metres along the light for the shadow map; 0 means that nothing
is there. Kernels call each other only within their file, because numba's cache does not notice a change in another one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

NO_FACE, TABLE_FACE = -1, -2  # what a pixel of the face buffer holds where it shows no mesh
EDGE = np.float32(-1e-5)  # barycentric slack: neighbouring faces leave no pinholes between them
ZERO, HALF, ONE = (np.float32(x) for x in (0, 0.5, 1))
FARTHEST = 1e4  # m
SHADOW_FLOOR = 5.0  # m below the robot's base, along the light, where its nearness is zero

# _nrt=False: kernels allocate nothing, so arrays need no reference counts; counting them costs half the time of shading.
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "_nrt": False,
    "error_model": "numpy",
    "fastmath": {"nsz", "arcp", "contract", "afn", "reassoc"},
}
_kernel = numba.njit(cache=True, **OPTIONS)
_inline = numba.njit(forceinline=True, **OPTIONS)


class View(NamedTuple):
    """A pinhole camera: T_base_cam float64 [4, 4], focal length and principal point (pixels), near and far (m)."""

    T_base_cam: np.ndarray
    focal: float
    centre_x: float
    centre_y: float
    near: float
    far: float


class Table(NamedTuple):
    """The table top: a square of half side `half` around (x, 0) at `height` (m), `repeats` textures per metre."""

    x: float
    height: float
    half: float
    repeats: float
    texture: int
    rgb: np.ndarray


class Scratch(NamedTuple):
    """What the kernels write and read again: poses of the meshes, placed (T_base_mesh), in_cam (T_cam_mesh) and in_light (into
    the shadow map), each [K, 3, 4]; screen [V, 3], column, row and nearness of every vertex; chosen [F], faces that may show.
    """

    placed: np.ndarray
    in_cam: np.ndarray
    in_light: np.ndarray
    screen: np.ndarray
    chosen: np.ndarray


@_kernel
def bad_pose(poses):
    """The first of the poses [P, 7] that is none: not finite, farther than FARTHEST, no quaternion. -1 if all are good."""
    for i in range(poses.shape[0]):
        x, y, z, w = poses[i, 3], poses[i, 4], poses[i, 5], poses[i, 6]
        norm = x * x + y * y + z * z + w * w
        if not 0.1 < norm < 10:
            return i
        for j in range(3):
            if not abs(poses[i, j]) < FARTHEST:
                return i
    return -1


@_inline
def _place(geometry, poses, T_base_cam, k, scratch):
    """Pose of mesh k in the base frame and in the camera's. poses: float64 [P, 7], position and quaternion xyzw."""
    pose = poses[geometry.frame[k]]
    x, y, z, w = pose[3], pose[4], pose[5], pose[6]
    s = 2 / (x * x + y * y + z * z + w * w)
    rows = (
        (1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w), pose[0]),
        (s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w), pose[1]),
        (s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y), pose[2]),
    )
    T = T_base_cam
    for j in range(4):
        a, b, c = rows[0][j], rows[1][j], rows[2][j]
        scratch.placed[k, 0, j], scratch.placed[k, 1, j], scratch.placed[k, 2, j] = a, b, c
        if j == 3:
            a, b, c = a - T[0, 3], b - T[1, 3], c - T[2, 3]
        for i in range(3):
            scratch.in_cam[k, i, j] = T[0, i] * a + T[1, i] * b + T[2, i] * c


@_inline
def _apply(T, x, y, z):
    """A 3 x 4 transform of a point."""
    return (
        T[0, 0] * x + T[0, 1] * y + T[0, 2] * z + T[0, 3],
        T[1, 0] * x + T[1, 1] * y + T[1, 2] * z + T[1, 3],
        T[2, 0] * x + T[2, 1] * y + T[2, 2] * z + T[2, 3],
    )


@_inline
def _outside(x, y, z, radius, focal, centre_x, centre_y, width, height, near, far):
    """Whether a sphere (camera frame) lies outside of one of the sides of what the camera sees."""
    if z + radius < near or z - radius > far:
        return True
    for along, low, high in ((x, centre_x, width - centre_x), (y, centre_y, height - centre_y)):
        if focal * along + low * z < -radius * np.sqrt(focal * focal + low * low):
            return True
        if high * z - focal * along < -radius * np.sqrt(focal * focal + high * high):
            return True
    return False


@_inline
def _choose(geometry, k, x, y, z, w, chosen):
    """List the faces of mesh k that look towards (x, y, z, w), a point (w = 1) or a direction (w = 0). Returns how many."""
    planes, count = geometry.planes, 0
    for f in range(geometry.face_start[k], geometry.face_start[k + 1]):
        chosen[count] = f
        if planes[0, f] * x + planes[1, f] * y + planes[2, f] * z > planes[3, f] * w:
            count += 1
    return count


@_inline
def _span(low, high, size):
    """First and last pixel of [0, size) whose centre lies in [low, high]."""
    return int(np.ceil(max(low - HALF, ZERO))), int(np.floor(min(high - HALF, np.float32(size - 1))))


@_inline
def _setup(x0, y0, z0, x1, y1, z1, x2, y2, z2, width, height):
    """Where to test for a triangle, and how.

    Returns columns from left on and how many, a multiple of 8; rows top to bottom; how much the weights of the second and
    third corner and nearness change along a row; and the same from row to row. There is nothing to test where the back of the
    triangle shows: rows grow downwards, so it has positive area then.
    """
    x1, y1, x2, y2 = x1 - x0, y1 - y0, x2 - x0, y2 - y0
    area = x1 * y2 - x2 * y1
    left, right = _span(x0 + min(ZERO, x1, x2), x0 + max(ZERO, x1, x2), width)
    top, bottom = _span(y0 + min(ZERO, y1, y2), y0 + max(ZERO, y1, y2), height)
    if not area < ZERO or left > right:
        bottom = top - 1
    scale = ONE / area
    x1, y1, x2, y2 = x1 * scale, y1 * scale, x2 * scale, y2 * scale
    z1, z2 = z1 - z0, z2 - z0
    left &= -8
    return left, (right - left | 7) + 1, top, bottom, y2, -y1, y2 * z1 - y1 * z2, -x2, x1, x1 * z2 - x2 * z1


@_inline
def _fill(x0, y0, z0, x1, y1, z1, x2, y2, z2, f, width, nearness, face):
    """Draw one triangle, given by image coordinates and nearness, where it is the nearest so far.

    The inner loop has no branches and slices that start at 0, which lets the compiler test 8 pixels at once.
    """
    left, count, top, bottom, a1, a2, az, b1, b2, bz = _setup(x0, y0, z0, x1, y1, z1, x2, y2, z2, width, nearness.shape[0])
    start = np.float32(left) + HALF - x0
    for row in range(top, bottom + 1):
        y = np.float32(row) + HALF - y0
        c1, c2, cz = b1 * y, b2 * y, z0 + bz * y
        near, faces = nearness[row, left : left + count], face[row, left : left + count]
        for i in range(count):
            x = start + np.float32(i)
            w1, w2, z = c1 + a1 * x, c2 + a2 * x, cz + az * x
            shows = (min(w1, w2, ONE - w1 - w2) >= EDGE) & (z > near[i])
            near[i] = z if shows else near[i]
            faces[i] = f if shows else faces[i]


@_kernel
def rasterise(screen, faces, chosen, count, width, nearness, face):
    """Draw the first `count` of the `chosen` faces, whose corners are all before the camera, into nearness and face [H, >= W].

    Their rows are multiples of 8 long; what is in columns from `width` on means nothing.
    """
    for index in range(count):
        f = chosen[index]
        p, q, r = screen[faces[f, 0]], screen[faces[f, 1]], screen[faces[f, 2]]
        _fill(p[0], p[1], p[2], q[0], q[1], q[2], r[0], r[1], r[2], np.int32(f), width, nearness, face)


@_inline
def _clip(T, points, faces, f, focal, centre_x, centre_y, near, width, nearness, face):
    """Draw the part of face f that lies before the near plane (Sutherland and Hodgman 1974)."""
    corners = 0  # of the cut polygon so far; it is drawn as a fan, so the first and the latest are kept
    ax, ay, az, bx, by, bz = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    for side in range(3):
        i, j = faces[f, side], faces[f, (side + 1) % 3]
        px, py, pz = _apply(T, points[0, i], points[1, i], points[2, i])
        qx, qy, qz = _apply(T, points[0, j], points[1, j], points[2, j])
        for crossing in range(2):
            if (pz > near) == (qz > near) if crossing else pz <= near:
                continue
            if crossing:
                share = (near - pz) / (qz - pz)
                px, py, pz = px + share * (qx - px), py + share * (qy - py), near
            z = ONE / pz
            x, y = centre_x + focal * px * z, centre_y + focal * py * z
            if corners == 0:
                ax, ay, az = x, y, z
            elif corners > 1:
                _fill(ax, ay, az, bx, by, bz, x, y, z, np.int32(f), width, nearness, face)
            bx, by, bz = x, y, z
            corners += 1


@_kernel
def _cut(T, geometry, chosen, count, focal, centre_x, centre_y, near, screen, width, nearness, face):
    """Draw those of the chosen faces that reach behind the near plane; list the rest again. Returns how many those are."""
    rest = 0
    for index in range(count):
        f = chosen[index]
        i, j, k = geometry.faces[f, 0], geometry.faces[f, 1], geometry.faces[f, 2]
        first, second, third = screen[i, 2] > ZERO, screen[j, 2] > ZERO, screen[k, 2] > ZERO
        chosen[rest] = f
        if first and second and third:
            rest += 1
        elif first or second or third:
            _clip(T, geometry.points, geometry.faces, f, focal, centre_x, centre_y, near, width, nearness, face)
    return rest


@_kernel
def see(geometry, poses, view, scratch, width, nearness, face):
    """The nearest front-facing face of every pixel into nearness and face, both [H, W rounded up to a multiple of 8]."""
    height = nearness.shape[0]
    focal, near, far = np.float32(view.focal), np.float32(view.near), np.float32(view.far)
    centre_x, centre_y = np.float32(view.centre_x), np.float32(view.centre_y)
    nearness[:] = ZERO
    face[:] = NO_FACE
    screen = scratch.screen
    px, py, pz = geometry.points[0], geometry.points[1], geometry.points[2]
    for k in range(geometry.frame.shape[0]):
        _place(geometry, poses, view.T_base_cam, k, scratch)
        T = scratch.in_cam[k]
        x, y, z = _apply(T, geometry.spheres[k, 0], geometry.spheres[k, 1], geometry.spheres[k, 2])
        radius = geometry.spheres[k, 3]
        if _outside(x, y, z, radius, focal, centre_x, centre_y, np.float32(width), np.float32(height), near, far):
            continue
        ex = -(T[0, 0] * T[0, 3] + T[1, 0] * T[1, 3] + T[2, 0] * T[2, 3])  # the eye in the mesh's frame
        ey = -(T[0, 1] * T[0, 3] + T[1, 1] * T[1, 3] + T[2, 1] * T[2, 3])
        ez = -(T[0, 2] * T[0, 3] + T[1, 2] * T[1, 3] + T[2, 2] * T[2, 3])
        count = _choose(geometry, k, ex, ey, ez, ONE, scratch.chosen)
        is_close = z - radius <= near
        for i in range(geometry.vertex_start[k], geometry.vertex_start[k + 1]):
            x, y, z = _apply(T, px[i], py[i], pz[i])
            z = ONE / z if z > near else ZERO
            screen[i, 0], screen[i, 1], screen[i, 2] = centre_x + focal * x * z, centre_y + focal * y * z, z
        if is_close:
            count = _cut(T, geometry, scratch.chosen, count, focal, centre_x, centre_y, near, screen, width, nearness, face)
        rasterise(screen, geometry.faces, scratch.chosen, count, width, nearness, face)


@_kernel
def resolve(geometry, view, table, background_id, table_id, nearness, face, depth, segmentation):
    """Put the table in where no mesh is nearer (also into nearness and face); depth (m, 0 = none) and segmentation, [H, W].

    Returns the least nearness of what is seen, 0 where nothing is.
    """
    T = view.T_base_cam
    height, width = depth.shape
    step = 1 / view.focal
    above = table.height - T[2, 3]
    per_dz = np.float32(1 / above if above != 0 else 0)
    half, ox, oy = np.float32(table.half), np.float32(T[0, 3] - table.x), np.float32(T[1, 3])
    nearest, farthest = np.float32(1 / view.near), np.float32(1 / view.far)
    least = np.float32(np.inf)
    ax, ay, az = np.float32(T[0, 0] * step), np.float32(T[1, 0] * step), np.float32(T[2, 0] * step)
    for row in range(height):
        v = (row + 0.5 - view.centre_y) * step
        u = (0.5 - view.centre_x) * step
        bx = np.float32(T[0, 0] * u + T[0, 1] * v + T[0, 2])
        by = np.float32(T[1, 0] * u + T[1, 1] * v + T[1, 2])
        bz = np.float32(T[2, 0] * u + T[2, 1] * v + T[2, 2])
        for column in range(width):
            c = np.float32(column)
            n = nearness[row, column]
            t = (bz + az * c) * per_dz  # nearness of the table's plane
            if t > n and t < nearest and abs(ox * t + bx + ax * c) <= half * t and abs(oy * t + by + ay * c) <= half * t:
                n = t
                nearness[row, column] = n
                face[row, column] = TABLE_FACE
            f = face[row, column]
            if n < farthest or f == NO_FACE:
                face[row, column] = NO_FACE
                depth[row, column] = ZERO
                segmentation[row, column] = background_id
                continue
            least = min(least, n)
            depth[row, column] = ONE / n
            segmentation[row, column] = table_id if f == TABLE_FACE else geometry.segmentation[geometry.mesh_of_face[f]]
    return least if least < np.inf else ZERO


@_inline
def _bounds(geometry, scratch, view, axis, depth, width, height):
    """Interval along `axis` (base frame) of what may both cast a shadow and be seen: the camera sees nothing beyond `depth`."""
    T = view.T_base_cam
    eye = axis[0] * T[0, 3] + axis[1] * T[1, 3] + axis[2] * T[2, 3]
    low, high = eye, eye
    for corner in range(4):
        u = ((corner & 1) * width - view.centre_x) / view.focal * depth
        v = ((corner >> 1) * height - view.centre_y) / view.focal * depth
        at = eye
        for i in range(3):
            at += axis[i] * (T[i, 0] * u + T[i, 1] * v + T[i, 2] * depth)
        low, high = min(low, at), max(high, at)
    first, last = np.inf, -np.inf
    for k in range(geometry.frame.shape[0]):
        x, y, z = _apply(scratch.placed[k], geometry.spheres[k, 0], geometry.spheres[k, 1], geometry.spheres[k, 2])
        at, radius = axis[0] * x + axis[1] * y + axis[2] * z, geometry.spheres[k, 3]
        first, last = min(first, at - radius), max(last, at + radius)
    return max(low, first), min(high, last)


@_kernel
def _shadow(lit, faces, chosen, count, columns, rows, shadow_map):
    """Draw the first `count` of the `chosen` faces into the shadow map. See _fill() for how it is written."""
    for index in range(count):
        f = chosen[index]
        p, q, r = lit[faces[f, 0]], lit[faces[f, 1]], lit[faces[f, 2]]
        left, number, top, bottom, a1, a2, az, b1, b2, bz = _setup(
            p[0], p[1], p[2], q[0], q[1], q[2], r[0], r[1], r[2], columns, rows
        )
        start = np.float32(left) + HALF - p[0]
        for row in range(top, bottom + 1):
            y = np.float32(row) + HALF - p[1]
            c1, c2, cz = b1 * y, b2 * y, p[2] + bz * y
            line = shadow_map[row, left : left + number]
            for i in range(number):
                x = start + np.float32(i)
                w1, w2, z = c1 + a1 * x, c2 + a2 * x, cz + az * x
                z = z if min(w1, w2, ONE - w1 - w2) >= EDGE else ZERO
                line[i] = max(line[i], z)


@_kernel
def cast(geometry, scratch, view, width, height, least, axes, texel, budget, shadow_map, from_cam):
    """Draw the shadow map of what may shade something that the camera sees.

    Args:
        geometry, scratch, view, width, height: as seen by see(), before.
        least: what resolve() returned.
        axes: float64 [3, 3], the map's columns, rows, and the direction towards the light, in the base frame.
        texel, budget: side of a texel (m), made larger until it takes no more than `budget` of them and they fit the map.
        shadow_map: float32 [S, S] nearness, S a multiple of 8.
        from_cam: float32 [3, 4], from the camera's frame to texel column, row and nearness.

    Returns:
        Columns and rows that are in use, and the side of a texel (m).
    """
    size = shadow_map.shape[0]
    if least <= ZERO:
        return 0, 0, texel
    left, right = _bounds(geometry, scratch, view, axes[0], 1 / least, width, height)
    top, bottom = _bounds(geometry, scratch, view, axes[1], 1 / least, width, height)
    if not (left < right and top < bottom):
        return 0, 0, texel
    while max(right - left, bottom - top) > (size - 6) * texel or (right - left) * (bottom - top) > budget * texel * texel:
        texel *= np.sqrt(2.0)
    column, row = np.floor(left / texel) - 2, np.floor(top / texel) - 2
    columns, rows = int(np.ceil(right / texel) + 2 - column), int(np.ceil(bottom / texel) + 2 - row)
    E = view.T_base_cam
    for i in range(3):
        scale = 1.0 if i == 2 else 1 / texel
        for j in range(4):
            from_cam[i, j] = scale * (axes[i, 0] * E[0, j] + axes[i, 1] * E[1, j] + axes[i, 2] * E[2, j])
        from_cam[i, 3] += SHADOW_FLOOR if i == 2 else -(column if i == 0 else row)
    shadow_map[:rows, :columns] = ZERO
    lit = scratch.screen
    for k in range(geometry.frame.shape[0]):
        C, T = scratch.in_cam[k], scratch.in_light[k]
        for i in range(3):
            for j in range(4):
                T[i, j] = from_cam[i, 0] * C[0, j] + from_cam[i, 1] * C[1, j] + from_cam[i, 2] * C[2, j]
            T[i, 3] += from_cam[i, 3]
        x, y, _ = _apply(T, geometry.spheres[k, 0], geometry.spheres[k, 1], geometry.spheres[k, 2])
        reach = geometry.spheres[k, 3] / np.float32(texel)
        if x + reach < ZERO or y + reach < ZERO or x - reach > np.float32(columns) or y - reach > np.float32(rows):
            continue
        for i in range(geometry.vertex_start[k], geometry.vertex_start[k + 1]):
            lit[i, 0], lit[i, 1], lit[i, 2] = _apply(T, geometry.points[0, i], geometry.points[1, i], geometry.points[2, i])
        count = _choose(geometry, k, T[2, 0], T[2, 1], T[2, 2], ZERO, scratch.chosen)
        _shadow(lit, geometry.faces, scratch.chosen, count, columns, rows, shadow_map)
    return columns, rows, texel
