"""A software rasteriser for small pictures of a few thousand faces: colour, metric depth and segmentation on one CPU core.

It needs no OpenGL and gives the same bits on every run of a machine. The loops are in kernels.py and shading.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robopolicy.sim import kernels, shading
from robopolicy.sim.facets import build
from robopolicy.sim.meshes import Mesh
from robopolicy.sim.scene import BACKGROUND, TABLE, Camera, Frame, Light, Scene
from robopolicy.sim.textures import NUM_TEXTURES, texture_pyramid

TABLE_TILE = 0.6  # m of table that one texture covers
SKY_TILES = 4  # textures around the horizon
TEXELS_PER_PIXEL = 1.0  # side of a pixel where the camera looks at the table, over that of a texel of the shadow map
MAX_TEXELS_PER_PIXEL = 2.5  # in number
FINEST_TEXEL, COARSEST_TEXEL = 0.001, 0.008  # m
_NOTHING = np.empty((2, 0, 0, 3), np.float32)


@dataclass(frozen=True)
class Part:
    """A rigid mesh and its looks. frame: which of the poses given to render() is that of the mesh. segmentation: its id.

    rgb in [0, 1]. texture: index into the texture bank, multiplies the colour; -1 for none.
    """

    mesh: Mesh
    frame: int
    segmentation: int
    rgb: Sequence[float]
    texture: int = -1


class Rasterizer:
    """Draws a scene again and again, wherever its parts are.

    Args:
        parts: what there is beside the table.
        scene: gives table, background and light; its bodies and robot are not looked at.
        supersample: 1, or 2 for antialiased colour, from 2 x 2 samples a pixel; depth and segmentation stay as they are.
        shadow_size: largest side of the shadow map in texels, a multiple of 8; 0 for no shadows.

    Faces are visible from their outside only. An instance owns scratch memory: use one per thread. Frames it returns are the
    caller's.

    Raises:
        ValueError: a texture that the bank does not have, a negative frame, or another supersample or shadow_size.
    """

    def __init__(self, parts: Sequence[Part], scene: Scene, *, supersample: int = 1, shadow_size: int = 512):
        if supersample not in (1, 2):
            raise ValueError(f"supersample={supersample} must be 1 or 2")
        if shadow_size < 0 or shadow_size % 8:
            raise ValueError(f"shadow_size={shadow_size} must be a multiple of 8, or 0 for no shadows")
        if any(part.frame < 0 for part in parts):
            raise ValueError(f"frames {[part.frame for part in parts]} must not be negative")
        self.supersample = supersample
        self.num_frames = max((part.frame + 1 for part in parts), default=0)
        meshes, frames = [part.mesh for part in parts], [part.frame for part in parts]
        self._geometry = build(meshes, frames, [part.segmentation for part in parts])
        self._table = _table(scene)
        self._looks = _looks(parts, scene)
        self._lamp = _lamp(scene.light)
        num, transform = len(parts), (len(parts), 3, 4)
        self._scratch = kernels.Scratch(
            placed=np.empty(transform, np.float32),
            in_cam=np.empty(transform, np.float32),
            in_light=np.empty(transform, np.float32),
            screen=np.empty((self._geometry.points.shape[1], 3), np.float32),
            chosen=np.empty(len(self._geometry.faces) + 1, np.int32),
        )
        has_shadows = shadow_size and scene.light.shadow > 0 and num
        self._shadow_map = np.empty((shadow_size if has_shadows else 0,) * 2, np.float32)
        self._still: dict[str, tuple[Camera, np.ndarray]] = {}
        self._from_cam, self._forms = np.zeros((3, 4), np.float32), np.empty((7, 4), np.float32)

    def render(self, poses: np.ndarray, camera: Camera, rgb: bool = True) -> Frame:
        """What `camera` sees.

        Args:
            poses: position (m) and quaternion (xyzw) in the base frame of every frame that parts are in, [num_frames, 7].
            camera: the camera; pixels farther than camera.far show the background, what is nearer than camera.near is cut off.
            rgb: False leaves the colour image black, which is several times faster.

        Raises:
            ValueError: another number of poses, or one that is not finite.
        """
        poses = self._checked_poses(poses)
        height, width, geometry, scratch = camera.height, camera.width, self._geometry, self._scratch
        view = pinhole(camera, 1)
        nearness, face = _buffers(height, width)
        depth, segmentation = np.empty((height, width), np.float32), np.empty((height, width), np.uint8)
        kernels.see(geometry, poses, view, scratch, width, nearness, face)
        least = kernels.resolve(geometry, view, self._table, BACKGROUND, TABLE, nearness, face, depth, segmentation)
        if not rgb:
            return Frame(np.zeros((height, width, 3), np.uint8), depth, segmentation)
        columns, rows, texel = 0, 0, 0.0
        if len(self._shadow_map):
            columns, rows, texel = kernels.cast(
                geometry,
                scratch,
                view,
                width,
                height,
                least,
                self._lamp.axes,
                shadow_texel(view, self._table.height),
                MAX_TEXELS_PER_PIXEL * height * width,
                self._shadow_map,
                self._from_cam,
            )
        shadows = shading.Shadows(self._shadow_map, self._from_cam, columns, rows, texel)
        if self.supersample == 2:
            nearness, face = self._samples(poses, camera)
        line, places = np.empty((5, width), np.float32), np.empty((2, width), np.int32)
        still = self._backdrop(camera, view, shadows, line, places)
        picture = np.empty((height, width, 3), np.uint8)
        shading.shade(
            geometry,
            scratch.in_cam,
            view,
            self._table,
            self._looks,
            self._lamp,
            shadows,
            nearness,
            face,
            still,
            line,
            places,
            self._forms,
            picture,
        )
        return Frame(picture, depth, segmentation)

    def _checked_poses(self, poses: np.ndarray) -> np.ndarray:
        """The poses as float64 [num_frames, 7]; ValueError if they are not that."""
        poses = np.ascontiguousarray(poses, np.float64)
        if poses.shape != (self.num_frames, 7):
            raise ValueError(f"poses {poses.shape}: the parts are in {self.num_frames} frames, so give [{self.num_frames}, 7]")
        bad = kernels.bad_pose(poses)
        if bad >= 0:
            raise ValueError(
                f"pose {poses[bad].tolist()} of frame {bad}: give a finite position (m) and a unit quaternion (xyzw)"
            )
        return poses

    def _backdrop(
        self, camera: Camera, view: kernels.View, shadows: shading.Shadows, line: np.ndarray, places: np.ndarray
    ) -> np.ndarray:
        """shading.backdrop() of a camera that stands still, made when it is first looked through; else nothing."""
        if not camera.still:
            return _NOTHING
        known, found = self._still.get(camera.name, (None, _NOTHING))
        if known is not camera:
            found = np.empty((2, camera.height, camera.width, 3), np.float32)
            shading.backdrop(view, self._table, self._looks, self._lamp, shadows, line, places, self._forms, found)
            self._still[camera.name] = camera, found
        return found

    def _samples(self, poses: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
        """Nearness and face index of 2 x 2 samples a pixel."""
        view, shape = pinhole(camera, 2), (2 * camera.height, 2 * camera.width)
        nearness, face = _buffers(*shape)
        kernels.see(self._geometry, poses, view, self._scratch, shape[1], nearness, face)
        depth, segmentation = np.empty(shape, np.float32), np.empty(shape, np.uint8)
        kernels.resolve(self._geometry, view, self._table, BACKGROUND, TABLE, nearness, face, depth, segmentation)
        return nearness, face


def _buffers(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearness and face index of every pixel, as the kernels want them: in rows of a multiple of 8."""
    shape = height, -(-width // 8) * 8
    return np.empty(shape, np.float32), np.empty(shape, np.int32)


def pinhole(camera: Camera, supersample: int) -> kernels.View:
    """The camera, in pixels of a picture that is `supersample` times as large."""
    height, width = supersample * camera.height, supersample * camera.width
    return kernels.View(
        T_base_cam=np.ascontiguousarray(camera.T_base_cam, np.float64),
        focal=height / 2 / math.tan(math.radians(camera.fov_deg) / 2),
        centre_x=width * camera.center[0],
        centre_y=height * camera.center[1],
        near=camera.near,
        far=camera.far,
    )


def _checked(name: str, texture: int) -> int:
    if not -1 <= texture < NUM_TEXTURES:
        raise ValueError(f"{name}={texture} must lie in -1..{NUM_TEXTURES - 1}")
    return int(texture)


def _table(scene: Scene) -> kernels.Table:
    return kernels.Table(
        x=float(scene.table_x),
        height=float(scene.table_height),
        half=float(scene.table_half),
        repeats=1 / TABLE_TILE,
        texture=_checked("table_texture", scene.table_texture),
        rgb=np.array(scene.table_rgb, np.float32),
    )


def _looks(parts: Sequence[Part], scene: Scene) -> shading.Looks:
    return shading.Looks(
        rgb=np.array([part.rgb for part in parts], np.float32).reshape(-1, 3),
        texture=np.array([_checked("texture", part.texture) for part in parts], np.int32),
        background_rgb=np.array(scene.background_rgb, np.float32),
        background_texture=_checked("background_texture", scene.background_texture),
        sky=SKY_TILES / (2 * math.pi),
        pyramid=texture_pyramid(),
    )


def _lamp(light: Light) -> shading.Lamp:
    """The light and the axes of its shadow map. Rows grow downwards as in a camera's image."""
    x, y, z = (float(a) / math.hypot(*light.direction) for a in light.direction)
    level = math.hypot(x, y)
    right = (-y / level, x / level, 0.0) if level > 1e-6 else (0.0, 1.0, 0.0)
    down = (right[1] * z, -right[0] * z, right[0] * y - right[1] * x)
    return shading.Lamp(
        axes=np.array([right, down, (x, y, z)]),
        rgb=np.array(light.rgb, np.float32),
        ambient=float(light.ambient),
        diffuse=float(light.diffuse),
        specular=float(light.specular),
        shadow=float(light.shadow),
    )


def shadow_texel(view: kernels.View, table_height: float) -> float:
    """Side of a shadow texel (m): a fraction of a pixel's where the camera looks at the table, in steps of the square root of 2
    so that a moving camera seldom changes it.
    """
    above, down = view.T_base_cam.item(2, 3) - table_height, -view.T_base_cam.item(2, 2)
    distance = min(above / down, view.far) if above * down > 0 else view.far
    texel = min(max(distance / view.focal / TEXELS_PER_PIXEL, FINEST_TEXEL), COARSEST_TEXEL)
    return 2 ** (round(2 * math.log2(texel)) / 2)
