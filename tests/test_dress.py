"""Properties of the dressing task: cloth, arm, clouds, episodes."""

import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import robopolicy  # noqa: F401
from robopolicy.config import compose, to_plain
from robopolicy.data.collect import collect, fault_lines
from robopolicy.data.windows import Windows
from robopolicy.pipeline import task_env
from robopolicy.sim import clouds, dress_world
from robopolicy.sim.arm import Arm, Capsule, crossing
from robopolicy.sim.cloth import MARGIN, ClothWorld
from robopolicy.sim.dress import CLEARANCE, EXPLODED, MAX_PULL, DressEnv, sideways
from robopolicy.sim.dress_experts import DressExpert, NaivePath
from robopolicy.sim.dress_sensors import BAD_DEPTH, EMPTY_CLOUD, STATE_NAMES
from robopolicy.sim.dress_view import GARMENT, DressView
from robopolicy.sim.dress_world import UPPER, regions
from robopolicy.sim.env import check_settings
from robopolicy.sim.garments import AROUND, GARMENTS, STABLE, sleeve, stretch
from robopolicy.sim.holders import GRAVITY, HOLDERS
from robopolicy.spec import POINTS, STATE, SpecError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import check_dress

ID = "robopolicy/Dress-v0"


@pytest.fixture(scope="module")
def env():
    made = gymnasium.make(ID, disable_env_checker=True).unwrapped
    yield made
    made.close()


@pytest.fixture
def closing():
    made = []
    yield lambda **kwargs: made.append(DressEnv(**kwargs)) or made[-1]
    for one in made:
        one.close()


def run(env, seed, steps=60, actor=None, options=None):
    observation, info = env.reset(seed=seed, options=options)
    actor, trace = actor or DressExpert(), [(observation, 0.0, info)]
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(actor(env))
        trace.append((observation, reward, info))
        if terminated or truncated:
            break
    return trace


def ring_at(x, radius=0.1, tilt=0.0, centre=(0.0, 0.0)):
    angle = np.linspace(0, 2 * np.pi, AROUND, endpoint=False)
    y, z = radius * np.cos(angle), radius * np.sin(angle)
    return np.column_stack([x + tilt * z, y + centre[0], z + 1.0 + centre[1]])


# cloth and arm


@pytest.mark.parametrize("name", GARMENTS)
def test_physics_steps_keep_every_garment_below_the_stability_bound(name):
    for mass, stiffness in ((1, 1), (0.8, 1.25), (0.3, 3.0)):
        garment = GARMENTS[name].scaled(mass, stiffness, 1.0)
        step = 0.05 / garment.physics_steps(0.05)
        vertices = len(sleeve(garment).vertices)
        assert step / np.sqrt(garment.mass / vertices / garment.stiffness) <= STABLE + 1e-9


def test_a_sleeve_is_a_closed_tube_without_caps():
    mesh = sleeve(GARMENTS["shirt"])
    counts = np.unique(
        np.sort(np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]), 1),
        axis=0,
        return_counts=True,
    )[1]
    assert (counts == 1).sum() == 2 * AROUND  # its two borders, every other edge has two faces
    assert counts.max() == 2
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    outward = (np.cross(b - a, c - a) * ((a + b + c) / 3 * [0, 1, 1])).sum(1)
    assert (outward > 0).all()


def test_the_crossing_is_where_the_line_meets_the_opening():
    line = np.array([[0.0, 0.0, 1.0], [0.4, 0.0, 1.0], [0.4, 0.3, 1.0]])
    assert crossing(ring_at(0.25), line) == pytest.approx(0.25)
    assert crossing(ring_at(0.25, tilt=0.5), line) == pytest.approx(0.25)
    assert crossing(ring_at(0.25, centre=(0.09, 0.0)), line) == pytest.approx(0.25)  # off the axis, yet inside
    assert crossing(ring_at(0.25, centre=(0.11, 0.0)), line) == -1.0  # beside the arm
    assert crossing(ring_at(-0.05), line) == -1.0  # not there yet
    turned = ring_at(0.0)[:, [1, 0, 2]] + [0.4, 0.1, 0.0]  # around the second part
    assert crossing(turned, line) == pytest.approx(0.5)


def test_ratios_are_shares_of_the_arm():
    arm = Arm.posed(0.6, 0.3)
    first, second = arm.lengths
    assert arm.dressed(-1.0) == (0.0, 0.0)
    assert arm.dressed(first) == (0.0, pytest.approx(first / (first + second)))
    assert arm.dressed(first + second / 4) == (pytest.approx(0.25), pytest.approx((first + second / 4) / (first + second)))
    assert arm.dressed(first + second + 0.03) == (1.0, 1.0)


def test_a_point_is_moved_out_of_the_skin_and_no_further():
    arm = Arm.posed(0.9, -0.2)
    rng = np.random.default_rng(0)
    arm = replace(arm, capsules=(*arm.capsules[:3], Capsule("torso", np.full(3, 9.0), np.full(3, 10.0), 0.1)))
    starts = [arm.kept_out(point, 0.012) for point in arm.line[rng.integers(3, size=200)] + rng.normal(0, 0.1, (200, 3))]
    starts = [point for point in starts if arm.nearest(point[None])[0][0] >= 0.0119]
    assert len(starts) > 150
    for point in starts + rng.normal(0, 0.01, (len(starts), 3)):
        out = arm.kept_out(point, 0.012)
        assert arm.nearest(out[None])[0][0] >= 0.0119
        if arm.nearest(point[None])[0][0] >= 0.012:
            assert np.array_equal(out, point)


@pytest.mark.parametrize("holder", HOLDERS)
def test_whatever_holds_a_hanging_sleeve_feels_its_weight(holder):
    world = ClothWorld(holder)
    for name in ("tshirt", "jacket"):
        world.build(GARMENTS[name], Arm.posed(0.3, 0.0), np.array([-0.2, 0.0, 1.05]), 0.05)
        forces = []
        for _ in range(30):
            world.move(np.zeros(3), np.zeros(3))
            forces.append(world.force)
        weight = GARMENTS[name].mass * GRAVITY[2]
        assert np.mean(forces[10:], 0) == pytest.approx([0, 0, weight], abs=0.12)
    world.close()
    world.close()


# clouds


def test_voxels_do_not_depend_on_the_order_of_points_and_keep_each_cube_once():
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.2, 0.2, (500, 3))
    found = clouds.voxels(points, 0.05)
    assert np.allclose(found, clouds.voxels(rng.permutation(points), 0.05))
    cells = np.floor(found / 0.05).astype(int)
    assert len(np.unique(cells, axis=0)) == len(found) == len(np.unique(np.floor(points / 0.05).astype(int), axis=0))
    assert clouds.voxels(np.zeros((0, 3)), 0.05).shape == (0, 3)


def test_clouds_are_padded_with_zeros_and_thinned_evenly():
    cloud = clouds.classed(np.ones((300, 3)), 2 * np.ones((10, 3)), 64)
    assert cloud.shape == (64, 5)
    assert (cloud[:25, 3] == 1).all()
    assert (cloud[25:35, 4] == 1).all()
    assert not cloud[35:].any()
    line = np.arange(30.0)[:, None] * np.ones(3)
    assert clouds.thinned(line, 4)[:, 0].tolist() == [0, 10, 19, 29]


# episodes


def test_gymnasium_accepts_it(closing):
    check_env(closing(region="bent", randomization="wide", rotation="full"), skip_render_check=True)


def test_the_same_seed_gives_the_same_episode_whatever_came_before(env, closing):
    first = run(env, 3, steps=25)
    run(env, 4, steps=10)
    for again in (run(env, 3, steps=25), run(closing(), 3, steps=25)):
        for (a, reward_a, info_a), (b, reward_b, info_b) in zip(first, again, strict=True):
            assert all(np.array_equal(a[key], b[key]) for key in a)
            assert (reward_a, info_a) == (reward_b, info_b)
    assert not np.array_equal(first[0][0][POINTS], run(env, 5, steps=1)[0][0][POINTS])


def test_a_saved_state_comes_back_with_its_cloth(env):
    env.reset(seed=8)
    expert = DressExpert()
    for _ in range(15):
        env.step(expert(env))
    token, before = env.save_state(), env.cloth.vertices()
    ahead = [env.step(expert(env)) for _ in range(8)]
    env.reset(seed=9)
    env.restore_state(token)
    assert np.array_equal(env.cloth.vertices(), before)
    for observation, reward, _, _, info in ahead:
        other = env.step(expert(env))
        assert np.array_equal(observation[POINTS], other[0][POINTS])
        assert (reward, info) == (other[1], other[4])


@pytest.mark.parametrize("region", ["straight", "bent-high"])
def test_the_expert_dresses_and_a_still_gripper_does_not(env, region):
    final = run(env, 1, options={"region": region})[-1][2]
    assert final["upper_ratio"] > 0.9
    assert final["success"]
    assert final["progress"] == final["whole_ratio"]
    assert 0.5 < final["peak_force_n"] < 15
    still = run(env, 1, options={"region": region}, actor=lambda env: np.zeros(4))[-1][2]
    assert still["whole_ratio"] == 0
    assert not still["success"]


def test_pulling_on_past_the_shoulder_earns_no_more_than_being_there(env):
    trace = run(env, 2, options={"region": "straight"})
    there = trace[-1][1]

    def onwards(inner):
        return inner.action_towards(inner.arm.upper_direction, 0.0)

    for _ in range(25):
        _, reward, truncated, info = env.advance(onwards(env))
        assert reward <= there + 0.05
        assert info["clearance_m"] >= CLEARANCE - 1e-4
    assert info["upper_ratio"] > 0.9
    assert info["force_n"] < 10
    assert not truncated


def test_the_reward_grows_up_to_the_shoulder_and_no_further():
    arm, turn = Arm.posed(0.3, 0.1), np.linspace(0, 2 * np.pi, 16, endpoint=False)
    across = np.linalg.svd(arm.upper_direction[None])[2][1:]
    circle = 0.1 * (np.cos(turn)[:, None] * across[0] + np.sin(turn)[:, None] * across[1])
    first, shoulder = arm.lengths[0], arm.lengths.sum()
    places = shoulder + np.array([-0.04, -0.02, 0.0, 0.02, 0.04])
    earned = [
        dress_world.reward(arm, circle + arm.line[1] + (at - first) * arm.upper_direction, at, 0.0, 0.05) for at in places
    ]
    assert np.diff(earned) == pytest.approx([0.02 * UPPER, 0.02 * UPPER, 0.0, 0.0])


def test_what_goes_against_a_force_is_left_out():
    force = np.array([0.0, -20.0, 0.0])  # of a cloth behind a gripper that goes along +y
    assert np.array_equal(sideways(np.array([0.01, 0.01, 0.0]), force), [0.01, 0.0, 0.0])
    assert np.array_equal(sideways(np.array([0.0, -0.01, 0.01]), force), [0.0, -0.01, 0.01])


@pytest.mark.parametrize("direction", [[1.0, -1.0, 0.5], [0.0, 0.0, 1.0]])
def test_nobody_can_stretch_the_sleeve_off_the_arm(env, direction):
    expert = DressExpert()
    env.reset(seed=3, options={"region": "folded"})
    for _ in range(25):
        env.advance(expert(env))
    away = np.append(0.02 * np.array(direction) / np.linalg.norm(direction), 0.0)
    forces = [env.advance(away)[3]["force_n"] for _ in range(60)]
    assert max(forces) < 1.3 * MAX_PULL
    assert np.mean(forces[-20:]) > 0.5 * MAX_PULL  # it was held, and hangs on


def test_cloth_stays_out_of_the_skin(env):
    env.reset(seed=11, options={"region": "bent"})
    expert, worst = DressExpert(), np.inf
    for _ in range(55):
        env.advance(expert(env))
        worst = min(worst, env.arm.nearest(env.cloth.vertices())[0].min())
    assert worst > -MARGIN
    assert stretch(env.cloth.vertices(), env.cloth._edges, env.cloth._rest) < 3


def test_points_lie_on_what_they_are_labelled_as(env):
    observation, _ = env.reset(seed=6)
    for _ in range(20):
        observation = env.step(DressExpert()(env))[0]
    cloud = observation[POINTS]
    arm, garment = cloud[cloud[:, 3] == 1, :3], cloud[cloud[:, 4] == 1, :3]
    assert len(arm) > 12
    assert len(garment) > 15
    assert np.abs(env.arm.nearest(arm)[0]).max() < 0.03  # the mean of a voxel lies a little inside
    gaps = np.linalg.norm(garment[:, None] - env.cloth.vertices()[None], axis=2).min(1)
    assert gaps.max() < 0.04
    assert not cloud[(cloud[:, 3:] == 0).all(1)].any()
    assert np.array_equal(observation[STATE][:3], env.cloth.position.astype(np.float32))
    assert len(STATE_NAMES) == len(observation[STATE])


def test_the_arm_is_seen_as_it_was_before_the_garment_came(env):
    first, _ = env.reset(seed=6)
    for _ in range(35):
        last = env.step(DressExpert()(env))[0]
    arms = [cloud[POINTS][cloud[POINTS][:, 3] == 1] for cloud in (first, last)]
    assert np.array_equal(*arms)
    visible = env.look(env.sensors._front, rgb=False).segmentation
    assert (visible == GARMENT).sum() > 300  # which now hides much of it


def test_a_panda_dresses_too_and_lags_a_little(closing):
    env = closing(holder="panda", observation=("state", "points", "images.front"), image_size=64)
    observation, _ = env.reset(seed=0, options={"region": "bent"})
    expert, lag = DressExpert(), []
    for step in range(58):
        if step in (5, 30):
            cloud = env.step(expert(env))[0][POINTS]
            assert (cloud[:, 4] == 1).sum() > 15  # the robot hides nothing of it
        _, _, truncated, info = env.advance(expert(env))
        lag.append(np.linalg.norm(env.cloth.position - env.cloth.goal))
        assert not truncated
    assert info["upper_ratio"] > 0.9
    assert 1e-4 < max(lag) < 0.02
    assert info["peak_force_n"] < 15
    assert (env.look(env.sensors._front).rgb != observation["observation.images.front"]).any()


# what goes wrong


def test_an_exploding_cloth_ends_the_episode_flagged(closing, monkeypatch):
    env = closing()
    env.reset(seed=0)
    monkeypatch.setattr("robopolicy.sim.garments.Garment.physics_steps", lambda self, seconds: 4)  # far too few
    env.reset(seed=0)
    for _ in range(40):
        observation, reward, terminated, truncated, info = env.step(DressExpert()(env))
        if truncated:
            break
    assert truncated
    assert not terminated
    assert info["fault"] == EXPLODED
    assert not info["success"]
    assert np.isfinite(reward)
    assert all(np.isfinite(value).all() for value in observation.values())
    monkeypatch.undo()
    assert run(env, 1)[-1][2]["success"]  # and the next one is sound


def test_a_cloth_that_explodes_while_it_settles_is_flagged_at_reset(closing, monkeypatch):
    env = closing()
    monkeypatch.setattr("robopolicy.sim.garments.Garment.physics_steps", lambda self, seconds: 2)
    monkeypatch.setattr("robopolicy.sim.cloth.SETTLE_S", 1.0)
    observation, info = env.reset(seed=0)
    assert info["fault"] == EXPLODED
    assert not info["upper_ratio"]
    assert all(np.isfinite(value).all() for value in observation.values())


def test_an_empty_cloud_ends_the_episode_flagged(closing):
    env = closing(nominal={"camera.target": [-2.0, -2.0, 0.5]})  # looks away
    observation, info = env.reset(seed=0)
    assert info["fault"] == EMPTY_CLOUD
    assert not observation[POINTS].any()
    *_, truncated, info = env.step(np.zeros(4))
    assert truncated
    assert info["fault"] == EMPTY_CLOUD


def test_depth_that_is_not_finite_ends_the_episode_flagged(closing, monkeypatch):
    env = closing(region="straight")
    env.reset(seed=1)
    expert = DressExpert()
    assert [env.advance(expert(env))[3]["success"] for _ in range(58)][-1]
    monkeypatch.setattr("robopolicy.sim.dress_sensors.noisy_depth", lambda depth, world, rng: np.full_like(depth, np.nan))
    observation, reward, _, truncated, info = env.step(np.zeros(4))
    assert truncated
    assert info["fault"] == BAD_DEPTH
    assert np.isfinite(observation[POINTS]).all()
    assert (reward, info["success"]) == (0.0, False)  # although it is dressed


def test_the_arm_is_seen_through_the_same_depth_sensor_as_the_garment(closing, monkeypatch):
    env, scaled = closing(), closing(nominal={"sensor.depth_scale": 1.05})
    clouds = [one.reset(seed=6)[0][POINTS] for one in (env, scaled)]
    eye = env.world.vector("camera.position")
    for column in (3, 4):
        near, far = (np.linalg.norm(cloud[cloud[:, column] == 1, :3] - eye, axis=1).mean() for cloud in clouds)
        assert far > 1.03 * near
    render = DressView.render

    def blind(view, camera, vertices, *rest):
        frame = render(view, camera, vertices, *rest)
        return frame if vertices is not None else replace(frame, depth=np.full_like(frame.depth, np.nan))

    monkeypatch.setattr(DressView, "render", blind)
    assert env.reset(seed=6)[1]["fault"] == BAD_DEPTH


def test_mistakes_are_named_with_what_would_work(closing):
    for kwargs, message in (
        ({"region": "bend"}, "did you mean 'bent'"),
        ({"region": "bent-bent"}, "bent-bent"),
        ({"garments": ["shrt"]}, "did you mean 'shirt'"),
        ({"garments": []}, "give at least one of tshirt"),
        ({"observation": ["point"]}, "did you mean 'points'"),
        ({"rotation": "pitch"}, "rotation='pitch'"),
        ({"holder": "pandas"}, "did you mean 'panda'"),
        ({"holder": None}, "holder='None'; available: gripper, panda"),
        ({"voxel": 0}, "voxel=0 does not work"),
        ({"voxel": float("nan")}, "voxel=nan does not work"),
        ({"num_points": 0}, "num_points=0 does not work"),
        ({"control_hz": -5.0}, r"control_hz=-5\.0 does not work"),
        ({"nominal": {"arm.bent": 1.0}}, "did you mean 'arm.bend'"),
        ({"randomization": {"garment": {"mas": {"uniform": [1, 2]}}}}, "did you mean 'garment.mass'"),
    ):
        for refuse in (closing, lambda **given: check_settings(ID, given)):
            with pytest.raises(ValueError, match=message):
                refuse(**kwargs)
    with pytest.raises(ValueError, match="did you mean 'folded'"):
        task_env({**to_plain(compose("collect", ["task=dress", "path=x"]))["task"], "env": {"region": "foldet"}}, "none")
    with pytest.raises(ValueError, match="has no twin"):
        task_env(to_plain(compose("collect", ["task=dress", "path=x"]))["task"], "none", twin=True)
    env = closing()
    with pytest.raises(ValueError, match="use region"):
        env.reset(options={"level": 0.5})
    env.reset(seed=0)
    with pytest.raises(ValueError, match="4 finite numbers"):
        env.step(np.full(4, np.nan))


def test_regions_partition_the_poses(env):
    assert len(regions()) == 9
    for region in ("folded", "folded-low"):
        env.reset(seed=0, options={"region": region})
        assert 70 <= np.degrees(env.world.scalar("arm.bend")) <= 105
    assert -25 <= np.degrees(env.world.scalar("arm.elevation")) <= -8


def test_demonstrations_are_collected_like_any_others(tmp_path):
    task = to_plain(compose("collect", ["task=dress", "path=x"]))["task"]
    env_id, env_kwargs = task_env(task, "wide")
    env_kwargs["region"] = "straight"
    store = collect(tmp_path / "data", env_id, env_kwargs, {"expert": 1, "imperfect": 1}, seed=0, num_workers=0)
    assert len(store) == 2
    assert store.spec.features[POINTS].names == ("x", "y", "z", "arm", "garment")
    infos = [store.info(i) for i in range(2)]
    assert {info["source"] for info in infos} == {"expert", "imperfect"}
    assert infos[0]["success"]
    assert set(infos[0]["randomization"]) >= {"garment.mass", "garment.stiffness", "garment.friction", "arm.bend"}


def test_faults_are_kept_with_the_episodes_and_their_last_steps_are_not_learned(tmp_path):
    away = {"nominal": {"camera.target": [-2.0, -2.0, 0.5]}}
    store = collect(tmp_path / "data", ID, away, {"expert": 2}, seed=0, num_workers=0)
    assert store.faults == [EMPTY_CLOUD] * 2
    assert fault_lines(["", *store.faults]) == ["2 of 3 episodes ended in a fault: empty_cloud 2"]
    assert fault_lines([""]) == []
    with pytest.raises(SpecError, match="ended in a fault at their first step"):
        Windows(store, [STATE], 1, 1)


def test_a_naive_path_does_worse_where_the_elbow_is_folded(env):
    upper = {actor: np.mean([run_blind(env, seed, actor()) for seed in (0, 1)]) for actor in (DressExpert, NaivePath)}
    assert upper[DressExpert] > upper[NaivePath] + 0.1


def run_blind(env, seed, actor):
    env.reset(seed=seed, options={"region": "folded"})
    for _ in range(60):
        info = env.advance(actor(env))[3]
    return info["upper_ratio"]


@pytest.mark.parametrize(("resets", "moments"), [(3, 3), (20, 10)])
def test_memory_is_looked_at_ten_times_or_after_each_of_fewer_resets(resets, moments):
    class Still:
        def reset(self, seed):
            pass

        def step(self, action):
            pass

    assert len(check_dress.check_memory(Still(), resets)) == moments
