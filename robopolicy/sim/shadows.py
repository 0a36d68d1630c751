"""Whether a lamp is hidden, for many points of a MuJoCo world at once.

MuJoCo's own caster finds the nearest surface on a ray; a shadow needs only to know that there is one. So this walks the
bounding volumes that MuJoCo built for its meshes and stops at the first hit, about ten times faster. A pure function of the
model and the poses; the loops are compiled by numba and cached on disk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mujoco
import numba
import numpy as np

_BOX, _CYLINDER, _SPHERE, _MESH = (
    int(getattr(mujoco.mjtGeom, f"mjGEOM_{name}")) for name in ("BOX", "CYLINDER", "SPHERE", "MESH")
)
_DEPTH = 64  # of the stack of nodes still to visit; MuJoCo's trees of 500 faces are 11 deep
_SMALL = 1e-12
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"nsz", "arcp", "contract", "afn", "reassoc"}}
_kernel = numba.njit(cache=True, **_OPTIONS)
_inline = numba.njit(forceinline=True, **_OPTIONS)


class Casters(NamedTuple):
    """The K geoms that cast shadows: id [K], kind [K], size [K, 3], radius of the bounding sphere [K], root of a mesh's tree
    [K]. The trees of B nodes: children [B, 2] (from the root), boxes [B, 6] (centre, half sizes), row of a leaf's triangle [B],
    -1 for other nodes; triangles [F, 9] (a corner, the edges to the two others).
    """

    geom: np.ndarray
    kind: np.ndarray
    size: np.ndarray
    radius: np.ndarray
    root: np.ndarray
    children: np.ndarray
    boxes: np.ndarray
    leaf: np.ndarray
    triangles: np.ndarray


def casters(model: mujoco.MjModel, group: int) -> Casters:
    """The geoms of `group` as casters. Raises ValueError for a kind of geom that scenes do not have."""
    geom = np.flatnonzero(model.geom_group == group)
    kind, known = model.geom_type[geom], {_BOX, _CYLINDER, _SPHERE, _MESH}
    if not set(kind.tolist()) <= known:
        raise ValueError(f"geoms of types {sorted(set(kind.tolist()) - known)} cast no shadows here; use {sorted(known)}")
    leaf = model.bvh_nodeid.copy()
    for root, num, first in zip(model.mesh_bvhadr, model.mesh_bvhnum, model.mesh_faceadr, strict=True):
        leaf[root : root + num][leaf[root : root + num] >= 0] += first
    corners = model.mesh_face + np.repeat(model.mesh_vertadr, model.mesh_facenum)[:, None]
    a, b, c = (model.mesh_vert[corners[:, i]].astype(np.float64) for i in range(3))
    return Casters(
        geom=geom,
        kind=kind,
        size=model.geom_size[geom],
        radius=model.geom_rbound[geom],
        root=model.mesh_bvhadr[model.geom_dataid[geom]],
        children=model.bvh_child.copy(),
        boxes=model.bvh_aabb.copy(),
        leaf=leaf,
        triangles=np.concatenate([a, b - a, c - a], axis=1),
    )


def hidden(of: Casters, data: mujoco.MjData, lamp: np.ndarray, points: np.ndarray, reach: float) -> np.ndarray:
    """bool [N]: which points [N, 3] have a caster before `reach` (a share, below 1) of the way from the lamp [3] to them."""
    out = np.empty(len(points), np.bool_)
    rotation = data.geom_xmat[of.geom].reshape(-1, 3, 3)
    centre = lamp - data.geom_xpos[of.geom]
    _hidden(of, centre, np.einsum("kji,kj->ki", rotation, centre), rotation, lamp, np.ascontiguousarray(points), reach, out)
    return out


@_kernel
def _hidden(of, lamps, local_lamps, rotations, lamp, points, reach, out):
    """lamps [K, 3]: from each caster to the lamp, in the base frame; local_lamps [K, 3]: in the caster's own."""
    num, last, stack = len(of.kind), 0, np.empty(_DEPTH, np.int32)
    for n in range(len(points)):
        x, y, z = points[n, 0] - lamp[0], points[n, 1] - lamp[1], points[n, 2] - lamp[2]
        per_square = 1.0 / (x * x + y * y + z * z)
        out[n] = False
        for i in range(num):
            k = last if i == 0 else (0 if i == last else i)  # the caster that hid the point before comes first
            a, b, c = lamps[k, 0], lamps[k, 1], lamps[k, 2]
            t = min(max(-(a * x + b * y + c * z) * per_square, 0.0), reach)
            if (a + t * x) ** 2 + (b + t * y) ** 2 + (c + t * z) ** 2 > of.radius[k] ** 2:
                continue
            dx = rotations[k, 0, 0] * x + rotations[k, 1, 0] * y + rotations[k, 2, 0] * z
            dy = rotations[k, 0, 1] * x + rotations[k, 1, 1] * y + rotations[k, 2, 1] * z
            dz = rotations[k, 0, 2] * x + rotations[k, 1, 2] * y + rotations[k, 2, 2] * z
            dx, dy, dz = _not_zero(dx), _not_zero(dy), _not_zero(dz)
            a, b, c = local_lamps[k, 0], local_lamps[k, 1], local_lamps[k, 2]
            if of.kind[k] == _MESH:
                met = _meets_mesh(of.children, of.boxes, of.leaf, of.triangles, of.root[k], a, b, c, dx, dy, dz, reach, stack)
            elif of.kind[k] == _BOX:
                size = of.size[k, 0], of.size[k, 1], of.size[k, 2]
                met = _meets_box(a, b, c, 1.0 / dx, 1.0 / dy, 1.0 / dz, size[0], size[1], size[2], reach)
            elif of.kind[k] == _SPHERE:
                met = _meets_round(a * a + b * b + c * c, a * dx + b * dy + c * dz, 1.0 / per_square, of.size[k, 0], 0.0, reach)
            else:  # a cylinder: what lies between its ends, then within its side
                p, q = (-of.size[k, 1] - c) / dz, (of.size[k, 1] - c) / dz
                low, high = max(min(p, q), 0.0), min(max(p, q), reach)
                met = _meets_round(a * a + b * b, a * dx + b * dy, dx * dx + dy * dy, of.size[k, 0], low, high)
            if met:
                out[n], last = True, k
                break


@_inline
def _not_zero(x):
    return x if abs(x) > _SMALL else _SMALL


@_inline
def _meets_round(square, along, length, radius, low, high):
    """Whether a point that starts at a distance with this square, and moves on with this product and squared speed, comes
    within `radius` between the times low and high.
    """
    root = along * along - length * (square - radius * radius)
    if root < 0.0:
        return False
    root = np.sqrt(root)
    return max(low, (-along - root) / length) < min(high, (root - along) / length)


@_inline
def _meets_box(a, b, c, per_x, per_y, per_z, half_x, half_y, half_z, reach):
    """The slab method, for a ray from (a, b, c) whose direction has the inverse (per_x, per_y, per_z)."""
    p, q = (-half_x - a) * per_x, (half_x - a) * per_x
    low, high = max(0.0, min(p, q)), min(reach, max(p, q))
    p, q = (-half_y - b) * per_y, (half_y - b) * per_y
    low, high = max(low, min(p, q)), min(high, max(p, q))
    p, q = (-half_z - c) * per_z, (half_z - c) * per_z
    return max(low, min(p, q)) <= min(high, max(p, q))


@_inline
def _meets_mesh(children, boxes, leaf, triangles, root, a, b, c, dx, dy, dz, reach, stack):
    per_x, per_y, per_z = 1.0 / dx, 1.0 / dy, 1.0 / dz
    stack[0], depth = 0, 1
    while depth > 0:
        depth -= 1
        node = root + stack[depth]
        p, q, r = a - boxes[node, 0], b - boxes[node, 1], c - boxes[node, 2]
        if not _meets_box(p, q, r, per_x, per_y, per_z, boxes[node, 3], boxes[node, 4], boxes[node, 5], reach):
            continue
        if leaf[node] >= 0:
            if _meets_triangle(triangles, leaf[node], a, b, c, dx, dy, dz, reach):
                return True
        else:
            for side in range(2):
                if children[node, side] >= 0:
                    stack[depth] = children[node, side]
                    depth += 1
    return False


@_inline
def _meets_triangle(triangles, i, a, b, c, dx, dy, dz, reach):
    """Moeller and Trumbore 1997, from both sides."""
    ux, uy, uz = triangles[i, 3], triangles[i, 4], triangles[i, 5]
    vx, vy, vz = triangles[i, 6], triangles[i, 7], triangles[i, 8]
    px, py, pz = dy * vz - dz * vy, dz * vx - dx * vz, dx * vy - dy * vx
    determinant = ux * px + uy * py + uz * pz
    if abs(determinant) < 1e-18:
        return False
    scale = 1.0 / determinant
    sx, sy, sz = a - triangles[i, 0], b - triangles[i, 1], c - triangles[i, 2]
    u = (sx * px + sy * py + sz * pz) * scale
    qx, qy, qz = sy * uz - sz * uy, sz * ux - sx * uz, sx * uy - sy * ux
    v = (dx * qx + dy * qy + dz * qz) * scale
    t = (vx * qx + vy * qy + vz * qz) * scale
    return u >= 0.0 and v >= 0.0 and u + v <= 1.0 and 0.0 < t < reach
