import inspect
from dataclasses import replace

import numpy as np
import pytest

from robopolicy.geometry import pose, transform
from robopolicy.sim import raycast, shadows
from robopolicy.sim.bullet import BulletEngine
from robopolicy.sim.camera import deproject
from robopolicy.sim.engine import Engine
from robopolicy.sim.inertia import mass_properties
from robopolicy.sim.robot import HOME, MAX_OPENING, forward, inverse
from robopolicy.sim.scene import BACKGROUND, FIRST_BODY, ROBOT, TABLE, Body, Camera, Joint, Light, Scene, Shape, look_at
from robopolicy.sim.textures import NUM_TEXTURES
from robopolicy.sim.twin import TIME_STEP, MujocoEngine
from robopolicy.sim.twin_model import xyzw

HALF = 0.022
CONTROL_PERIOD = 0.05


def make_scene(**changes):
    cube = Body.box("cube", (HALF,) * 3, 0.08, (0.5, 0.05, HALF))
    return Scene(**{"bodies": (cube,), "robot_joints": tuple(HOME), **changes})


@pytest.fixture
def engine():
    engine = MujocoEngine()
    engine.build(make_scene())
    yield engine
    engine.close()


def move(engine, q, start, goal, opening, seconds):
    """Lead the commanded end-effector position from start to goal; returns the last joint targets."""
    T, steps = forward(HOME), round(seconds / CONTROL_PERIOD)
    for i in range(steps):
        T[:3, 3] = start + (goal - start) * (i + 1) / steps
        q = inverse(q, T)
        engine.command(q, opening)
        engine.advance(CONTROL_PERIOD)
    return q


def grasp_and_lift(engine):
    """Scripted; returns the lift (m) and the grip forces before and after it."""
    cube, _ = engine.pose("cube")
    above, lifted = cube + [0, 0, 0.1], cube + [0, 0, 0.15]
    q = move(engine, HOME, forward(HOME)[:3, 3], above, MAX_OPENING, 1.0)
    q = move(engine, q, above, cube, MAX_OPENING, 0.7)
    q = move(engine, q, cube, cube, 0.0, 0.4)
    gripping = engine.grip_forces()
    move(engine, q, cube, lifted, 0.0, 1.0)
    return engine.pose("cube")[0][2] - cube[2], gripping, engine.grip_forces()


def snapshot(engine):
    q, opening = engine.joints()
    return np.concatenate([q, [opening], *engine.pose("cube"), engine.velocity("cube"), engine.grip_forces()])


def trajectory(engine, steps=12):
    """Joints, body pose, velocity and finger forces under random commands near HOME: [steps, ...]."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(steps):
        engine.command(HOME + rng.uniform(-0.3, 0.3, 7), rng.uniform(0, MAX_OPENING))
        engine.advance(CONTROL_PERIOD)
        rows.append(snapshot(engine))
    return np.array(rows)


def shake(engine, steps=12):
    """What follows from here: a step without a command, then a held box is moved about, then it is dropped."""
    rng, (q, _), rows = np.random.default_rng(0), engine.joints(), []
    for i in range(steps):
        engine.advance(TIME_STEP)
        rows.append(snapshot(engine))
        engine.command(q + rng.uniform(-0.05, 0.05, 7), 0.0 if i < steps - 2 else MAX_OPENING)
        engine.advance(CONTROL_PERIOD)
        rows.append(snapshot(engine))
    return np.array(rows)


def picture(engine, size=64, rgb=True, **changes):
    camera = {"T_base_cam": look_at((1.2, 0.3, 0.7), (0.4, 0, 0.15)), "fov_deg": 45.0, "width": size, "height": size}
    camera = Camera("front", **{**camera, **changes})
    return camera, engine.render(camera, rgb)


def test_speaks_the_engine_protocol():
    for name, method in inspect.getmembers(Engine, inspect.isfunction):
        if not name.startswith("_"):
            ours = inspect.signature(getattr(MujocoEngine, name)).parameters
            assert list(ours) == list(inspect.signature(method).parameters), name


def test_starts_as_the_scene_says(engine):
    q, opening = engine.joints()
    np.testing.assert_allclose(q, HOME, atol=1e-12)
    assert opening == pytest.approx(MAX_OPENING)
    engine.advance(0.5)
    np.testing.assert_allclose(engine.joints()[0], HOME, atol=1e-4)


def test_kinematics_agree_with_the_robot_model(engine):
    rng = np.random.default_rng(1)
    for _ in range(3):
        engine.command(HOME + rng.uniform(-0.3, 0.3, 7), 0.04)
        engine.advance(1.0)
        hand = engine.data.body("panda_hand")
        T = forward(engine.joints()[0])
        np.testing.assert_allclose(hand.xmat.reshape(3, 3), T[:3, :3], atol=1e-6)
        np.testing.assert_allclose(hand.xpos + 0.105 * T[:3, 2], T[:3, 3], atol=1e-6)


@pytest.mark.parametrize("time_constant", [0.04, 0.1])
def test_arm_lags_by_its_time_constant(time_constant):
    engine = MujocoEngine()
    for joint in (0, 3, 5):
        engine.build(make_scene(arm_time_constant=time_constant))
        step = np.eye(7)[joint] * 0.03
        engine.command(HOME + step, MAX_OPENING)
        engine.advance(round(time_constant / TIME_STEP) * TIME_STEP)
        reached = (engine.joints()[0] - HOME)[joint] / 0.03
        assert 0.4 < reached < 0.75, joint


@pytest.mark.parametrize("height", [0.0, -0.03, 0.02])
def test_box_falls_and_rests_on_the_table(height):
    engine = MujocoEngine()
    box = Body.box("box", (0.03, 0.02, 0.015), 0.1, (0.5, 0.1, height + 0.06), quaternion=(0, 0, np.sin(0.3), np.cos(0.3)))
    shelf = Body.box("shelf", (0.02,) * 3, 0.0, (0.4, -0.2, 0.3))
    engine.build(make_scene(bodies=(box, shelf), table_height=height))
    engine.advance(0.04)
    assert engine.velocity("box")[2] == pytest.approx(-9.81 * 0.04, rel=0.02)
    engine.advance(1.0)
    position, quaternion = engine.pose("box")
    np.testing.assert_allclose(position, [0.5, 0.1, height + 0.015], atol=5e-4)
    np.testing.assert_allclose(quaternion, box.quaternion, atol=1e-3)
    np.testing.assert_array_equal(engine.pose("shelf")[0], shelf.position)
    np.testing.assert_array_equal(engine.velocity("shelf"), 0.0)


def test_friction_of_a_pair_is_the_product():
    engine = MujocoEngine()
    sled = Body.box("sled", (0.04, 0.04, 0.01), 0.1, (0.4, 0.0, 0.01), friction=0.8)
    engine.build(make_scene(bodies=(sled,), table_friction=0.5))
    engine.advance(0.2)
    start, speed = engine.pose("sled")[0][0], 1.0
    engine.data.joint(engine.model.body("sled").jntadr[0]).qvel[0] = speed
    engine.advance(0.6)
    distance = speed**2 / (2 * 0.8 * 0.5 * 9.81)
    assert engine.pose("sled")[0][0] - start == pytest.approx(distance, rel=0.05)


def test_spinning_friction_brakes_a_top():
    radius, mass, spin = 0.03, 0.1, 20.0
    top = Body("top", (Shape("sphere", (radius,) * 3),), mass, (0.5, 0.2, radius), spinning_friction=0.003, angular_damping=0.0)
    engine = MujocoEngine()
    engine.build(make_scene(bodies=(top,), table_friction=0.8))
    engine.advance(0.1)
    rate = engine.data.joint(engine.model.body("top").jntadr[0]).qvel
    rate[5] = spin
    engine.advance(0.2)
    braking = 0.003 * 0.8 * 9.81 * mass / (0.4 * mass * radius**2)
    assert spin - rate[5] == pytest.approx(braking * 0.2, rel=0.05)


def test_mass_is_spread_as_mujoco_itself_would_spread_it():
    """Of MuJoCo's own sums over the geoms against inertia.py, which lays the links into the principal axes."""
    rng, kinds = np.random.default_rng(3), {"box": (0, 1, 2), "cylinder": (0, 0, 2), "sphere": (0, 0, 0)}
    for i in range(5):
        shapes = []
        for kind, axes in list(kinds.items()) * 2:
            size, turn = rng.uniform(0.01, 0.05, 3)[list(axes)], rng.standard_normal(4)
            shapes.append(Shape(kind, tuple(size), tuple(rng.uniform(-0.1, 0.1, 3)), tuple(turn / np.linalg.norm(turn))))
        body = Body("body", tuple(shapes), 0.7, (0.5, 0.0, 0.5))
        engine = MujocoEngine()
        engine.build(make_scene(bodies=(body, replace(body, name="hung", joint=Joint("hinge", (0.0, 0.0, 1.0), -1.0, 1.0)))))
        free, hung, own = engine.model.body("body"), engine.model.body("hung"), mass_properties(body)
        np.testing.assert_allclose(free.ipos, 0.0, atol=1e-9)
        np.testing.assert_allclose(hung.ipos, own.position, atol=1e-9)
        np.testing.assert_allclose(np.sort(free.inertia), np.sort(own.inertia), rtol=1e-6)
        np.testing.assert_allclose(np.abs(pose(np.zeros(3), xyzw(free.iquat))[:3, :3]).max(axis=0), 1.0, atol=1e-6)
        assert free.mass[0] == pytest.approx(0.7), i


def test_grasps_and_lifts_a_box_and_feels_it(engine):
    lift, gripping, holding = grasp_and_lift(engine)
    assert lift > 0.08
    np.testing.assert_allclose(gripping, 40.0, rtol=0.1)
    np.testing.assert_allclose(holding, 40.0, rtol=0.1)
    engine.command(engine.joints()[0], MAX_OPENING)
    engine.advance(0.5)
    np.testing.assert_array_equal(engine.grip_forces(), 0.0)
    assert engine.pose("cube")[0][2] < 0.05


def test_slippery_weak_grip_does_not_lift():
    engine = MujocoEngine()
    cube = Body.box("cube", (HALF,) * 3, 0.5, (0.5, 0.05, HALF), friction=0.2)
    engine.build(make_scene(bodies=(cube,), finger_friction=0.5, grip_force=10.0))
    lift, gripping, _ = grasp_and_lift(engine)
    assert lift < 0.02
    np.testing.assert_allclose(gripping, 10.0, rtol=0.2)


def test_restored_state_continues_bit_for_bit(engine):
    grasp_and_lift(engine)
    token, here = engine.save_state(), snapshot(engine)
    first = shake(engine)
    assert np.ptp(first[:, 8:11], axis=0).min() > 0.01, "the box should move, or the comparison says little"
    for _ in range(2):
        engine.restore_state(token)
        np.testing.assert_array_equal(snapshot(engine), here)
        np.testing.assert_array_equal(shake(engine), first)


def test_equal_builds_evolve_bit_for_bit_equally(engine):
    first = trajectory(engine)
    engine.build(make_scene(table_height=0.01))
    assert not np.array_equal(trajectory(engine), first)
    engine.build(make_scene())
    np.testing.assert_array_equal(trajectory(engine), first)
    other = MujocoEngine()
    other.build(make_scene())
    np.testing.assert_array_equal(trajectory(other), first)


def test_rendering_does_not_change_the_future(engine):
    first = trajectory(engine)
    engine.build(make_scene())
    picture(engine)
    np.testing.assert_array_equal(trajectory(engine), first)


def test_sees_robot_table_body_and_background_where_they_are():
    engine = MujocoEngine()
    engine.build(make_scene(table_height=-0.01, bodies=(Body.box("cube", (HALF,) * 3, 0.08, (0.5, 0.05, HALF - 0.01)),)))
    engine.advance(0.2)
    camera, frame = picture(engine, size=96)
    assert set(np.unique(frame.segmentation)) == {BACKGROUND, TABLE, ROBOT, FIRST_BODY}
    assert (frame.rgb.dtype, frame.depth.dtype, frame.segmentation.dtype) == (np.uint8, np.float32, np.uint8)
    assert ((frame.depth == 0) == (frame.segmentation == BACKGROUND)).all()
    points = deproject(frame.depth, camera)
    np.testing.assert_allclose(points[frame.segmentation == TABLE][:, 2], -0.01, atol=1e-3)
    cube = points[frame.segmentation == FIRST_BODY]
    assert cube[:, 2].max() == pytest.approx(2 * HALF - 0.01, abs=3e-3)
    assert (np.abs(cube - engine.pose("cube")[0]) < HALF + 3e-3).all()
    hand = transform(np.linalg.inv(camera.T_base_cam), engine.data.body("panda_hand").xpos)
    column, row = (hand[:2] / hand[2] * camera.focal + 48).astype(int)
    assert frame.segmentation[row, column] == ROBOT


def test_picture_is_of_the_current_state(engine):
    _, before = picture(engine, rgb=False)
    engine.command(HOME + [0.5, 0, 0, 0, 0, 0, 0], 0.0)
    engine.advance(CONTROL_PERIOD)
    camera, after = picture(engine, rgb=False)
    assert (before.segmentation != after.segmentation).any()
    token = engine.save_state()
    engine.advance(0.5)
    engine.restore_state(token)
    np.testing.assert_array_equal(engine.render(camera, rgb=False).depth, after.depth)


def test_geometry_is_the_same_without_colour(engine):
    (_, full), (_, bare) = picture(engine), picture(engine, rgb=False)
    np.testing.assert_array_equal(full.depth, bare.depth)
    np.testing.assert_array_equal(full.segmentation, bare.segmentation)
    assert not bare.rgb.any()
    assert full.rgb.any()


def test_near_cuts_away_and_far_ends_the_view(engine):
    shelf = Body.box("shelf", (HALF,) * 3, 0.0, (0.5, 0.1, 0.3))
    engine.build(make_scene(bodies=(shelf,)))
    inside = {"T_base_cam": look_at((0.5, 0.1, 0.3), (0.5, 0.1001, -1.0)), "fov_deg": 30.0}
    _, blocked = picture(engine, size=9, near=0.01, **inside)
    assert (blocked.segmentation == FIRST_BODY).all()
    _, through = picture(engine, size=9, near=0.03, **inside)
    assert (through.segmentation == TABLE).all()
    np.testing.assert_allclose(through.depth, 0.3, atol=1e-3)
    _, short = picture(engine, far=0.3)
    assert not short.depth.any()


def test_shadow_and_texture_show():
    engine, colours = MujocoEngine(), {}
    for name, changes in {
        "plain": {"table_texture": -1},
        "unshadowed": {"table_texture": -1, "light": Light(shadow=0.0)},
        "checker": {"table_texture": 5},
    }.items():
        engine.build(make_scene(**changes))
        _, frame = picture(engine)
        colours[name] = frame.rgb.astype(int)[frame.segmentation == TABLE]
    darker = (colours["unshadowed"] - colours["plain"]).max(axis=1) > 20
    assert 0.02 < darker.mean() < 0.7
    ratio = colours["checker"][:, 0] / colours["plain"][:, 0]
    assert np.mean(ratio < 0.5) > 0.3
    assert np.mean(ratio > 0.95) > 0.3


def test_principal_point_shifts_the_picture(engine):
    wide, view = {"width": 80, "height": 64, "fov_deg": 45.0}, np.s_[:, 8:72]
    _, whole = picture(engine, **wide)
    for left in (0, 4, 16):
        _, part = picture(engine, **{**wide, "width": 64}, center=((40 - left) / 64, 0.5))
        view = np.s_[:, left : left + 64]
        np.testing.assert_array_equal(part.segmentation, whole.segmentation[view])
        np.testing.assert_allclose(part.depth, whole.depth[view], atol=1e-6)
        assert np.mean(part.rgb != whole.rgb[view]) < 0.03  # anti-aliased edges at the border


def looking_at(shape, texture, eye):
    """The picture of one shape in the air, white light from the eye."""
    floating = Body("body", (replace(shape, rgb=(1.0, 1.0, 1.0), texture=texture),), 0.0, (0.5, 0.0, 0.5))
    light = Light(direction=tuple(eye), ambient=0.6, diffuse=0.4, specular=0.0)
    engine = MujocoEngine()
    engine.build(make_scene(bodies=(floating,), light=light))
    camera = Camera("near", look_at(np.array([0.5, 0.0, 0.5]) + eye, (0.5, 0.0, 0.5)), 14.0, 96, 96)
    return engine.render(camera)


@pytest.mark.parametrize("kind", ["box", "cylinder", "sphere"])
def test_textures_wrap_around_every_shape(kind):
    shape = Shape(kind, {"box": (0.08,) * 3, "cylinder": (0.08, 0.08, 0.08), "sphere": (0.08,) * 3}[kind])
    for eye in ([1.0, 0.1, 0.2], [-0.3, 1.0, 0.4], [0.1, 0.2, 1.0]):
        plain, textured = looking_at(shape, -1, np.array(eye)), looking_at(shape, 5, np.array(eye))
        mask = plain.segmentation == FIRST_BODY
        assert mask.sum() > 1500
        ratio = textured.rgb.astype(float)[mask][:, 0] / np.maximum(plain.rgb[mask][:, 0], 1)
        assert np.mean(ratio < 0.5) > 0.25
        assert np.mean(ratio > 0.9) > 0.25


def test_background_is_fixed_to_the_world_and_seen_by_direction_alone(engine):
    engine.build(make_scene(background_texture=5))
    views = {}
    for name, eye, yaw in (("here", (0.9, 0.0, 0.5), 0.0), ("moved", (0.7, 0.2, 0.8), 0.0), ("turned", (0.9, 0.0, 0.5), 0.3)):
        target = np.array(eye) + [np.cos(yaw), np.sin(yaw), 0.1]
        _, frame = picture(engine, T_base_cam=look_at(eye, target))
        assert (frame.segmentation == BACKGROUND).all()
        views[name] = frame.rgb
    assert np.ptp(views["here"].astype(int)) > 80
    np.testing.assert_array_equal(views["here"], views["moved"])
    assert (views["here"] != views["turned"]).mean() > 0.05


def test_shadows_are_those_of_mujocos_own_rays(engine):
    shapes = (
        Shape("box", (0.02, 0.03, 0.04)),
        Shape("cylinder", (0.02, 0.02, 0.06), quaternion=(0.5, 0.5, 0.5, 0.5)),
        Shape("sphere", (0.04,) * 3),
        Shape("cylinder", (0.03, 0.03, 0.01)),
    )
    bodies = tuple(Body(f"body{i}", (shape,), 0.1, (0.35 + 0.1 * i, 0.1, 0.06)) for i, shape in enumerate(shapes))
    engine.build(make_scene(bodies=bodies))
    casters, rng = shadows.casters(engine.model, raycast.VISIBLE_GROUP), np.random.default_rng(0)
    for lamp in ([0.5, 0.4, 2.0], [-1.5, 0.3, 1.0], [0.5, 0.1, 1.5]):
        points = rng.uniform([-0.1, -0.4, 0.0], [0.9, 0.4, 0.8], (4000, 3))
        hits = raycast.cast(engine.model, engine.data, np.array(lamp), points - lamp)
        expected = (hits.geom >= 0) & (hits.distance < 0.998)
        ours = shadows.hidden(casters, engine.data, np.array(lamp), points, 0.998)
        assert 0.05 < expected.mean() < 0.95
        assert np.mean(ours == expected) > 0.999


def test_sees_the_geometry_that_the_training_simulator_sees(engine):
    bullet = BulletEngine()
    bullet.build(make_scene())
    for camera in (picture(engine, rgb=False)[0], Camera("side", look_at((0.5, 1.0, 0.4), (0.35, 0, 0.3)), 50.0, 64, 64)):
        ours, theirs = engine.render(camera, rgb=False), bullet.render(camera, rgb=False)
        same = ours.segmentation == theirs.segmentation
        assert same.mean() > 0.98
        assert np.abs(ours.depth - theirs.depth)[same].mean() < 1e-3
    bullet.close()


def test_errors_name_the_remedy(engine):
    with pytest.raises(ValueError, match="did you mean 'cube'"):
        engine.pose("cub")
    with pytest.raises(ValueError, match="whole number"):
        engine.advance(0.0131)
    with pytest.raises(ValueError, match="7 joints"):
        engine.build(make_scene(robot_joints=(0.0,) * 6))
    with pytest.raises(ValueError, match=f"-1..{NUM_TEXTURES - 1}"):
        engine.build(make_scene(table_texture=NUM_TEXTURES))
    token = engine.save_state()
    past = engine.snapshot()
    engine.build(make_scene())
    with pytest.raises(ValueError, match="before the last build"):
        engine.restore_state(token)
    with pytest.raises(ValueError, match="before the last build"):
        engine.render(picture(engine, size=4)[0], snapshot=past)
    cube = make_scene().bodies[0]
    wrong = replace(cube, shapes=(replace(cube.shapes[0], texture=99),))
    with pytest.raises(ValueError, match="texture 99 of shape 0 of cube"):
        engine.build(make_scene(bodies=(wrong,)))
    for change, words in [
        ({"shapes": ()}, "no shapes"),
        ({"mass": 0.0, "joint": Joint("slide", (1, 0, 0), 0.0, 1.0)}, "mass 0.0"),
        ({"joint": Joint("slide", (1, 0, 0), 0.1, 1.0)}, "starts at 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            replace(cube, **change)
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="build"):
        engine.joints()
