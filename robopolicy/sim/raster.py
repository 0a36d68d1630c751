"""A software rasteriser for small pictures of a few thousand faces: colour, metric depth and segmentation on one CPU core.

It needs no OpenGL and gives the same bits on every run of a machine. The loops are in kernels.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from robopolicy.sim import kernels
from robopolicy.sim.meshes import Mesh
from robopolicy.sim.scene import BACKGROUND, TABLE, Camera, Frame, Light, Scene
from robopolicy.sim.textures import NUM_TEXTURES, texture_bank

TABLE_TILE = 0.6  # m of table that one texture covers
SHADOW_MARGIN = 1.2  # half side of the shadow map over that of the table
SHADOW_FLOOR = 5.0  # m below the table where the light's nearness is zero


class Rasterizer:
    """Draws the same meshes again and again, wherever they are.

    Args:
        meshes: the K meshes, each rigid.
        segmentation: id [K] that each mesh has in the segmentation image.
        supersample: 1, or 2 to draw colour at twice the size and average (antialiasing); depth and segmentation stay as
            they are.
        shadow_size: side of the shadow map in texels, 0 for no shadows.

    Faces are visible from their outside only, and not at all when one of their vertices is nearer than camera.near.
    An instance owns scratch memory: use one per thread. Frames it returns are the caller's.

    Raises:
        ValueError: lists of different length, or a supersample other than 1 and 2.
    """

    def __init__(self, meshes: Sequence[Mesh], segmentation: Sequence[int], *, supersample: int = 1, shadow_size: int = 256):
        if len(meshes) != len(segmentation):
            raise ValueError(f"{len(meshes)} meshes but {len(segmentation)} segmentation ids: give one id per mesh")
        if supersample not in (1, 2):
            raise ValueError(f"supersample={supersample} must be 1 or 2")
        self.num_meshes = len(meshes)
        self.supersample = supersample
        sizes = [len(mesh.vertices) for mesh in meshes]
        starts = np.cumsum([0, *sizes])
        self._segmentation = np.asarray(segmentation, np.uint8)
        self._vertices = _stack([mesh.vertices for mesh in meshes], np.float32, 3)
        self._normals = _stack([mesh.normals for mesh in meshes], np.float32, 3)
        self._uv = _stack([mesh.uv for mesh in meshes], np.float32, 2)
        self._faces = _stack([mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)], np.int32, 3)
        self._mesh_of_vertex = np.repeat(np.arange(len(meshes), dtype=np.int32), sizes)
        self._mesh_of_face = np.repeat(np.arange(len(meshes), dtype=np.int32), [len(mesh.faces) for mesh in meshes])
        self._density = _texture_density(self._vertices, self._uv, self._faces)
        self._points, self._screen = np.empty_like(self._vertices), np.empty_like(self._vertices)
        self._shadow_map = np.zeros((shadow_size, shadow_size), np.float32)
        self._shadow_face = np.empty((shadow_size, shadow_size), np.int32)
        self._pyramid = _mip_pyramid(texture_bank())

    def render(
        self,
        T_base_mesh: np.ndarray,
        rgb_of_mesh: np.ndarray,
        texture_of_mesh: np.ndarray,
        scene: Scene,
        camera: Camera,
        rgb: bool = True,
    ) -> Frame:
        """What `camera` sees.

        Args:
            T_base_mesh: poses [K, 4, 4] of the meshes in the base frame.
            rgb_of_mesh: colours [K, 3] in [0, 1].
            texture_of_mesh: indices [K] into the texture bank, -1 for none; a texture multiplies the colour.
            scene: gives table, background and light; its bodies and robot are not looked at.
            camera: the camera; pixels farther than camera.far show the background.
            rgb: False leaves the colour image black, which is several times faster.

        Raises:
            ValueError: arrays that do not have K entries, or a texture that the bank does not have.
        """
        geometry = self._place(T_base_mesh, rgb_of_mesh, texture_of_mesh)
        table = _table(scene)
        view = _view(camera, 1)
        face, depth, segmentation = self._visible(geometry, table, view, camera.height, camera.width)
        if not rgb:
            return Frame(np.zeros((camera.height, camera.width, 3), np.uint8), depth, segmentation)
        lamp = _lamp(scene.light, scene, self._shadow_map.shape[0])
        if lamp.shadow > 0:
            kernels.project_light(geometry.points, lamp.T_light_base, self._screen)
            kernels.rasterise(self._screen, self._faces, self._shadow_map, self._shadow_face)
        fine_depth = depth
        if self.supersample == 2:
            view = _view(camera, 2)
            face, fine_depth, _ = self._visible(geometry, table, view, 2 * camera.height, 2 * camera.width)
        picture = np.empty((*face.shape, 3), np.uint8)
        background = _to_bytes(scene.background_rgb)
        kernels.shade(face, fine_depth, geometry, table, background, self._pyramid, lamp, self._shadow_map, view, picture)
        if self.supersample == 2:
            large, picture = picture, np.empty((camera.height, camera.width, 3), np.uint8)
            kernels.halve(large, picture)
        return Frame(picture, depth, segmentation)

    def _place(self, T_base_mesh: np.ndarray, rgb: np.ndarray, texture: np.ndarray) -> kernels.Geometry:
        """Check the per-mesh arrays and move all vertices into the base frame."""
        k = self.num_meshes
        poses = np.ascontiguousarray(np.asarray(T_base_mesh)[..., :3, :], np.float32)
        colours = np.ascontiguousarray(rgb, np.float32)
        textures = np.ascontiguousarray(texture, np.int32)
        if poses.shape != (k, 3, 4) or colours.shape != (k, 3) or textures.shape != (k,):
            given = f"T_base_mesh {np.shape(T_base_mesh)}, rgb_of_mesh {colours.shape}, texture_of_mesh {textures.shape}"
            raise ValueError(f"{given}; this rasterizer has {k} meshes: expected ({k}, 4, 4), ({k}, 3), ({k},)")
        if k and (textures.min() < -1 or textures.max() >= NUM_TEXTURES):
            raise ValueError(f"texture_of_mesh {textures.tolist()} must lie in -1..{NUM_TEXTURES - 1}")
        kernels.move_points(self._vertices, self._mesh_of_vertex, poses, self._points)
        return kernels.Geometry(
            points=self._points,
            normals=self._normals,
            uv=self._uv,
            faces=self._faces,
            mesh_of_face=self._mesh_of_face,
            density=self._density,
            poses=poses,
            rgb=colours,
            texture=textures,
            segmentation=self._segmentation,
        )

    def _visible(
        self, geometry: kernels.Geometry, table: kernels.Table, view: kernels.View, height: int, width: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Face index, depth and segmentation of every pixel, each [height, width]."""
        nearness, face = np.empty((height, width), np.float32), np.empty((height, width), np.int32)
        depth, segmentation = np.empty((height, width), np.float32), np.empty((height, width), np.uint8)
        kernels.project(geometry.points, view, self._screen)
        kernels.rasterise(self._screen, self._faces, nearness, face)
        kernels.resolve(nearness, face, geometry, table, BACKGROUND, TABLE, view, depth, segmentation)
        return face, depth, segmentation


def _stack(parts: list[np.ndarray], dtype: type, columns: int) -> np.ndarray:
    return np.concatenate([np.empty((0, columns)), *parts]).astype(dtype)


def _texture_density(vertices: np.ndarray, uv: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Texture units per metre on every face, float32 [F]; 0 where a face has no texture coordinates."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    p, q, r = (uv[faces[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    covered = np.abs((q - p)[:, 0] * (r - p)[:, 1] - (q - p)[:, 1] * (r - p)[:, 0])
    return np.sqrt(covered / np.maximum(area, 1e-12)).astype(np.float32)


def _mip_pyramid(bank: np.ndarray) -> np.ndarray:
    """Textures [K, n, n, 3] with their halvings below: uint8 [K, 2 n, n, 3], level l in the rows from 2 n - (2 n >> l) on."""
    num, size = bank.shape[:2]
    pyramid = np.zeros((num, 2 * size, size, 3), np.uint8)
    level, start = bank.astype(np.float32), 0
    while True:
        side = level.shape[1]
        pyramid[:, start : start + side, :side] = np.round(level)
        if side == 1:
            return pyramid
        start += side
        level = level.reshape(num, side // 2, 2, side // 2, 2, 3).mean(axis=(2, 4))


def _to_bytes(rgb: tuple[float, float, float]) -> np.ndarray:
    return np.round(255 * np.clip(rgb, 0, 1)).astype(np.uint8)


def _view(camera: Camera, supersample: int) -> kernels.View:
    return kernels.View(
        T_base_cam=np.ascontiguousarray(camera.T_base_cam[:3], np.float32),
        focal=np.float32(camera.focal * supersample),
        centre_x=np.float32(camera.width * supersample / 2),
        centre_y=np.float32(camera.height * supersample / 2),
        near=np.float32(camera.near),
        far=np.float32(camera.far),
    )


def _table(scene: Scene) -> kernels.Table:
    if not -1 <= scene.table_texture < NUM_TEXTURES:
        raise ValueError(f"table_texture={scene.table_texture} must lie in -1..{NUM_TEXTURES - 1}")
    return kernels.Table(
        x=np.float32(scene.table_x),
        height=np.float32(scene.table_height),
        half=np.float32(scene.table_half),
        rgb=np.array(scene.table_rgb, np.float32),
        texture=scene.table_texture,
        repeats=np.float32(1 / TABLE_TILE),
    )


def _lamp(light: Light, scene: Scene, shadow_size: int) -> kernels.Lamp:
    """The light, with an orthographic shadow map centred on the table top. Rows grow downwards as in a camera's image."""
    x, y, z = (float(a) / math.hypot(*light.direction) for a in light.direction)
    level = math.hypot(x, y)
    right = (-y / level, x / level, 0.0) if level > 1e-6 else (0.0, 1.0, 0.0)
    down = (right[1] * z, -right[0] * z, right[0] * y - right[1] * x)
    half = SHADOW_MARGIN * scene.table_half
    texels = shadow_size / (2 * half)
    axes = np.array([right, down, (x, y, z)]) * [[texels], [texels], [1.0]]
    origin = np.array([shadow_size / 2, shadow_size / 2, SHADOW_FLOOR])
    centre = np.array([scene.table_x, 0.0, scene.table_height])
    return kernels.Lamp(
        direction=np.array((x, y, z), np.float32),
        rgb=np.array(light.rgb, np.float32),
        ambient=np.float32(light.ambient),
        diffuse=np.float32(light.diffuse),
        specular=np.float32(light.specular),
        shadow=np.float32(light.shadow if shadow_size else 0.0),
        T_light_base=np.column_stack([axes, origin - axes @ centre]).astype(np.float32),
        texel=np.float32(1 / texels if shadow_size else 0.0),
    )
