"""What both simulators must make of the same scene."""

import numpy as np
import pytest

from robopolicy.geometry import pose
from robopolicy.sim.bullet import BulletEngine
from robopolicy.sim.camera import deproject
from robopolicy.sim.robot import HOME, MAX_OPENING, forward, inverse
from robopolicy.sim.scene import BACKGROUND, FIRST_BODY, Body, Camera, Joint, Scene, Shape, look_at
from robopolicy.sim.twin import MujocoEngine

CONTROL_PERIOD = 0.05
GRAVITY = 9.81
POST = Shape("cylinder", (0.01, 0.01, 0.03), position=(0.0, 0.0, 0.04))
UPRIGHT_Y = (float(np.sin(np.pi / 4)), 0.0, 0.0, float(np.cos(np.pi / 4)))  # a cylinder's axis along y


@pytest.fixture(params=[BulletEngine, MujocoEngine])
def engine(request):
    engine = request.param()
    yield engine
    engine.close()


def scene(*bodies, **options):
    return Scene(bodies=bodies, robot_joints=tuple(HOME), **options)


def tilted(angle):
    """Quaternion of a turn about y that lowers the side at +x."""
    return (0.0, float(np.sin(angle / 2)), 0.0, float(np.cos(angle / 2)))


def ramp(angle, **options):
    """A fixed slope with its upper face through (0.5, 0, 0.3)."""
    down = np.array([np.sin(angle), 0.0, np.cos(angle)]) * 0.01
    position = tuple(np.array([0.5, 0.0, 0.3]) - down)
    return Body.box("ramp", (0.25, 0.1, 0.01), 0.0, position, quaternion=tilted(angle), **options)


def on_ramp(angle, height):
    """Where a thing of half height `height` lies on the ramp."""
    return tuple(np.array([0.45, 0.0, 0.3 + 0.05 * np.tan(angle)]) + height * np.array([np.sin(angle), 0.0, np.cos(angle)]))


def drawer(**joint):
    tray = Shape("box", (0.06, 0.05, 0.01))
    guide = Joint("slide", (-1.0, 0.0, 0.0), **{"low": 0.0, "high": 0.15, "damping": 2.0, "friction": 1.0, **joint})
    return Body("drawer", (tray, POST), 0.4, (0.55, 0.05, 0.03), joint=guide)


def door(**joint):
    """Hinged at its left edge; its post is 0.15 m from the axis."""
    panel = Shape("box", (0.01, 0.08, 0.02), position=(0.0, -0.08, 0.0))
    post = Shape("cylinder", POST.size, position=(0.0, -0.15, 0.05))
    guide = Joint("hinge", (0.0, 0.0, -1.0), **{"low": -0.1, "high": 1.2, "damping": 0.02, "friction": 0.05, **joint})
    return Body("door", (panel, post), 0.4, (0.55, 0.3, 0.03), joint=guide)


def pull(engine, handle, way):
    """Grasp what stands at `handle` and lead it along `way` (both [3], m); returns how far its joint came and the forces."""
    T, q = forward(HOME), HOME
    at = T[:3, 3].copy()
    legs = [(handle + [0, 0, 0.1], 1.0, 1.0), (handle, 0.7, 1.0), (handle, 0.4, 0.0), (handle + way, 1.2, 0.0)]
    for goal, seconds, opening in legs:
        steps = round(seconds / CONTROL_PERIOD)
        for i in range(steps):
            T[:3, 3] = at + (goal - at) * (i + 1) / steps
            q = inverse(q, T)
            engine.command(q, opening * MAX_OPENING)
            engine.advance(CONTROL_PERIOD)
        at = goal
    return engine.grip_forces()


def rotation(quaternion):
    return pose(np.zeros(3), quaternion)[:3, :3]


TEE = (
    Shape("box", (0.05, 0.02, 0.02), rgb=(0.9, 0.2, 0.1)),
    Shape("cylinder", (0.02, 0.02, 0.05), position=(0.07, 0.0, 0.03), rgb=(0.1, 0.6, 0.2)),
    Shape("sphere", (0.025,) * 3, position=(-0.05, 0.04, 0.0), rgb=(0.1, 0.2, 0.9)),
)
TURNED = tuple(np.array([0.1, 0.2, 0.3, 0.9]) / np.linalg.norm([0.1, 0.2, 0.3, 0.9]))


def test_pose_is_that_of_the_bodys_own_frame(engine):
    bodies = (
        Body("free", TEE, 0.3, (0.5, 0.2, 0.4), TURNED),
        Body("fixed", TEE, 0.0, (0.5, -0.2, 0.4), TURNED),
        Body("slid", TEE, 0.3, (0.3, -0.3, 0.4), TURNED, joint=Joint("slide", (1.0, 0.0, 0.0), 0.0, 0.1, friction=20.0)),
        Body("hung", TEE, 0.3, (0.3, 0.3, 0.4), TURNED, joint=Joint("hinge", (0.0, 0.0, 1.0), -1.0, 1.0, friction=20.0)),
        Body("marker", TEE, 0.0, (0.5, -0.2, 0.4), collides=False),
    )
    engine.build(scene(*bodies))
    for body in bodies:
        position, quaternion = engine.pose(body.name)
        np.testing.assert_allclose(position, body.position, atol=1e-9)
        np.testing.assert_allclose(rotation(quaternion), rotation(body.quaternion), atol=1e-6)
        np.testing.assert_allclose(engine.velocity(body.name), 0.0, atol=1e-9)
    engine.advance(0.1)
    fallen = np.array(bodies[0].position) - [0, 0, GRAVITY * 0.1**2 / 2]
    np.testing.assert_allclose(engine.pose("free")[0], fallen, atol=5e-3)
    np.testing.assert_allclose(rotation(engine.pose("free")[1]), rotation(TURNED), atol=1e-4)
    for body in bodies[1:]:
        np.testing.assert_allclose(engine.pose(body.name)[0], body.position, atol=1e-3)


def test_velocity_is_that_of_the_point_whose_pose_is_given(engine):
    lopsided = Body("lopsided", TEE, 0.3, (0.5, 0.3, 0.2), TURNED)
    lid = Body("lid", TEE, 0.3, (0.3, -0.3, 0.3), joint=Joint("hinge", (0.0, 1.0, 0.0), -1.5, 1.5, damping=0.0, friction=0.0))
    post = Body.box("post", (0.01, 0.01, 0.1), 0.0, (0.57, 0.3, 0.05))
    engine.build(scene(lopsided, lid, post))
    engine.advance(0.2)
    spun = 0.0
    for _ in range(10):
        before = {name: engine.pose(name) for name in ("lopsided", "lid")}
        engine.advance(engine.time_step)
        for name, (position, quaternion) in before.items():
            moved = (engine.pose(name)[0] - position) / engine.time_step
            np.testing.assert_allclose(engine.velocity(name), moved, atol=0.03)
            spun = max(spun, np.abs(rotation(engine.pose(name)[1]) - rotation(quaternion)).max() / engine.time_step)
    assert spun > 1.0, "nothing turns: the test says little"


def test_only_jointed_bodies_have_a_joint_position(engine):
    engine.build(scene(drawer(), Body.box("cube", (0.02,) * 3, 0.1, (0.4, 0.3, 0.02))))
    assert engine.joint_position("drawer") == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match=r"no joint.*drawer"):
        engine.joint_position("cube")
    with pytest.raises(ValueError, match="did you mean 'drawer'"):
        engine.joint_position("drawr")


def test_a_drawer_opens_when_pulled_and_stays(engine):
    engine.build(scene(drawer()))
    handle = np.array([0.55, 0.05, 0.075])
    forces = pull(engine, handle, np.array([-0.1, 0.0, 0.0]))
    assert (forces > 10).all()
    opened = engine.joint_position("drawer")
    assert opened == pytest.approx(0.1, abs=0.012)
    np.testing.assert_allclose(engine.pose("drawer")[0], [0.55 - opened, 0.05, 0.03], atol=1e-3)
    engine.command(engine.joints()[0], MAX_OPENING)
    engine.advance(0.5)
    assert engine.joint_position("drawer") == pytest.approx(opened, abs=0.01)


def test_a_door_turns_about_its_hinge_when_pulled(engine):
    engine.build(scene(door()))
    handle = np.array([0.55, 0.15, 0.085])
    pull(engine, handle, np.array([-0.09, 0.03, 0.0]))
    angle = engine.joint_position("door")
    assert 0.4 < angle < 0.9
    position, quaternion = engine.pose("door")
    np.testing.assert_allclose(position, [0.55, 0.3, 0.03], atol=2e-3)
    c, s = np.cos(-angle), np.sin(-angle)
    np.testing.assert_allclose(rotation(quaternion), [[c, -s, 0], [s, c, 0], [0, 0, 1]], atol=2e-2)


def test_a_joint_ends_where_its_range_ends(engine):
    down = Joint("slide", (0.0, 0.0, -1.0), 0.0, 0.05, damping=0.5, friction=0.0)
    lid = Joint("hinge", (0.0, 1.0, 0.0), 0.0, 0.7, damping=0.01, friction=0.0)
    bodies = (
        Body("shutter", (Shape("box", (0.05, 0.01, 0.05)),), 0.3, (0.5, 0.3, 0.4), joint=down),
        Body("lid", (Shape("box", (0.05, 0.05, 0.005), position=(0.05, 0.0, 0.0)),), 0.2, (0.5, -0.3, 0.4), joint=lid),
    )
    engine.build(scene(*bodies))
    engine.advance(1.5)
    assert engine.joint_position("shutter") == pytest.approx(0.05, abs=2e-3)
    assert engine.joint_position("lid") == pytest.approx(0.7, abs=0.02)


def test_dry_friction_of_a_joint_holds_up_to_its_force(engine):
    down = {"kind": "slide", "axis": (0.0, 0.0, -1.0), "low": 0.0, "high": 0.3, "damping": 0.0}
    shape = (Shape("box", (0.03, 0.03, 0.03)),)
    weight = 0.3 * GRAVITY
    bodies = [
        Body(name, shape, 0.3, (0.5, y, 0.5), joint=Joint(**down, friction=share * weight), linear_damping=0.0)
        for name, y, share in (("held", 0.3, 1.2), ("slips", -0.3, 0.5))
    ]
    engine.build(scene(*bodies))
    engine.advance(0.2)
    assert engine.joint_position("held") == pytest.approx(0.0, abs=3e-3)
    assert engine.joint_position("slips") == pytest.approx(0.5 * GRAVITY * 0.2**2 / 2, rel=0.08)


def test_a_jointed_body_passes_through_fixed_ones_and_stops_free_ones(engine):
    block = Body.box("block", (0.02,) * 3, 5.0, (0.5, 0.0, 0.02))
    cabinet = Body("cabinet", (Shape("box", (0.1, 0.1, 0.03)),), 0.0, (0.5, 0.3, 0.03))
    down = Joint("slide", (0.0, 0.0, -1.0), 0.0, 0.3, damping=1.0, friction=0.0)
    shape = (Shape("box", (0.02, 0.02, 0.02)),)
    over_cabinet = Body("over_cabinet", shape, 0.2, (0.5, 0.3, 0.3), joint=down)
    over_block = Body("over_block", shape, 0.2, (0.5, 0.0, 0.3), joint=down)
    engine.build(scene(block, cabinet, over_cabinet, over_block))
    engine.advance(1.5)
    assert engine.joint_position("over_cabinet") == pytest.approx(0.3, abs=5e-3)
    assert engine.joint_position("over_block") == pytest.approx(0.24, abs=5e-3)


def test_markers_are_seen_but_not_felt(engine):
    engine.build(scene(Body("goal", (Shape("cylinder", (0.05, 0.05, 0.02)),), 0.0, (0.5, 0.1, 0.02), collides=False)))
    camera = Camera("top", look_at((0.5, 0.1001, 0.8), (0.5, 0.1, 0.0)), 40.0, 32, 32)
    assert (engine.render(camera, rgb=False).segmentation == FIRST_BODY).sum() > 20
    engine.build(
        scene(
            Body.box("goal", (0.05,) * 3, 0.0, (0.5, 0.1, 0.05), collides=False),
            Body.box("cube", (0.02,) * 3, 0.1, (0.5, 0.1, 0.2)),
        )
    )
    engine.advance(1.0)
    assert engine.pose("cube")[0][2] == pytest.approx(0.02, abs=2e-3)


@pytest.mark.parametrize(("mu_body", "mu_ramp"), [(0.5, 0.4), (0.8, 0.5)])
def test_sliding_obeys_coulomb(engine, mu_body, mu_ramp):
    angle, seconds = 0.5, 0.3
    sled = Body.box("sled", (0.03, 0.03, 0.01), 0.2, on_ramp(angle, 0.01), tilted(angle), friction=mu_body, linear_damping=0.0)
    engine.build(scene(ramp(angle, friction=mu_ramp), sled))
    engine.advance(seconds)
    acceleration = GRAVITY * (np.sin(angle) - mu_body * mu_ramp * np.cos(angle))
    moved = np.linalg.norm(engine.pose("sled")[0] - sled.position)
    assert moved == pytest.approx(acceleration * seconds**2 / 2, rel=0.06)


def test_friction_above_the_slope_holds(engine):
    angle = 0.3
    sled = Body.box("sled", (0.03, 0.03, 0.01), 0.2, on_ramp(angle, 0.01), tilted(angle), friction=0.8)
    engine.build(scene(ramp(angle, friction=0.6), sled))
    engine.advance(0.5)
    assert np.linalg.norm(engine.pose("sled")[0] - sled.position) < 2e-3


@pytest.mark.parametrize("shape", [Shape("sphere", (0.03,) * 3), Shape("cylinder", (0.03, 0.03, 0.04), quaternion=UPRIGHT_Y)])
def test_round_things_roll_as_their_inertia_says_and_rolling_friction_holds_them(engine, shape):
    angle, seconds = 0.2, 0.4
    for rolling, share in ((0.0, 1 / (1 + (0.4 if shape.kind == "sphere" else 0.5))), (0.03, 0.0)):
        options = {"rolling_friction": rolling, "spinning_friction": 0.0, "linear_damping": 0.0, "angular_damping": 0.0}
        engine.build(scene(ramp(angle), Body("roller", (shape,), 0.2, on_ramp(angle, 0.03), **options)))
        engine.advance(seconds)
        moved = np.linalg.norm(engine.pose("roller")[0] - on_ramp(angle, 0.03))
        expected = share * GRAVITY * np.sin(angle) * seconds**2 / 2
        assert moved == pytest.approx(expected, rel=0.08, abs=3e-3), rolling


def test_what_stands_stays(engine):
    """Upright cylinders, one on the other, and a body of three shapes."""
    can = Shape("cylinder", (0.03, 0.03, 0.04))
    table = Body(
        "stool",
        (
            Shape("box", (0.06, 0.06, 0.01), position=(0.0, 0.0, 0.05)),
            Shape("box", (0.01, 0.05, 0.02), position=(-0.04, 0.0, 0.02)),
            Shape("box", (0.01, 0.05, 0.02), position=(0.04, 0.0, 0.02)),
        ),
        0.4,
        (0.6, 0.2, 0.0),
    )
    bodies = Body("lower", (can,), 0.2, (0.45, 0.2, 0.04)), Body("upper", (can,), 0.2, (0.45, 0.2, 0.12)), table
    engine.build(scene(*bodies))
    engine.advance(1.0)
    for body in bodies:
        np.testing.assert_allclose(engine.pose(body.name)[0], body.position, atol=2e-3)
        np.testing.assert_allclose(rotation(engine.pose(body.name)[1])[2, 2], 1.0, atol=1e-3)


def test_a_peg_drops_into_a_hole_little_wider(engine):
    hole, wall, height = 0.0115, 0.02, 0.03
    sides = [
        Shape("box", (half_x, half_y, height), position=(x, y, height))
        for x, y, half_x, half_y in [
            (hole + wall, 0.0, wall, hole + 2 * wall),
            (-hole - wall, 0.0, wall, hole + 2 * wall),
            (0.0, hole + wall, hole, wall),
            (0.0, -hole - wall, hole, wall),
        ]
    ]
    socket = Body("socket", tuple(sides), 0.0, (0.5, 0.2, 0.0))
    for name, x in (("over", 0.5005), ("beside", 0.515)):
        engine.build(scene(socket, Body.box("peg", (0.01, 0.01, 0.04), 0.1, (x, 0.2, 0.105))))
        engine.advance(1.0)
        assert (engine.pose("peg")[0][2] < 0.045) == (name == "over"), name


@pytest.mark.parametrize("restitution", [0.4, 0.8])
def test_a_ball_bounces_to_the_height_that_restitution_says(engine, restitution):
    radius, drop = 0.03, 0.3
    ball = Body(
        "ball", (Shape("sphere", (radius,) * 3),), 0.1, (0.5, 0.2, drop + radius), restitution=restitution, linear_damping=0.0
    )
    engine.build(scene(ball, table_restitution=1.0))
    heights = []
    for _ in range(round(0.8 / 0.05)):
        for _ in range(5):
            engine.advance(round(0.01 / engine.time_step) * engine.time_step if engine.time_step < 0.005 else engine.time_step)
            heights.append(engine.pose("ball")[0][2] - radius)
    landed = int(np.argmax(np.array(heights) < 0.01))
    assert np.sqrt(max(heights[landed:]) / drop) == pytest.approx(restitution, abs=0.12)


def test_a_dull_ball_does_not_bounce(engine):
    ball = Body("ball", (Shape("sphere", (0.03,) * 3),), 0.1, (0.5, 0.2, 0.33))
    engine.build(scene(ball, table_restitution=1.0))
    engine.advance(0.35)
    heights = []
    for _ in range(8):
        engine.advance(CONTROL_PERIOD)
        heights.append(engine.pose("ball")[0][2] - 0.03)
    assert max(heights) < 0.3 * 0.15**2


def test_damping_takes_its_share_of_the_velocity_each_second(engine):
    falls = {}
    for damping in (0.0, 0.5):
        ball = Body("ball", (Shape("sphere", (0.03,) * 3),), 0.1, (0.5, 0.2, 0.9), linear_damping=damping)
        engine.build(scene(ball))
        engine.advance(0.2)
        falls[damping] = -engine.velocity("ball")[2]
    assert falls[0.0] == pytest.approx(GRAVITY * 0.2, rel=1e-3)
    assert falls[0.5] == pytest.approx(GRAVITY * (1 - np.exp(-0.5 * 0.2)) / 0.5, rel=0.08)
    assert falls[0.5] < 0.97 * falls[0.0]


def test_damping_of_the_arm_slows_it(engine):
    reached = []
    for damping in (0.0, 5.0):
        engine.build(scene(joint_damping=damping))
        engine.command(HOME + [0.2, 0, 0, 0, 0, 0, 0], MAX_OPENING)
        engine.advance(CONTROL_PERIOD)
        reached.append(engine.joints()[0][0] - HOME[0])
    assert reached[1] < 0.97 * reached[0]


def test_both_see_the_same_world():
    bodies = (
        Body("tee", TEE, 0.3, (0.5, 0.2, 0.1), TURNED),
        drawer(),
        Body("barrel", (Shape("cylinder", (0.04, 0.04, 0.05)),), 0.3, (0.42, -0.15, 0.05)),
        Body("ball", (Shape("sphere", (0.04,) * 3, position=(0.0, 0.03, 0.0)),), 0.1, (0.6, -0.2, 0.04)),
    )
    cameras = [
        Camera("front", look_at((0.98, 0.0, 0.56), (0.47, 0.0, 0.11)), 48.0, 96, 96),
        Camera("off", look_at((0.6, 0.7, 0.5), (0.5, 0.0, 0.05)), 50.0, 96, 72, center=(0.42, 0.57)),
    ]
    frames = []
    for engine in (BulletEngine(), MujocoEngine()):
        engine.build(scene(*bodies))
        frames.append([engine.render(camera, rgb=False) for camera in cameras])
        engine.close()
    for camera, theirs, ours in zip(cameras, *frames, strict=True):
        same = ours.segmentation == theirs.segmentation
        assert same.mean() > 0.98
        assert np.abs(ours.depth - theirs.depth)[same].mean() < 1e-3
        for i in range(len(bodies)):
            mask = ours.segmentation == FIRST_BODY + i
            assert mask.sum() > 20
            assert (mask & same).sum() > 0.85 * (mask | (theirs.segmentation == FIRST_BODY + i)).sum()
            here, there = deproject(ours.depth, camera)[mask], deproject(theirs.depth, camera)[mask & same]
            np.testing.assert_allclose(here.mean(axis=0), there.mean(axis=0), atol=3e-3)


def test_a_snapshot_shows_its_moment_and_changes_nothing(engine):
    camera = Camera("front", look_at((0.98, 0.0, 0.56), (0.47, 0.0, 0.11)), 48.0, 48, 48)
    ball = Body("ball", (Shape("sphere", (0.04,) * 3),), 0.1, (0.5, 0.2, 0.5))

    def run(look):
        engine.build(scene(ball, drawer()))
        then, seen, rows = engine.snapshot(), engine.render(camera), []
        for _ in range(6):
            engine.command(HOME + [0.3, 0, 0, 0, 0, 0, 0], 0.0)
            engine.advance(CONTROL_PERIOD)
            if look:
                past, now = engine.render(camera, snapshot=then), engine.render(camera)
                assert (now.depth != past.depth).any()
                for name in ("rgb", "depth", "segmentation"):
                    np.testing.assert_array_equal(getattr(past, name), getattr(seen, name))
            rows.append(np.concatenate([engine.joints()[0], *engine.pose("ball"), engine.velocity("ball")]))
        return np.array(rows)

    np.testing.assert_array_equal(run(look=True), run(look=False))


def test_restoring_with_drawer_door_and_compound_is_exact(engine):
    cup = Body("cup", TEE, 0.2, (0.5, -0.12, 0.06), TURNED, restitution=0.4, rolling_friction=0.001)
    engine.build(scene(drawer(), door(), cup, table_restitution=0.5))
    pull(engine, np.array([0.55, 0.05, 0.075]), np.array([-0.05, 0.0, 0.0]))

    def state():
        rows = [*engine.pose("cup"), engine.velocity("cup"), engine.joints()[0], engine.grip_forces()]
        return np.concatenate([*rows, [engine.joint_position("drawer"), engine.joint_position("door")]])

    def onwards():
        rng, q, rows = np.random.default_rng(0), engine.joints()[0], []
        for i in range(10):
            engine.command(q + rng.uniform(-0.08, 0.08, 7), 0.0 if i < 7 else MAX_OPENING)
            engine.advance(CONTROL_PERIOD)
            rows.append(state())
        return np.array(rows)

    token, here = engine.save_state(), state()
    first = onwards()
    assert np.ptp(first[:, -2]) > 1e-3, "the drawer should move, or the comparison says little"
    engine.restore_state(token)
    np.testing.assert_array_equal(state(), here)
    np.testing.assert_array_equal(onwards(), first)


def test_background_has_no_depth(engine):
    engine.build(scene(background_texture=3))
    camera = Camera("up", look_at((0.9, 0.0, 0.5), (2.0, 0.1, 0.6)), 60.0, 32, 32)
    frame = engine.render(camera)
    assert (frame.segmentation == BACKGROUND).all()
    assert not frame.depth.any()
