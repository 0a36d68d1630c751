"""Pictures of a dressing scene: arm, torso and gripper are rigid, the cloth's mesh is a new one in every frame."""

from __future__ import annotations

import numpy as np

from robopolicy.sim.arm import Arm
from robopolicy.sim.cloth import z_towards
from robopolicy.sim.garments import Sleeve
from robopolicy.sim.holders import Holder
from robopolicy.sim.meshes import Mesh, shape_mesh
from robopolicy.sim.raster import Part, Rasterizer
from robopolicy.sim.scene import FIRST_BODY, ROBOT, Camera, Frame, Scene, Shape

ARM, TORSO, GARMENT = FIRST_BODY, FIRST_BODY + 1, FIRST_BODY + 2  # segmentation ids; the gripper is ROBOT
Rgb = tuple[float, float, float]
_STILL = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]


class DressView:
    """Draws one episode's scene.

    Args:
        arm, mesh, holder: what there is. scene: floor, background and light. skin, cloth: colours. texture: of the cloth,
            -1 = plain.
    """

    def __init__(self, arm: Arm, mesh: Sleeve, holder: Holder, scene: Scene, skin: Rgb, cloth: Rgb, texture: int = -1) -> None:
        self._holder, self._scene, self._cloth, self._texture = holder, scene, cloth, texture
        self._faces = np.concatenate([mesh.faces, mesh.faces[:, ::-1] + len(mesh.vertices)]).astype(np.int32)
        angle = np.arctan2(mesh.vertices[:, 2], mesh.vertices[:, 1]) / (2 * np.pi)
        self._uv = np.tile(np.column_stack([4 * angle, -mesh.vertices[:, 0] / 0.2]), (2, 1)).astype(np.float32)
        self._body = [
            Part(mesh, 0, TORSO if capsule.name == "torso" else ARM, (0.55, 0.6, 0.65) if capsule.name == "torso" else skin)
            for capsule in arm.capsules
            for mesh in _capsule_meshes(capsule.start, capsule.end, capsule.radius)
        ]
        self._gripper = [Part(mesh, 1 + frame, ROBOT, rgb) for frame, mesh, rgb in holder.visuals()]

    def render(
        self,
        camera: Camera,
        vertices: np.ndarray | None,
        rgb: bool = True,
        antialiasing: bool = False,
    ) -> Frame:
        """What `camera` sees with the cloth at `vertices` [V, 3] (m) and its holder where it is now; None = neither is there.

        A holder that is not solid shows in a colour picture alone.
        """
        parts = self._body
        if vertices is not None:
            mesh = Mesh(*_both_sides(vertices, self._faces[: len(self._faces) // 2]), self._uv, self._faces)
            parts = [
                *parts,
                *(self._gripper if rgb or self._holder.solid else []),
                Part(mesh, 0, GARMENT, self._cloth, self._texture),
            ]
        raster = Rasterizer(parts, self._scene, supersample=2 if rgb and antialiasing else 1, shadow_size=512 if rgb else 0)
        poses = [_STILL, *(self._holder.frames().tolist() if raster.num_frames > 1 else [])]
        frame = raster.render(np.array(poses), camera, rgb)
        if not rgb or self._holder.solid or vertices is None:
            return frame
        seen = self.render(camera, vertices, rgb=False)
        return Frame(frame.rgb, seen.depth, seen.segmentation)


def _capsule_meshes(start: np.ndarray, end: np.ndarray, radius: float) -> list[Mesh]:
    """A cylinder and the spheres at its ends."""
    axis = end - start
    x, y, z, w = z_towards(axis).as_quat().tolist()
    middle, half = (start + end) / 2, float(np.linalg.norm(axis)) / 2
    at = [tuple(point.tolist()) for point in (middle, start, end)]
    pieces = [Shape("cylinder", (radius, radius, half), at[0], (x, y, z, w))]
    pieces += [Shape("sphere", (radius, radius, radius), place) for place in at[1:]]
    return [shape_mesh(piece) for piece in pieces]


def _both_sides(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices float32 [2 V, 3] and unit normals [2 V, 3] of a surface seen from both sides: outside first, then inside."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    across = np.cross(b - a, c - a)
    normals = np.zeros_like(vertices)
    for i in range(3):
        np.add.at(normals, faces[:, i], across)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return np.tile(vertices, (2, 1)).astype(np.float32), np.concatenate([normals, -normals]).astype(np.float32)
