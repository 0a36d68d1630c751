"""The same scene for both renderers: our rasteriser and MuJoCo's own OpenGL, fed with the same poses of our Lift world.

Equal: decimated meshes, boxes of 12 faces, colours, camera, one directional light, shadow maps of the same size over the
same area, no antialiasing, no reflections, pixels read back into numpy. Everything is plain-coloured in both. Not
counted: physics and kinematics of the poses, which are computed beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

NUM_POSES = 50
SHADOW_MAP = 256


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
        if not textured:
            nominal["table.texture"] = -1.0
        self.env = gymnasium.make(
            "robopolicy/Lift-v0", observation=("state",), image_size=size, randomization="none", nominal=nominal
        ).unwrapped
        env, self._at = self.env, 0
        env.reset(seed=0)
        self.camera = world.camera("front", env.world, env.T_base_ee, size)
        scene = world.scene(env.world, env.task.bodies(env.world), env.episode_seed)
        if not textured:
            scene = replace(scene, bodies=tuple(_plain(body) for body in scene.bodies))
            env.engine.build(scene)
            env.controller.reset(env.engine.joints()[0])
        self.scene, self.poses = scene, []
        expert = robopolicy.expert(env)
        for _ in range(NUM_POSES):
            env.advance(expert(env))
            bodies = {body.name: env.engine.pose(body.name) for body in scene.bodies}
            self.poses.append(Pose(*env.engine.joints(), bodies, env.engine.snapshot()))

    def reset(self, seed: int) -> None:
        """The scene stays: a reset starts the replay again."""
        self._at = 0

    def next(self) -> int:
        """Index of the next pose."""
        self._at = (self._at + 1) % NUM_POSES
        return self._at


def _plain(body: Any) -> Any:
    return replace(body, shapes=tuple(replace(shape, texture=-1) for shape in body.shapes))


class Ours(_Replay):
    """Our rasteriser."""

    def step(self) -> np.ndarray:
        """The next frame."""
        return self.env.engine.render(self.camera, True, self.poses[self.next()].snapshot).rgb

    def settings(self) -> dict[str, Any]:
        """See Contender.settings."""
        raster = self.env.engine._raster
        return {"shadow_map": SHADOW_MAP if self.scene.light.shadow > 0 else 0, "msaa": 0, "mesh_faces": len(raster._faces)}


class OpenGL:
    """MuJoCo's renderer for a compiled scene, set up like ours."""

    def __init__(self, model: Any, scene: Any, camera: Any) -> None:
        import mujoco

        from robopolicy.sim import raycast

        self._model, self._scene, self._camera = model, scene, camera
        quality = model.vis.quality
        quality.shadowsize, quality.offsamples, quality.numquads = SHADOW_MAP, 0, 1
        model.stat.center[:] = scene.table_x, 0.0, scene.table_height
        model.stat.extent, model.vis.map.shadowclip = 1.2 * scene.table_half, 1.0  # area of our shadow map
        paint(model, scene)
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


def paint(model: Any, scene: Any) -> None:
    """The scene's colours on the visible geoms of its compiled model."""
    from robopolicy.sim import raycast
    from robopolicy.sim.meshes import panda_visuals

    visible = np.flatnonzero(model.geom_group == raycast.VISIBLE_GROUP)
    meshes = sorted((geom for geom in visible if model.geom_type[geom] == 7), key=lambda geom: model.geom_dataid[geom])
    for geom, visual in zip(meshes, panda_visuals(), strict=True):
        model.geom_rgba[geom, :3] = np.multiply(visual.rgb, scene.robot_rgb)
    for geom in visible:
        if model.geom_type[geom] != 7 and model.geom_bodyid[geom] == 0:
            model.geom_rgba[geom, :3] = scene.table_rgb
    for body in scene.bodies:
        geoms = [geom for geom in visible if model.geom_bodyid[geom] == model.body(body.name).id]
        for geom, shape in zip(geoms, body.shapes, strict=True):
            model.geom_rgba[geom, :3] = shape.rgb
    model.geom_rgba[:, 3] = 1.0


class Mujoco(_Replay):
    """MuJoCo's renderer."""

    def __init__(self, size: int, shadow: bool) -> None:
        import mujoco

        from robopolicy.sim.twin import compile_scene

        super().__init__(size, shadow)
        self._model = model = compile_scene(self.scene)
        self._gl = OpenGL(model, self.scene, self.camera)
        self._states = []
        for pose in self.poses:
            data = mujoco.MjData(model)
            data.qpos[:9] = [*pose.joints, pose.opening / 2, pose.opening / 2]
            for name, (position, (x, y, z, w)) in pose.bodies.items():
                joint = model.body(name).jntadr[0]
                if joint >= 0:
                    start = model.jnt_qposadr[joint]
                    data.qpos[start : start + 7] = [*position, w, x, y, z]
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
        return {"shadow_map": SHADOW_MAP if self.scene.light.shadow > 0 else 0, "msaa": 0, "mesh_faces": faces}


class MujocoLift:
    """The Lift task in the twin, physics by MuJoCo, pictures by MuJoCo's renderer with our light and a 256 shadow map."""

    def __init__(self, image: bool, size: int) -> None:
        import gymnasium

        import robopolicy  # noqa: F401  registers the environments

        self._env = gymnasium.make("robopolicy/LiftTwin-v0", observation=("state",), nominal={"table.texture": -1.0})
        self._image, self._size = image, size
        self._gl: OpenGL | None = None

    def reset(self, seed: int) -> None:
        """See Contender.reset."""
        from robopolicy.sim import world

        self._env.reset(seed=seed)
        self._env.action_space.seed(seed)
        env = self._env.unwrapped
        if self._image:
            scene = world.scene(env.world, env.task.bodies(env.world), env.episode_seed)
            camera = world.camera("front", env.world, env.T_base_ee, self._size)
            if self._gl:
                self._gl.close()
            self._gl = OpenGL(env.engine.model, scene, camera)

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
