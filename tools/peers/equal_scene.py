"""The same scene for both renderers: our rasteriser and MuJoCo's own OpenGL, fed with the same poses of our Lift world.

Equal: decimated meshes, boxes of 12 faces, colours, camera, one directional light, no antialiasing, no reflections, pixels
read back into numpy. Everything is plain-coloured in both. A texel of the shadow map is 7.8 mm wide in both at 84 px,
their number about the same (ours 108 x 111, MuJoCo 128 x 128; with 256 x 256 as a further contender). Not counted: physics
and kinematics of the poses, which are computed beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

NUM_POSES = 50
SHADOW_MAP, SHADOW_HALF = 128, 0.5  # texels and m: 7.8 mm a texel, as ours takes them at 84 px


@dataclass(frozen=True)
class Pose:
    """Where everything is at one moment: joints [7] (rad), gripper opening (m), position and quaternion of each body."""

    joints: np.ndarray
    opening: float
    bodies: dict[str, tuple[np.ndarray, np.ndarray]]
    snapshot: Any


class _Replay:
    """A Lift episode of the expert in the nominal world with two distractors, as poses; step() draws the next one."""

    def __init__(self, size: int, shadow: bool, textured: bool = False) -> None:
        import gymnasium

        import robopolicy
        from robopolicy.sim import world

        nominal = {"light.shadow": 0.7 if shadow else 0.0, "distractors.count": 2.0}
        self.env = gymnasium.make("robopolicy/Lift-v0", observation=("state",), randomization="none", nominal=nominal).unwrapped
        env, self._at = self.env, 0
        env.reset(seed=0)
        self.camera = world.camera("front", env.world, env.T_base_ee, size)
        self.scene = env.scene if textured else _plain(env.scene)
        env.engine.build(self.scene)
        self.poses, expert = [], robopolicy.expert(env)
        for _ in range(NUM_POSES):
            env.advance(expert(env))
            bodies = {body.name: env.engine.pose(body.name) for body in self.scene.bodies}
            self.poses.append(Pose(*env.engine.joints(), bodies, env.engine.snapshot()))

    def reset(self, seed: int) -> None:
        """The scene stays: a reset starts the replay again."""
        self._at = 0

    def next(self) -> int:
        """Index of the next pose."""
        self._at = (self._at + 1) % NUM_POSES
        return self._at


def _plain(scene: Any) -> Any:
    """The scene without textures, and without things that are no boxes, which the renderers draw with different meshes."""
    boxes = [body for body in scene.bodies if all(shape.kind == "box" for shape in body.shapes)]
    bodies = tuple(replace(body, shapes=tuple(replace(shape, texture=-1) for shape in body.shapes)) for body in boxes)
    return replace(scene, bodies=bodies, table_texture=-1, background_texture=-1)


class Ours(_Replay):
    """Our rasteriser."""

    def step(self) -> np.ndarray:
        """The next frame."""
        return self.env.engine.render(self.camera, True, self.poses[self.next()].snapshot).rgb

    def settings(self) -> dict[str, Any]:
        """See Contender.settings."""
        faces = len(self.env.engine._raster._geometry.faces) + 12  # and the table, which our rasteriser needs no faces for
        return {"shadows": self.scene.light.shadow > 0, "msaa": 0, "faces": faces}


class OpenGL:
    """MuJoCo's renderer for a compiled scene, set up like ours."""

    def __init__(self, model: Any, scene: Any, camera: Any, shadow_map: int = SHADOW_MAP) -> None:
        import mujoco

        from robopolicy.sim import raycast
        from robopolicy.sim.twin_model import looks

        self._model, self._scene, self._camera = model, scene, camera
        quality = model.vis.quality
        quality.shadowsize, quality.offsamples, quality.numquads = shadow_map, 0, 1
        model.stat.center[:] = scene.table_x, 0.0, scene.table_height
        model.stat.extent, model.vis.map.shadowclip = SHADOW_HALF * shadow_map / SHADOW_MAP, 1.0
        model.geom_rgba[:, :3], model.geom_rgba[:, 3] = looks(model, scene).rgb[:-1], 1.0
        self._renderer = mujoco.Renderer(model, camera.height, camera.width)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = np.eye(mujoco.mjNGROUP, dtype=np.uint8)[raycast.VISIBLE_GROUP]
        flags, flag = self._renderer.scene.flags, mujoco.mjtRndFlag
        flags[:] = 0
        flags[flag.mjRND_CULL_FACE], flags[flag.mjRND_SHADOW] = 1, scene.light.shadow > 0

    def render(self, data: Any) -> np.ndarray:
        """The frame uint8 [H, W, 3] of the state in `data`, whose kinematics are up to date."""
        self._renderer.update_scene(data, scene_option=self._options)
        self._aim(self._renderer.scene)
        return self._renderer.render()

    def _aim(self, drawn: Any) -> None:
        """Our camera and our light in MuJoCo's abstract scene."""
        camera, light, T = self._camera, self._scene.light, self._camera.T_base_cam
        half_height = camera.near * camera.height / 2 / camera.focal
        for eye in drawn.camera:
            eye.pos, eye.forward, eye.up = T[:3, 3], T[:3, 2], -T[:3, 1]
            eye.frustum_center, eye.frustum_width = 0.0, half_height * camera.width / camera.height
            eye.frustum_bottom, eye.frustum_top = -half_height, half_height
            eye.frustum_near, eye.frustum_far = camera.near, camera.far
        to_light = np.asarray(light.direction) / np.linalg.norm(light.direction)
        lamp, fill = drawn.lights[:2]
        drawn.nlight = 1
        lamp.type, lamp.headlight, lamp.castshadow, lamp.texid = 1, 0, 1, -1  # mjLIGHT_DIRECTIONAL
        lamp.pos, lamp.dir = [self._scene.table_x, 0.0, self._scene.table_height] + 2.0 * to_light, -to_light
        lamp.ambient, lamp.diffuse = [light.ambient] * 3, np.multiply(light.rgb, light.diffuse)
        lamp.specular = [light.specular] * 3
        if light.shadow > 0:  # where a light is in shadow MuJoCo leaves out its ambient part too: it takes a second one
            drawn.nlight = 2
            fill.type, fill.headlight, fill.castshadow, fill.texid = 1, 0, 0, -1
            fill.pos, fill.dir, fill.ambient, fill.diffuse, fill.specular = lamp.pos, lamp.dir, lamp.ambient, [0] * 3, [0] * 3
            lamp.ambient = [0.0] * 3

    def close(self) -> None:
        """Free OpenGL's context."""
        self._renderer.close()


class Mujoco(_Replay):
    """MuJoCo's renderer."""

    def __init__(self, size: int, shadow: bool, shadow_map: int = SHADOW_MAP) -> None:
        import mujoco

        from robopolicy.sim.twin_model import compile_scene, wxyz

        super().__init__(size, shadow)
        model, frames = compile_scene(self.scene)
        self._model, self._states = model, []
        self._gl = OpenGL(model, self.scene, self.camera, shadow_map)
        for pose in self.poses:
            data = mujoco.MjData(model)
            data.qpos[:9] = [*pose.joints, pose.opening / 2, pose.opening / 2]
            for name, (position, quaternion) in pose.bodies.items():
                start, own, inverse, link = model.joint(model.body(name).jntadr[0]).qposadr[0], frames[name], _pose(), _pose()
                mujoco.mju_negPose(*inverse, own.position, own.quaternion)
                mujoco.mju_mulPose(*link, position, wxyz(quaternion), *inverse)
                data.qpos[start : start + 7] = np.concatenate(link)
            mujoco.mj_kinematics(model, data)
            self._states.append(data)

    def step(self) -> np.ndarray:
        """The next frame."""
        return self._gl.render(self._states[self.next()])

    def settings(self) -> dict[str, Any]:
        """See Contender.settings."""
        from robopolicy.sim import raycast

        model = self._model
        meshes = (model.geom_type == 7) & (model.geom_group == raycast.VISIBLE_GROUP)
        boxes = (model.geom_type == 6) & (model.geom_group == raycast.VISIBLE_GROUP)
        faces = int(model.mesh_facenum[model.geom_dataid[meshes]].sum()) + 12 * int(boxes.sum())
        return {
            "shadow_map": int(model.vis.quality.shadowsize) if self.scene.light.shadow > 0 else 0,
            "msaa": 0,
            "faces": faces,
        }


def _pose() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(3), np.zeros(4)


class MujocoLift:
    """The Lift task in the twin, physics by MuJoCo, pictures by MuJoCo's renderer with our light and a 128 shadow map."""

    def __init__(self, image: bool, size: int) -> None:
        import gymnasium

        import robopolicy  # noqa: F401  registers the environments

        self._env = gymnasium.make("robopolicy/LiftTwin-v0", observation=("state",))
        self._image, self._size = image, size
        self._gl: OpenGL | None = None

    def reset(self, seed: int) -> None:
        """See Contender.reset."""
        from robopolicy.sim import world

        self._env.reset(seed=seed)
        self._env.action_space.seed(seed)
        env = self._env.unwrapped
        if self._image:
            camera = world.camera("front", env.world, env.T_base_ee, self._size)
            if self._gl:
                self._gl.close()
            self._gl = OpenGL(env.engine.model, env.scene, camera)

    def step(self) -> np.ndarray | None:
        """See Contender.step."""
        self._env.step(self._env.action_space.sample())
        return self._gl.render(self._env.unwrapped.engine.data) if self._gl else None

    def settings(self) -> dict[str, Any]:
        """See Contender.settings."""
        engine = self._env.unwrapped.engine
        return {
            "physics": f"{round(0.05 / engine.time_step)} x {1e3 * engine.time_step:g} ms",
            "shadow_map": SHADOW_MAP,
            "msaa": 0,
        }
