"""The same randomised scenes by our rasteriser, the same in OpenGL (where it can be had), PyBullet's TinyRenderer (full meshes)
and the MuJoCo twin's ray caster.

    python tools/compare_renderers.py --out renderers.json        # 20 scenes, two cameras each
    python tools/compare_renderers.py --quick --seed 3 --out renderers.json

CPU time is that of all threads of the process; LP_NUM_THREADS=0 makes OpenGL in software draw in the calling one. What a GPU
spends is not in it.

Writes the figures as JSON and a picture beside it (.png): the renderers, and where ours differs from TinyRenderer in
segmentation (white) and depth (black 0 to yellow 10 mm).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import gymnasium
import numpy as np
from provenance import provenance, write_json

import robopolicy.sim  # noqa: F401
from robopolicy.sim import gl, robot, world
from robopolicy.sim.bullet import BulletEngine
from robopolicy.sim.scene import BACKGROUND, FIRST_BODY, ROBOT, TABLE, Body, Camera, Frame, Scene, Shape

TASK = "robopolicy/Lift-v0"
TABLE_THICKNESS = 0.04  # m
DEPTH_SCALE = 0.01  # m that the picture shows in full colour
EXTRAS = (
    Body("can", (Shape("cylinder", (0.03, 0.03, 0.055), rgb=(0.25, 0.4, 0.85), texture=10),), 0.1, (0.42, 0.2, 0.055)),
    Body("ball", (Shape("sphere", (0.035, 0.035, 0.035), rgb=(0.95, 0.8, 0.2)),), 0.1, (0.6, 0.16, 0.035)),
)
COLOURS = {"ours": "our rasteriser", "gl": "ours in OpenGL", "tiny": "TinyRenderer", "mujoco": "MuJoCo rays"}


class TinyRenderer:
    """A scene as PyBullet itself draws it."""

    def __init__(self, scene: Scene) -> None:
        import pybullet
        import pybullet_data
        from pybullet_utils.bullet_client import BulletClient

        self.client = c = BulletClient(pybullet.DIRECT)
        self.light = scene.light
        arm = c.loadURDF(pybullet_data.getDataPath() + "/franka_panda/panda.urdf", useFixedBase=True)
        for joint, q in zip([*range(7), 9, 10], [*scene.robot_joints, 0.04, 0.04], strict=True):
            c.resetJointState(arm, joint, q)
        for link in range(-1, c.getNumJoints(arm)):
            c.changeVisualShape(arm, link, rgbaColor=[*scene.robot_rgb, 1])
        half = [scene.table_half, scene.table_half, TABLE_THICKNESS / 2]
        table = c.createVisualShape(c.GEOM_BOX, halfExtents=half, rgbaColor=[*scene.table_rgb, 1])
        centre = [scene.table_x, 0, scene.table_height - TABLE_THICKNESS / 2]
        self.ids = {arm: ROBOT, c.createMultiBody(0, -1, table, centre): TABLE}
        kinds = {"box": c.GEOM_BOX, "cylinder": c.GEOM_CYLINDER, "sphere": c.GEOM_SPHERE}
        for i, body in enumerate(scene.bodies):
            for s in body.shapes:
                sizes = {"halfExtents": s.size, "radius": s.size[0], "length": 2 * s.size[2]}
                visual = c.createVisualShape(kinds[s.kind], rgbaColor=[*s.rgb, 1], **sizes)
                pose = c.multiplyTransforms(body.position, body.quaternion, s.position, s.quaternion)
                self.ids[c.createMultiBody(0, -1, visual, *pose)] = FIRST_BODY + i

    def render(self, camera: Camera) -> Frame:
        """What `camera` sees. TinyRenderer samples a pixel at its corner: the projection is shifted by half a pixel."""
        c, light = self.client, self.light
        T = np.diag([1.0, -1.0, -1.0, 1.0]) @ np.linalg.inv(camera.T_base_cam)
        projection = list(c.computeProjectionMatrixFOV(camera.fov_deg, camera.width / camera.height, camera.near, camera.far))
        projection[8] += 1 / camera.width + 1 - 2 * camera.center[0]
        projection[9] += 1 / camera.height + 2 * camera.center[1] - 1
        _, _, rgb, z, ids = c.getCameraImage(
            camera.width,
            camera.height,
            T.T.reshape(-1),
            projection,
            lightDirection=light.direction,
            lightColor=light.rgb,
            lightAmbientCoeff=light.ambient,
            lightDiffuseCoeff=light.diffuse,
            lightSpecularCoeff=light.specular,
            shadow=1,
            renderer=c.ER_TINY_RENDERER,
        )
        shape = camera.height, camera.width
        segmentation = np.vectorize(lambda n: self.ids.get(n, BACKGROUND))(np.reshape(ids, shape)).astype(np.uint8)
        depth = camera.far * camera.near / (camera.far - (camera.far - camera.near) * np.reshape(z, shape).astype(float))
        depth = np.where(segmentation == BACKGROUND, 0, depth).astype(np.float32)
        return Frame(np.reshape(rgb, (*shape, 4))[..., :3].astype(np.uint8), depth, segmentation)


def draw_scene(seed: int, size: int) -> tuple[Scene, dict[str, Camera]]:
    """A randomised scene of TASK with a can and a ball in it, the arm somewhere near its home, and its two cameras."""
    env = gymnasium.make(TASK, randomization="wide").unwrapped
    env.reset(seed=seed)
    drawn, rng = env.world, np.random.default_rng(seed)
    scene = world.scene(drawn, env.task.bodies(drawn), seed)
    joints = np.asarray(scene.robot_joints) + rng.uniform(-0.25, 0.25, len(scene.robot_joints))
    lift = np.array([0, 0, scene.table_height])
    extras = tuple(replace(body, position=tuple((np.array(body.position) + lift).tolist())) for body in EXTRAS)
    scene = replace(scene, robot_joints=tuple(joints.tolist()), bodies=scene.bodies + extras)
    cameras = {name: world.camera(name, drawn, robot.forward(joints), size) for name in world.CAMERAS}
    env.close()
    return scene, cameras


@cache
def opengl() -> str | None:
    """Name of the OpenGL that draws here; None, after a word why, where there is none."""
    try:
        return gl.device().name
    except (ImportError, RuntimeError) as error:
        print(f"without OpenGL: {error}")
        return None


def renderers(scene: Scene) -> dict[str, Callable[[Camera], Frame]]:
    """Every renderer that can be had here, with the scene in it."""
    out: dict[str, Callable[[Camera], Frame]] = {}
    for name, renderer in {"ours": "cpu", **({"gl": "gl"} if opengl() else {})}.items():
        engine = BulletEngine(renderer=renderer)
        engine.build(scene)
        out[name] = engine.render
    out["tiny"] = TinyRenderer(scene).render
    try:
        from robopolicy.sim.twin import MujocoEngine
    except ImportError:
        return out
    twin = MujocoEngine()
    twin.build(scene)
    return {**out, "mujoco": twin.render}


def compare(a: Frame, b: Frame) -> dict[str, float]:
    """Share of equal segmentation; depth differences (mm) where both see the same thing and share of them above
    1 cm; mean difference of colour (of 255).
    """
    same = a.segmentation == b.segmentation
    depth = 1000 * np.abs(a.depth - b.depth)[same & (a.segmentation != BACKGROUND)]
    return {
        "segmentation_agreement": float(same.mean()),
        "depth_median_mm": float(np.median(depth)),
        "depth_95_mm": float(np.percentile(depth, 95)),
        "depth_above_10_mm": float((depth > 10).mean()),
        "colour_mean": float(np.abs(a.rgb.astype(int) - b.rgb).mean()),
    }


def picture_row(frames: dict[str, Frame]) -> np.ndarray:
    """Colours of every renderer, then where ours and TinyRenderer differ."""
    ours, tiny = frames["ours"], frames["tiny"]
    differs = (ours.segmentation != tiny.segmentation).astype(np.uint8)[..., None] * np.full(3, 255, np.uint8)
    error = np.abs(ours.depth - tiny.depth) * (ours.segmentation == tiny.segmentation) / DEPTH_SCALE
    heat = cv2.applyColorMap((255 * np.clip(error, 0, 1)).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    return np.concatenate([frame.rgb for frame in frames.values()] + [differs, heat], axis=1)


def header(names: list[str], size: int) -> np.ndarray:
    """A line of titles over the columns."""
    out = np.full((18, size * (len(names) + 2), 3), 255, np.uint8)
    for i, text in enumerate([*(COLOURS[name] for name in names), "segmentation diff.", "depth diff. (10 mm)"]):
        cv2.putText(out, text, (size * i + 3, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
    return out


def main() -> None:
    """Compare, print a table, write the figures and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 scenes instead of 20")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=128, help="side of the images, px")
    parser.add_argument("--rows", type=int, default=4, help="rows of the picture")
    parser.add_argument("--out", type=Path, default=Path("renderers.json"), help="figures; the picture lies beside it")
    args = parser.parse_args()

    num_scenes = 4 if args.quick else 20
    measured: dict[tuple[str, str], list[dict[str, float]]] = {}
    seconds: dict[str, list[float]] = {}
    rows = []
    for i in range(num_scenes):
        scene, cameras = draw_scene(args.seed + i, args.size)
        draw = renderers(scene)
        for camera in cameras.values():
            frames = {}
            for name, render in draw.items():
                render(camera)
                start = time.process_time()
                frames[name] = render(camera)
                seconds.setdefault(name, []).append(time.process_time() - start)
            for name in draw:
                if name != "ours":
                    measured.setdefault((name, camera.name), []).append(compare(frames["ours"], frames[name]))
            if len(rows) < args.rows:
                rows.append(picture_row(frames))

    picture = np.concatenate([header(list(draw), args.size), *rows])
    cv2.imwrite(str(args.out.with_suffix(".png")), picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    figures = {
        f"{name}.{camera}": {
            **{key: float(np.mean([m[key] for m in values])) for key in values[0]},
            "segmentation_agreement_min": min(m["segmentation_agreement"] for m in values),
        }
        for (name, camera), values in measured.items()
    }
    milliseconds = {name: 1000 * float(np.median(values)) for name, values in seconds.items()}
    print(f"{'against ours':16} {'agreement':>10} {'worst':>8} {'depth median':>13} {'95 %':>9} {'> 10 mm':>8} {'colour':>7}")
    for name, f in figures.items():
        print(
            f"{name:16} {100 * f['segmentation_agreement']:9.2f} % {100 * f['segmentation_agreement_min']:6.2f} % "
            f"{f['depth_median_mm']:10.3f} mm {f['depth_95_mm']:6.2f} mm {100 * f['depth_above_10_mm']:6.2f} % "
            f"{f['colour_mean']:7.2f}"
        )
    print("CPU time a frame, median: " + ", ".join(f"{name} {value:.2f} ms" for name, value in milliseconds.items()))
    report = {
        **provenance("numba", "pybullet", "mujoco"),
        "seed": args.seed,
        "num_scenes": num_scenes,
        "image_size": args.size,
        "opengl": opengl(),
        "figures": figures,
        "cpu_milliseconds_per_frame": milliseconds,
    }
    write_json(args.out, report)


if __name__ == "__main__":
    main()
