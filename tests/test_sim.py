"""Properties of the environments, in both simulators."""

import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy.spatial import ConvexHull

import robopolicy
from robopolicy import spec
from robopolicy.data.collect import play
from robopolicy.geometry import matrix_from_6d, pose
from robopolicy.sim import robot
from robopolicy.sim.camera import deproject, height_over_table
from robopolicy.sim.collision import collision_urdf, merged
from robopolicy.sim.description import checked_urdf, panda_urdf
from robopolicy.sim.parameters import PARAMETERS
from robopolicy.sim.scene import BACKGROUND, FIRST_BODY, ROBOT, TABLE, Camera, look_at

IDS = ("robopolicy/Lift-v0", "robopolicy/LiftTwin-v0")
TASKS = ("Lift", "PickPlace", "Stack", "Push", "PegInsert", "Drawer")
ALL_IDS = [f"robopolicy/{task}{suffix}-v0" for task in TASKS for suffix in ("", "Twin")]
EVERYTHING = (
    *("state", "images.front", "images.wrist", "depth.front", "depth.wrist", "segmentation.front", "segmentation.wrist"),
    *("points", "environment_state"),
)


def make(env_id=IDS[0], **kwargs):
    return gymnasium.make(env_id, disable_env_checker=True, **{"observation": ("state",), **kwargs}).unwrapped


def run(env, seed, num_steps=120, expert=None):
    """Observations and rewards of an episode."""
    observation, _ = env.reset(seed=seed)
    expert, trace = expert or env.expert(), [observation]
    while True:
        observation, _, terminated, truncated, info = env.step(expert(env))
        trace.append(observation)
        if terminated or truncated or len(trace) == num_steps:
            return trace, info


def equal(trace_a, trace_b):
    return len(trace_a) == len(trace_b) and all(
        np.array_equal(a[key], b[key]) for a, b in zip(trace_a, trace_b, strict=True) for key in a
    )


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_accepts_it(env_id):
    env = gymnasium.make(env_id, disable_env_checker=True, randomization="wide", image_size=32)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()
    env.close()


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_observations_fit_their_specs(env_id):
    env = make(env_id, observation=EVERYTHING, image_size=48, randomization="wide")
    observation, info = env.reset(seed=3)
    assert set(observation) == set(env.features)
    for key, feature in env.features.items():
        feature.check(key, observation[key])
    assert env.observation_space.contains(observation)
    assert set(info["randomization"]) == {*PARAMETERS, *env.task.parameters}
    assert 0 <= info["progress"] < 1
    assert info["task"] == env.task.name
    assert not any("environment_state" in short for short in env.task.observation)


@pytest.mark.parametrize("env_id", [*IDS, "robopolicy/Drawer-v0", "robopolicy/StackTwin-v0"])
def test_same_seed_same_episode(env_id):
    kwargs = {"observation": ("state", "points", "images.front"), "image_size": 32, "randomization": "wide"}
    env, other = make(env_id, **kwargs), make(env_id, **kwargs)
    first, _ = run(env, seed=5, num_steps=25)
    run(env, seed=6, num_steps=10)
    assert equal(first, run(env, seed=5, num_steps=25)[0]), "after another episode"
    assert equal(first, run(other, seed=5, num_steps=25)[0]), "in another instance"
    assert not equal(first, run(env, seed=6, num_steps=25)[0])


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_restored_state_continues_bit_for_bit(env_id):
    env = make(env_id, observation=("state", "environment_state", "points"), image_size=32, randomization="wide")
    env.reset(seed=2)
    expert = env.expert()
    for _ in range(26):  # into the contact
        env.advance(expert(env))
    token = env.save_state()

    def finish():
        return [env.step(expert(env))[0] for _ in range(8)]

    first = finish()
    env.restore_state(token)
    assert equal(first, finish())


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_experts_succeed_in_the_nominal_world(env_id):
    env = make(env_id)
    outcomes = [run(env, seed, num_steps=200)[1] for seed in range(100, 106)]
    assert all(info["success"] and info["progress"] == 1.0 for info in outcomes)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("randomization", ["wide", "held_out"])
def test_experts_succeed_in_most_randomised_worlds(task, randomization):
    env = make(f"robopolicy/{task}-v0", randomization=randomization)
    assert sum(run(env, seed, num_steps=200)[1]["success"] for seed in range(100, 106)) >= 5


@pytest.mark.parametrize("task", TASKS)
def test_imperfect_experts_often_fail_and_often_do_not(task):
    env = make(f"robopolicy/{task}-v0")
    experts = [env.expert(np.random.default_rng(seed)) for seed in range(16)]
    success = [run(env, seed, 120, expert)[1]["success"] for seed, expert in enumerate(experts)]
    assert 3 <= sum(success) <= 13


@pytest.mark.parametrize("task", TASKS)
def test_progress_rises_with_the_expert_and_dense_reward_is_progress(task):
    env = make(f"robopolicy/{task}-v0", reward="dense")
    env.reset(seed=1)
    expert, progress = env.expert(), []
    while not progress or progress[-1] < 1:
        reward, terminated, _, info = env.advance(expert(env))
        assert reward == info["progress"]
        assert terminated == info["success"] == (reward == 1.0)
        progress.append(reward)
    thirds = [np.mean(part) for part in np.array_split(progress, 3)]
    assert thirds == sorted(thirds)


@pytest.mark.parametrize("task", TASKS)
def test_standing_still_and_flailing_do_not_succeed(task):
    env, rng = make(f"robopolicy/{task}-v0"), np.random.default_rng(0)
    for scale in (0.0, 1.0):
        env.reset(seed=0)
        actions = rng.uniform(env.action_space.low, env.action_space.high, (40, 7)) * scale
        assert not any(env.advance(action)[1] for action in actions)


def test_infeasible_starts_are_drawn_again():
    env = make("robopolicy/PickPlace-v0")
    for seed in range(60):
        env.reset(seed=seed)
        start = env.world.vector("object.x"), env.world.vector("object.y")
        goal = env.world.vector("goal.x"), env.world.vector("goal.y")
        assert np.linalg.norm(np.subtract(start, goal)) > env.task.APART
    env.task.APART = 2.0
    with pytest.raises(ValueError, match="none of 200 initial states"):
        env.reset(seed=0)


@pytest.mark.parametrize("env_id", IDS)
def test_late_commands_and_observations(env_id):
    def first_motion(**nominal):
        env = make(env_id, observation=("state", "depth.front"), image_size=32, nominal={**PROMPT, **nominal})
        before, _ = env.reset(seed=0)
        for step in range(12):
            env.advance([0, 0.04, 0, 0, 0, 0, 1])
            moved = env.T_base_ee[1, 3]
            seen = env.observe()
            if np.abs(seen[spec.STATE] - before[spec.STATE]).max() > 0.01:
                return step, moved, not np.array_equal(seen["observation.depth.front"], before["observation.depth.front"])
        return None

    PROMPT = {"robot.action_delay": 0.0, "sensor.delay": 0.0, "robot.rate": 1.0, "sensor.depth_noise": 0.0}
    PROMPT["sensor.depth_dropout"] = 0.0
    step, moved, image = first_motion()
    assert image
    late_step, _, late_image = first_motion(**{"sensor.delay": 0.15})
    assert late_step == step + 3
    assert late_image
    assert first_motion(**{"robot.action_delay": 0.1})[0] == step + 2
    half = first_motion(**{"robot.action_delay": 0.025})
    assert half[0] in (step, step + 1)
    assert half[0] > step or half[1] < moved


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize(("delay", "rate"), [(0.0, 1.0), (0.01, 1.0), (0.02, 1.0), (0.063, 1.0), (0.02, 0.97)])
def test_what_is_seen_is_as_old_as_the_delay(env_id, delay, rate):
    env = make(env_id, nominal={"sensor.delay": delay, "robot.rate": rate, "robot.rate_jitter": 0.0})
    env.reset(seed=0)
    step = env.engine.time_step
    for _ in range(12):
        env.advance([0, 0.04, 0, 0, 0, 0, 1])
    ages = []
    for _ in range(12):
        env.advance([0, 0.04, 0, 0, 0, 0, 1])
        ages.append(step * (env._clock - env.sensors.moment(env._clock).clock))
    assert np.abs(np.array(ages) - delay).max() <= (0.51 + (rate != 1)) * step


def test_the_real_control_rate_may_differ_and_jitter():
    def clocks(**nominal):
        env = make(nominal=nominal)
        env.reset(seed=0)
        marks = [env._clock]
        for _ in range(30):
            env.advance([0, 0, 0, 0, 0, 0, 1])
            marks.append(env._clock)
        return np.diff(marks)

    assert set(clocks()) == {9}
    assert set(clocks(**{"robot.rate": 0.5})) == {18}
    slow = clocks(**{"robot.rate": 0.97})
    assert set(slow) == {9, 10}, "a period of 9.28 steps"
    assert slow.sum() == round(31 * 9 / 0.97) - 9
    jittered = clocks(**{"robot.rate_jitter": 0.01})
    assert len(set(jittered)) > 2
    assert abs(jittered.mean() - 9) < 1


def test_level_shrinks_the_world_towards_the_nominal():
    env = make(randomization="wide")
    nominal = make().reset(seed=4)[1]["randomization"]
    drawn = {level: env.reset(seed=4, options={"level": level})[1] for level in (0.0, 0.5, 1.0)}
    assert drawn[0.0]["randomization"] == nominal
    assert drawn[1.0]["randomization"] == env.reset(seed=4)[1]["randomization"]
    at = [drawn[level]["randomization"]["camera.fov"] - 48.0 for level in (0.5, 1.0)]
    assert at[0] == pytest.approx(0.5 * at[1])
    assert drawn[0.5]["levels"]["camera.fov"] == 0.5
    for options, message in (({"levl": 1}), "levl"), ({"levels": {"camera.fo": 1}}, "camera.fov"), ({"level": 2}, "from 0"):
        with pytest.raises(ValueError, match=message):
            env.reset(seed=0, options=options)


def test_segmentation_shows_the_bodies_by_their_place_in_the_scene():
    env = make("robopolicy/Drawer-v0", observation=("segmentation.front",), image_size=96)
    picture = env.reset(seed=0)[0]["observation.segmentation.front"]
    assert set(np.unique(picture)) == {BACKGROUND, TABLE, ROBOT, FIRST_BODY, FIRST_BODY + 1}


def test_antialiasing_changes_edges_only():
    env, smooth = make(observation=("images.front",)), make(observation=("images.front",), antialiasing=True)
    a, b = (e.reset(seed=0)[0]["observation.images.front"].astype(int) for e in (env, smooth))
    assert 0.005 < (np.abs(a - b).max(-1) > 12).mean() < 0.25


@pytest.mark.parametrize(("given", "steps"), [({}, 120), ({"max_episode_steps": 9}, 9), ({"max_episode_steps": 130}, 130)])
def test_episodes_end_in_time_whether_observed_or_not(given, steps):
    class Idle:
        wants_observation = False

        def reset(self, seed):
            pass

        def act(self, env, observation):
            return np.array([0, 0, 0, 0, 0, 0, 1], np.float32)

    env = gymnasium.make(IDS[0], disable_env_checker=True, observation=("state",), **given)
    assert play(env, Idle(), 0).row["length"] == steps
    recorded = play(env, Idle(), 0, record=True)
    assert recorded.row["length"] == steps
    assert recorded.arrays[spec.TRUNCATED].tolist() == [False] * (steps - 1) + [True]
    assert not recorded.row["success"]


def test_advance_is_step_without_looking():
    env, other = make(), make()
    env.reset(seed=1)
    other.reset(seed=1)
    action = np.array([0.01, -0.01, -0.02, 0, 0, 0.1, 1], np.float32)
    assert env.step(action)[1:] == other.advance(action)
    assert np.array_equal(env.observe()[spec.STATE], other.observe()[spec.STATE])


def test_action_moves_the_end_effector_by_what_it_says():
    env = make()
    env.reset(seed=0)
    start = env.T_base_ee
    for _ in range(5):
        env.advance([0.01, 0, -0.01, 0, 0, 0, 1])
    for _ in range(5):
        env.advance([0, 0, 0, 0, 0, 0, 1])
    assert np.allclose(env.T_base_ee[:3, 3] - start[:3, 3], [0.05, 0, -0.05], atol=0.004)
    assert np.allclose(env.T_base_ee[:3, :3], start[:3, :3], atol=0.03)


def test_a_sensor_measures_the_same_whatever_others_there_are():
    kwargs = {"randomization": "wide", "image_size": 32}
    few, many = make(observation=("points",), **kwargs), make(observation=EVERYTHING, **kwargs)
    assert np.array_equal(few.reset(seed=3)[0][spec.POINTS], many.reset(seed=3)[0][spec.POINTS])


def test_bad_actions_are_refused():
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.step(np.zeros(6))
    with pytest.raises(ValueError, match="finite"):
        env.step(np.full(7, np.nan))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"observation": ("sate",)}, "did you mean 'state'"),
        ({"randomization": "wid"}, "did you mean 'wide'"),
        ({"randomization": {"object": {"mas": {"uniform": [1, 2]}}}}, "object.mass"),
        ({"randomization": {"object": {"mass": {"unifrm": [1, 2]}}}}, "exactly one of"),
        ({"randomization": {"object": {"mass": {"uniform": ["a", 2]}}}}, "list of numbers"),
        ({"nominal": {"object.mas": 1}}, "object.mass"),
        ({"reward": "shaped"}, "sparse"),
        ({"control_hz": 23}, "whole number of physics steps"),
    ],
)
def test_mistakes_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_kinematics_agree_with_the_simulator():
    env = make()
    env.reset(seed=0)
    c, uid = env.engine._p, env.engine._robot
    T = robot.forward(env.engine.joints()[0])
    for former in (8, 11):  # the URDF's own hand and grasp target frames, in the link that they are part of
        link, T_link_frame = merged()[1][former]
        state = c.getLinkState(uid, link, computeForwardKinematics=1)
        T_frame = pose(np.array(state[4]), np.array(state[5])) @ T_link_frame
        assert np.allclose(T[:3, 2], T_frame[:3, 2], atol=1e-4)
    assert np.allclose(T[:3, 3], T_frame[:3, 3], atol=1e-4)


def test_inverse_kinematics_reaches_its_target():
    rng = np.random.default_rng(0)
    for _ in range(20):
        T = robot.forward(robot.HOME + rng.uniform(-0.3, 0.3, 7))
        q = robot.inverse(robot.HOME, T, iterations=60)
        assert np.allclose(robot.forward(q), T, atol=2e-3)


def test_six_numbers_give_the_rotation_back():
    R = robot.forward(robot.HOME + 0.2)[:3, :3]
    assert np.allclose(matrix_from_6d(np.concatenate([R[:, 0], R[:, 1]])), R)


def test_deprojected_pixels_lie_where_the_camera_sees_them():
    T = look_at(np.array([1.0, 0.2, 0.6]), np.array([0.5, 0.0, 0.0]))
    camera = Camera("front", T, fov_deg=45, width=8, height=8)
    points = deproject(np.full((8, 8), 0.7, np.float32), camera)
    assert np.allclose(points.reshape(-1, 3).mean(0), T[:3, 3] + 0.7 * T[:3, 2], atol=1e-6)


@pytest.mark.parametrize("height", [1.0, -1.0])
def test_a_camera_right_above_or_below_its_target_sees_it_upright(height):
    target = np.array([0.5, 0.0, 0.1])
    pose = look_at(target + [0, 0, height], target)
    assert np.allclose(pose, look_at(target + [-1e-6, 0, height], target), atol=1e-5)
    with pytest.raises(ValueError, match="its own position"):
        look_at(target, target)


def test_table_is_found_under_tilt_and_clutter():
    rng = np.random.default_rng(0)
    xy = rng.uniform(-0.2, 0.2, (3000, 2))
    table = np.column_stack([xy, 0.02 + 0.05 * xy[:, 0] - 0.03 * xy[:, 1] + rng.normal(0, 0.001, 3000)])
    box = table[:200] + [0, 0, 0.04]
    height = height_over_table(np.concatenate([table, box]))
    assert np.abs(height[:3000]).max() < 0.006
    assert np.allclose(height[3000:], 0.04, atol=0.006)


def test_cloud_shows_the_object_and_not_the_robot():
    env = make(observation=("points", "environment_state"))
    observation, _ = env.reset(seed=4)
    cloud = observation[spec.POINTS]
    centre = observation[spec.ENVIRONMENT_STATE][:3]
    assert np.linalg.norm(cloud - centre, axis=1).max() < 0.05


def test_package_registers_ids_without_torch():
    import subprocess
    import sys

    code = "import sys, robopolicy, gymnasium; gymnasium.spec('robopolicy/Lift-v0'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert callable(robopolicy.expert)


def test_settings_are_checked_without_a_simulator():
    import subprocess
    import sys

    code = """
import sys, robopolicy
from robopolicy.sim.env import check_settings
check_settings("robopolicy/DrawerTwin-v0", {"randomization": "wide"})
try:
    check_settings("robopolicy/Lift-v0", {"randomization": {"object": {"mas": {"uniform": [1, 2]}}}})
except ValueError as error:
    assert "object.mass" in str(error)
else:
    raise AssertionError
assert not {"pybullet", "mujoco"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_robot_description_that_is_not_whole_is_named(tmp_path):
    folder = tmp_path / "franka_panda"
    shutil.copytree(panda_urdf().parent, folder)
    (folder / "meshes" / "collision" / "link3.obj").unlink()
    with pytest.raises(FileNotFoundError, match=r"link3\.obj, which is missing: reinstall"):
        checked_urdf(folder / "panda.urdf")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.urdf is missing"):
        checked_urdf(folder / "nowhere.urdf")


def test_collision_meshes_are_the_hulls_of_the_originals():
    folder = Path(collision_urdf()).parent
    for original in (panda_urdf().parent / "meshes" / "collision").glob("*.obj"):
        volumes = []
        for path in (original, folder / original.name):
            rows = [line.split()[1:4] for line in path.read_text().splitlines() if line.startswith("v ")]
            volumes.append(ConvexHull(np.array(rows, float)).volume)
        assert volumes[0] == pytest.approx(volumes[1], rel=1e-6), original.name
