"""The rasteriser in OpenGL against the one on the CPU; skipped where there is no moderngl or no OpenGL through EGL."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

import robopolicy.sim  # noqa: F401
from robopolicy.sim import gl, world
from robopolicy.sim.bullet import BulletEngine
from robopolicy.sim.meshes import shape_mesh
from robopolicy.sim.raster import Part, Rasterizer
from robopolicy.sim.scene import BACKGROUND, FIRST_BODY, TABLE, Body, Camera, Light, Scene, look_at

SCENE = Scene(bodies=(), robot_joints=(0.0,) * 7)
BOX = Body.box("box", (0.1, 0.15, 0.05), 0.0, (0.5, 0.0, 0.05), (0.0, 0.0, 0.2, 0.98), rgb=(0.5, 0.5, 0.5))


@pytest.fixture
def opengl():
    pytest.importorskip("moderngl")
    try:
        return gl.device()
    except RuntimeError as error:
        pytest.skip(str(error))


def camera(size, eye=(0.9, 0.2, 0.8), target=(0.5, 0.0, 0.0), fov_deg=50.0, **options):
    return Camera("front", look_at(np.array(eye), np.array(target)), fov_deg, size, size, **options)


def draw(kind, bodies, view, scene=SCENE, rgb=True, **options):
    parts = [Part(shape_mesh(s), i, FIRST_BODY + i, s.rgb, s.texture) for i, body in enumerate(bodies) for s in body.shapes]
    poses = np.array([[*body.position, *body.quaternion] for body in bodies]).reshape(-1, 7)
    return kind(parts, scene, **options).render(poses, view, rgb=rgb)


def both(*args, **options):
    return draw(Rasterizer, *args, **options), draw(gl.GLRasterizer, *args, **options)


@pytest.mark.parametrize("antialiasing", [False, True])
@pytest.mark.parametrize("task", ["Lift", "Drawer"])
def test_agrees_with_the_cpu_on_randomised_scenes(opengl, task, antialiasing):
    env = gymnasium.make(f"robopolicy/{task}-v0", randomization="wide", observation=("state",)).unwrapped
    engines = [BulletEngine(antialiasing, renderer) for renderer in ("cpu", "gl")]
    for seed in range(3):
        env.reset(seed=seed)
        scene = replace(env.scene, background_texture=12 + seed, light=replace(env.scene.light, shadow=0.8))
        for engine in engines:
            engine.build(scene)
        for name in world.CAMERAS:
            view = replace(world.camera(name, env.world, env.T_base_ee, 112), center=(0.55, 0.47))
            cpu, other = (engine.render(view) for engine in engines)
            same = cpu.segmentation == other.segmentation
            assert same.mean() >= 0.995
            seen = same & (cpu.segmentation != BACKGROUND)
            assert np.median(np.abs(cpu.depth - other.depth)[seen]) < 1e-4
            assert np.percentile(np.abs(cpu.depth - other.depth)[seen], 99) < 0.005
            np.testing.assert_array_equal(other.depth == 0, other.segmentation == BACKGROUND)
            difference = np.abs(cpu.rgb.astype(int) - other.rgb)
            assert difference.mean() < 1.5
            assert (difference[same] > 25).mean() < 0.01, "textures and shadows lie where they lie on the CPU"
    for engine in engines:
        engine.close()


def test_shadows_are_the_cpus_and_carry_no_acne(opengl):
    for direction in ((-0.4, 0.3, 1.0), (0.9, 0.5, 0.5), (0.0, 0.0, 1.0)):
        scene = replace(SCENE, table_texture=-1, light=Light(direction=direction, specular=0.0, shadow=1.0))
        cpu, other = both([BOX], camera(128), scene)
        top = (other.segmentation == FIRST_BODY) & (cpu.segmentation == FIRST_BODY)
        assert top.sum() > 1000
        assert np.abs(cpu.rgb.astype(int) - other.rgb)[top].mean() < 0.5
        bare = draw(gl.GLRasterizer, [BOX], camera(128), scene, shadow_size=0).rgb.astype(int)
        darkened = ((bare - cpu.rgb).sum(axis=-1) > 60), ((bare - other.rgb).sum(axis=-1) > 60)
        if direction[0]:
            assert darkened[0].sum() > 300, "there must be a shadow, or the test would show nothing"
            assert (darkened[0] != darkened[1]).sum() < 0.05 * darkened[0].sum()


def test_near_and_far_cut_as_on_the_cpu(opengl):
    plate = Body.box("plate", (2.0, 2.0, 0.1), 0, (0.5, 0, -0.1))  # its faces reach behind the camera
    low = camera(80, eye=(0.8, 0.1, 0.06), target=(0.3, 0.0, 0.0), fov_deg=70)
    for view in (low, replace(low, near=0.1), replace(low, far=0.5)):
        cpu, other = both([plate, BOX], view, replace(SCENE, table_height=-1.0))
        assert len(np.unique(cpu.segmentation)) >= 3
        assert (cpu.segmentation != other.segmentation).mean() < 0.003
        assert other.depth.max() <= view.far
        assert other.depth[other.depth > 0].min() >= view.near
        np.testing.assert_allclose(cpu.depth, other.depth, atol=1e-4 + 10 * (cpu.segmentation != other.segmentation).max())


def test_what_is_seen_from_inside_or_below(opengl):
    inside = camera(48, eye=(0.5, 0.01, 0.05), target=(0.6, 0.0, 0.06), near=0.01)
    below = camera(48, eye=(0.9, 0.1, -0.4), target=(0.5, 0.0, 0.0))
    for view in (inside, below):
        cpu, other = both([replace(BOX, position=(0.5, 0.0, 0.06))], view)  # off the table: from below they would be one plane
        np.testing.assert_array_equal(cpu.segmentation, other.segmentation)
        assert np.abs(cpu.rgb.astype(int) - other.rgb).mean() < 1
    assert set(np.unique(other.segmentation)) == {BACKGROUND, TABLE}


def test_an_empty_scene_shows_the_table(opengl):
    cpu, other = both([], camera(48))
    np.testing.assert_array_equal(cpu.segmentation, other.segmentation)
    assert np.abs(cpu.rgb.astype(int) - other.rgb).max() <= 3


def test_geometry_does_not_depend_on_colour_or_supersampling(opengl):
    plain, smooth, blind = (
        draw(gl.GLRasterizer, [BOX], camera(64), **options) for options in ({}, {"supersample": 2}, {"rgb": False})
    )
    for other in (smooth, blind):
        np.testing.assert_array_equal(plain.depth, other.depth)
        np.testing.assert_array_equal(plain.segmentation, other.segmentation)
    assert not blind.rgb.any()
    assert 0 < np.abs(plain.rgb.astype(int) - smooth.rgb).mean() < 5


def test_an_episode_replays_from_its_seed(opengl):
    env = gymnasium.make(
        "robopolicy/Lift-v0",
        renderer="gl",
        randomization="wide",
        observation=("images.front", "depth.wrist"),
        antialiasing=True,
    )
    actions = np.random.default_rng(0).uniform(env.action_space.low, env.action_space.high, (3, 7))
    episodes = [[env.reset(seed=5)[0], *(env.step(action)[0] for action in actions)] for _ in range(2)]
    for first, second in zip(*episodes, strict=True):
        for key, value in first.items():
            np.testing.assert_array_equal(value, second[key])
    env.close()


def test_a_rasterizer_takes_its_buffers_with_it(opengl):
    with opengl.in_use():
        assert not opengl.context.objects
    draw(gl.GLRasterizer, [BOX], camera(16))
    assert len(opengl.context.objects) == 9, "six buffers, a texture and two vertex arrays wait to be freed"
    with opengl.in_use():
        assert not opengl.context.objects


def test_threads_and_other_contexts_change_nothing(opengl):
    import moderngl

    expected = draw(gl.GLRasterizer, [BOX], camera(64)).rgb
    moderngl.create_context(standalone=True, backend="egl", libgl="libGL.so.1", libegl="libEGL.so.1")  # is current from now on
    with ThreadPoolExecutor(3) as pool:
        drawn = [pool.submit(draw, gl.GLRasterizer, [BOX], camera(64)) for _ in range(12)]
        for future in drawn:
            np.testing.assert_array_equal(future.result().rgb, expected)
    np.testing.assert_array_equal(draw(gl.GLRasterizer, [BOX], camera(64)).rgb, expected)


def test_a_fork_is_told_that_it_cannot_draw(opengl):
    raster = gl.GLRasterizer([], SCENE)
    code = 0
    if (child := os.fork()) == 0:
        try:
            raster.render(np.zeros((0, 7)), camera(16))
        except RuntimeError as error:
            code = 42 * ("start worker processes by spawn" in str(error))
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


def test_a_missing_moderngl_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "moderngl", None)
    with pytest.raises(ImportError, match=r"pip install robopolicy\[gl\]"):
        gl.Device()


def test_unknown_renderers_and_the_twins_are_refused():
    with pytest.raises(ValueError, match=r"renderer='gpu'; (did you mean|available)"):
        gymnasium.make("robopolicy/Lift-v0", renderer="gpu")
    with pytest.raises(ValueError, match="the twin draws with its own ray caster"):
        gymnasium.make("robopolicy/LiftTwin-v0", renderer="gl")
