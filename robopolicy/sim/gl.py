"""The rasteriser of raster.py in OpenGL 4.3: on a GPU where EGL offers one, else on Mesa's software renderer, without a window.

The same two steps and formulas as on the CPU, so that the pictures agree, though not to the bit: drivers round as they like.
The first device of EGL draws, which is a GPU where there is one; GLCONTEXT_DEVICE_INDEX=n chooses another.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from robopolicy.sim import gl_shaders, kernels
from robopolicy.sim.raster import MAX_TEXELS_PER_PIXEL, Part, Rasterizer, pinhole, shadow_texel
from robopolicy.sim.scene import Camera, Frame, Scene
from robopolicy.sim.textures import NUM_TEXTURES, TEXTURE_SIZE, texture_bank

SHADOW_MARGIN = 0.01  # m before and behind everything that casts shadows
NUM_SIZES = 16  # of pictures whose targets are kept
_PLACED, _SEEN, _FINE, _BANK, _SHADOWS = range(5)  # texture units
_SAMPLERS = {"in_cam": _PLACED, "coarse": _SEEN, "fine": _FINE, "bank": _BANK, "shadow_map": _SHADOWS}
_EGL: dict[str, Any] = {"backend": "egl", "libgl": "libGL.so.1", "libegl": "libEGL.so.1"}  # names without a -dev package
_INSTALL = "pip install robopolicy[gl], and on Debian apt install libegl1 libgl1 libgl1-mesa-dri; or use renderer='cpu'"


class _Seen(NamedTuple):
    """What gl_shaders.SEE draws into."""

    target: Any
    texture: Any


class Device:
    """The OpenGL context of this process, what every rasterizer needs of it, and the targets it draws into, by size."""

    def __init__(self) -> None:
        try:
            import moderngl
        except ImportError as error:
            raise ImportError(f"renderer='gl' needs the package moderngl: {_INSTALL}") from error
        try:
            self.context = c = moderngl.create_context(require=430, standalone=True, **_EGL)
        except Exception as error:  # moderngl has no class of its own for it
            raise RuntimeError(f"renderer='gl' found no OpenGL 4.3 through EGL ({error}): {_INSTALL}") from error
        self._process, self._lock = os.getpid(), threading.RLock()
        self.name = f"{c.info['GL_RENDERER']}, OpenGL {c.version_code / 100}"
        c.gc_mode = "context_gc"  # what Python forgets is freed when the context is next in use
        c.front_face = "cw"
        self.geometry_state, self.plain_state = c.DEPTH_TEST | c.CULL_FACE, c.NOTHING
        self.see = c.program(vertex_shader=gl_shaders.PLACE, fragment_shader=gl_shaders.SEE)
        self.cast = c.program(vertex_shader=gl_shaders.PLACE, fragment_shader=gl_shaders.CAST)
        self.picture_block = c.buffer(reserve=4 * 4 * 14)
        bank = np.dstack(
            [texture_bank().reshape(-1, TEXTURE_SIZE, 3), np.full((NUM_TEXTURES * TEXTURE_SIZE, TEXTURE_SIZE), 255)]
        )
        self.bank = c.texture_array((TEXTURE_SIZE, TEXTURE_SIZE, NUM_TEXTURES), 4, bank.astype(np.uint8).tobytes())
        self.bank.build_mipmaps()
        self.bank.filter = c.LINEAR_MIPMAP_LINEAR, c.LINEAR
        self.painter, self.seen, self.picture, self.shadows = (
            lru_cache(maxsize=NUM_SIZES)(make) for make in (self._painter, self._seen, self._picture, self._shadow_map)
        )
        with c:  # and release it: from here on every use is within in_use()
            pass

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Makes the context current, in any thread, one at a time; then that which was current before it.

        Raises:
            RuntimeError: in another process than the one that made it.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                f"renderer='gl' began in process {self._process} and this is its fork {os.getpid()}, which OpenGL does not "
                "survive: start worker processes by spawn, or use renderer='cpu'"
            )
        with self._lock, self.context:
            self.context.gc()
            yield

    def _painter(self, samples: int) -> Any:
        """Program and vertex array that cover a picture; samples: 0 (no colour), 1 or 2, a side."""
        program = self.context.program(vertex_shader=gl_shaders.COVER, fragment_shader=gl_shaders.PAINT[samples])
        for name, unit in _SAMPLERS.items():
            if name in program:
                program[name] = unit
        return self.context.vertex_array(program, [])

    def _seen(self, width: int, height: int) -> _Seen:
        texture = self.context.texture((width, height), 2, dtype="f4")
        texture.filter = self.context.NEAREST, self.context.NEAREST
        return _Seen(self.context.framebuffer([texture], self.context.depth_renderbuffer((width, height))), texture)

    def _picture(self, width: int, height: int) -> Any:
        c = self.context
        return c.framebuffer([c.renderbuffer((width, height), 4), c.renderbuffer((width, height), 1, dtype="f4")])

    def _shadow_map(self, size: int) -> _Seen:
        texture = self.context.depth_texture((size, size))
        texture.compare_func, texture.filter = "", (self.context.NEAREST, self.context.NEAREST)
        return _Seen(self.context.framebuffer([], texture), texture)


@cache
def device() -> Device:
    """The device of this process, made when it is first asked for.

    Raises:
        ImportError: moderngl is missing. RuntimeError: EGL offers no OpenGL 4.3. Both say what to install.
    """
    return Device()


class GLRasterizer(Rasterizer):
    """Draws a scene again and again, wherever its parts are. Arguments and render() are those of Rasterizer.

    All instances of a process share one OpenGL context, which one thread uses at a time. Its buffers are freed after it.

    Raises:
        ValueError: as Rasterizer. ImportError, RuntimeError: as device().
    """

    def __init__(self, parts: Sequence[Part], scene: Scene, *, supersample: int = 1, shadow_size: int = 512):
        super().__init__(parts, scene, supersample=supersample, shadow_size=shadow_size)
        self._device = device()
        with self._device.in_use():
            self._upload(parts)

    def _upload(self, parts: Sequence[Part]) -> None:
        c, geometry, looks, lamp, table = self._device.context, self._geometry, self._looks, self._lamp, self._table
        look = np.zeros((len(parts), 8), np.float32)
        look[:, :3], look[:, 3], look[:, 4] = looks.rgb, looks.texture, geometry.segmentation
        plane = np.column_stack([geometry.planes[:3].T, geometry.mesh_of_face])
        self._in_cam = c.texture((3, max(len(parts), 1)), 4, dtype="f4")
        self._storage = [self._buffer(a) for a in (plane, geometry.surface, look)]
        self._fixed = np.array(
            [
                (table.x, table.height, table.half, table.repeats),
                (*table.rgb, table.texture),
                (*looks.background_rgb, looks.background_texture),
                (*lamp.rgb, lamp.shadow),
                (lamp.ambient, lamp.diffuse, lamp.specular, looks.sky),
            ],
            np.float32,
        )
        self._drawn: dict[Any, Any] = {}
        if len(geometry.faces):
            mesh = np.repeat(np.arange(len(parts), dtype=np.int32), np.diff(geometry.vertex_start))
            vertices = [(self._buffer(geometry.points.T), "3f", "point"), (c.buffer(mesh.tobytes()), "1i", "mesh")]
            faces = c.buffer(geometry.faces.tobytes())
            programs = self._device.see, self._device.cast
            self._drawn = {program: c.vertex_array(program, vertices, index_buffer=faces) for program in programs}

    def _buffer(self, array: np.ndarray) -> Any:
        """Of float32; of four zeros where there is nothing, because a buffer must not be empty."""
        return self._device.context.buffer(np.ascontiguousarray(array, np.float32).tobytes() or bytes(16))

    def render(self, poses: np.ndarray, camera: Camera, rgb: bool = True) -> Frame:
        """See Rasterizer.render. Raises RuntimeError in a fork of the process that made the first rasterizer."""
        poses = self._checked_poses(poses)
        with self._device.in_use():
            return self._render(poses, camera, rgb)

    def _render(self, poses: np.ndarray, camera: Camera, rgb: bool) -> Frame:
        d, view = self._device, pinhole(camera, 1)
        height, width = camera.height, camera.width
        placed = self._placed(poses)
        T_cam_base = np.linalg.inv(view.T_base_cam)
        in_cam = T_cam_base[:3, :3] @ placed
        in_cam[:, :, 3] += T_cam_base[:3, 3]
        if len(placed):
            self._in_cam.write(in_cam.astype(np.float32).tobytes())
        for i, buffer in enumerate(self._storage):
            buffer.bind_to_storage_buffer(i)
        self._in_cam.use(_PLACED)

        samples = self.supersample if rgb else 0
        projection = _projection(view, width, height)
        seen = [self._see(size * width, size * height, projection) for size in ((1, 2) if samples == 2 else (1,))]
        map_from_cam, columns, rows, texel = np.zeros((3, 4)), 0, 0, 0.0
        if rgb and len(self._shadow_map):
            map_from_cam, columns, rows, texel = self._cast(view, camera, placed, in_cam)

        d.picture_block.write(self._picture(view, map_from_cam, (columns, rows, texel)).tobytes())
        d.picture_block.bind_to_uniform_block(0)
        for unit, texture in zip((_SEEN, _FINE), seen, strict=False):
            texture.use(unit)
        d.bank.use(_BANK)
        picture = d.picture(width, height)
        picture.use()
        d.context.enable_only(d.plain_state)
        d.painter(samples).render(vertices=3)
        colour, depth = np.empty((height, width, 4), np.uint8), np.empty((height, width), np.float32)
        picture.read_into(colour, components=4, alignment=1)
        picture.read_into(depth, components=1, attachment=1, dtype="f4", alignment=1)
        return Frame(np.ascontiguousarray(colour[..., :3]), depth, np.ascontiguousarray(colour[..., 3]))

    def _placed(self, poses: np.ndarray) -> np.ndarray:
        """T_base_mesh of every mesh, [K, 3, 4]."""
        if not len(poses):
            return np.zeros((0, 3, 4))
        T = np.concatenate([Rotation.from_quat(poses[:, 3:]).as_matrix(), poses[:, :3, None]], axis=2)
        return T[self._geometry.frame]

    def _see(self, width: int, height: int, projection: np.ndarray) -> Any:
        """The texture that shows which face every pixel sees."""
        target, texture = self._device.seen(width, height)
        self._draw(self._device.see, target, (width, height), projection)
        return texture

    def _draw(self, program: Any, target: Any, size: tuple[int, int], projection: np.ndarray) -> None:
        target.viewport = (0, 0, *size)
        target.use()
        target.clear(depth=1.0)
        if self._drawn:
            self._device.context.enable_only(self._device.geometry_state)
            program["projection"].write(projection.T.astype(np.float32).tobytes())
            self._drawn[program].render()

    def _cast(
        self, view: kernels.View, camera: Camera, placed: np.ndarray, in_cam: np.ndarray
    ) -> tuple[np.ndarray, int, int, float]:
        """Draw the shadow map and bind it; what is returned is as in kernels.cast(), but row 2 gives depth in [0, 1].

        It covers what may shade something that the camera may see: less is known here than there, as nothing is read back.
        """
        axes, radius, size = self._lamp.axes, self._geometry.spheres[:, 3].astype(float), len(self._shadow_map)
        middle = self._geometry.spheres[:, :3, None].astype(float)
        along = (placed[:, :, :3] @ middle)[..., 0] + placed[:, :, 3]
        along = along @ axes.T
        first, last = (along - radius[:, None]).min(axis=0), (along + radius[:, None]).max(axis=0)
        deepest = float(((in_cam[:, 2:, :3] @ middle)[:, 0, 0] + in_cam[:, 2, 3] + radius).max())
        seen = _sight(view, camera, max(deepest, self._table_depth(view))) @ axes.T
        low, high = np.maximum(seen.min(axis=0), first)[:2], np.minimum(seen.max(axis=0), last)[:2]
        extent, texel = high - low, shadow_texel(view, self._table.height)
        if not (extent > 0).all():
            return np.zeros((3, 4)), 0, 0, texel
        budget = MAX_TEXELS_PER_PIXEL * camera.height * camera.width
        while extent.max() > (size - 6) * texel or extent.prod() > budget * texel**2:
            texel *= 2**0.5
        start = np.floor(low / texel) - 2
        columns, rows = (np.ceil(high / texel) + 2 - start).astype(int).tolist()
        nearest = last[2] + SHADOW_MARGIN
        scale = np.array([1 / texel, 1 / texel, -1 / (nearest - first[2] + SHADOW_MARGIN)])
        map_from_base = np.column_stack([scale[:, None] * axes, [*-start, -nearest * scale[2]]])
        map_from_cam = map_from_base @ view.T_base_cam
        in_clip = np.array([[2 / columns, 0, 0, -1], [0, 2 / rows, 0, -1], [0, 0, 2, -1], [0, 0, 0, 1]])
        target, texture = self._device.shadows(size)
        self._draw(self._device.cast, target, (columns, rows), in_clip @ np.vstack([map_from_cam, [0, 0, 0, 1]]))
        texture.use(_SHADOWS)
        return map_from_cam, columns, rows, texel

    def _table_depth(self, view: kernels.View) -> float:
        """Largest depth (m) of a corner of the table."""
        table, T = self._table, view.T_base_cam
        middle = T[:3, 2] @ ((table.x, 0.0, table.height) - T[:3, 3])
        return float(middle + table.half * np.abs(T[:2, 2]).sum())

    def _picture(self, view: kernels.View, map_from_cam: np.ndarray, shadows: tuple[int, int, float]) -> np.ndarray:
        """The uniform block Picture of gl_shaders."""
        light, T = self._lamp.axes[2], view.T_base_cam
        moving = [
            *T[:3],
            *map_from_cam,
            (*(light @ T[:3, :3]), light[2]),
            (view.focal, view.centre_x, view.centre_y, view.near),
            (view.far, *shadows),
        ]
        return np.concatenate([np.array(moving, np.float32), self._fixed])


def _projection(view: kernels.View, width: int, height: int) -> np.ndarray:
    """From the camera's frame to OpenGL's clip space [4, 4]; row 0 of the target is the upper row of the picture."""
    near, far = view.near, view.far
    return np.array(
        [
            [2 * view.focal / width, 0, 2 * view.centre_x / width - 1, 0],
            [0, 2 * view.focal / height, 2 * view.centre_y / height - 1, 0],
            [0, 0, (far + near) / (far - near), -2 * far * near / (far - near)],
            [0, 0, 1, 0],
        ]
    )


def _sight(view: kernels.View, camera: Camera, depth: float) -> np.ndarray:
    """Corners [5, 3] (base frame) of the pyramid that the camera sees up to `depth` m, but not beyond camera.far."""
    depth = min(max(depth, camera.near), camera.far)
    u = (np.array([0, camera.width]) - view.centre_x) * depth / view.focal
    v = (np.array([0, camera.height]) - view.centre_y) * depth / view.focal
    corners = np.array([(0, 0, 0), *((x, y, depth) for x in u for y in v)])
    return corners @ view.T_base_cam[:3, :3].T + view.T_base_cam[:3, 3]
