"""Properties of the environments, in both simulators."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import robopolicy
from robopolicy import spec
from robopolicy.data.collect import play
from robopolicy.geometry import matrix_from_6d
from robopolicy.sim import robot
from robopolicy.sim.camera import deproject, height_over_table
from robopolicy.sim.experts import LiftExpert
from robopolicy.sim.scene import Camera, look_at
from robopolicy.sim.world import PARAMETERS

IDS = ("robopolicy/Lift-v0", "robopolicy/LiftTwin-v0")
EVERYTHING = ("state", "images.front", "images.wrist", "depth.front", "points", "environment_state")


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


@pytest.mark.parametrize("env_id", IDS)
def test_observations_fit_their_specs(env_id):
    env = make(env_id, observation=EVERYTHING, image_size=48, randomization="wide")
    observation, info = env.reset(seed=3)
    assert set(observation) == set(env.features)
    for key, feature in env.features.items():
        feature.check(key, observation[key])
    assert env.observation_space.contains(observation)
    assert set(info["randomization"]) >= set(PARAMETERS)
    assert 0 <= info["progress"] <= 1
    assert info["task"] == "lift"


@pytest.mark.parametrize("env_id", IDS)
def test_same_seed_same_episode(env_id):
    kwargs = {"observation": ("state", "points", "images.front"), "image_size": 32, "randomization": "wide"}
    env, other = make(env_id, **kwargs), make(env_id, **kwargs)
    first, _ = run(env, seed=5, num_steps=25)
    run(env, seed=6, num_steps=10)
    assert equal(first, run(env, seed=5, num_steps=25)[0]), "after another episode"
    assert equal(first, run(other, seed=5, num_steps=25)[0]), "in another instance"
    assert not equal(first, run(env, seed=6, num_steps=25)[0])


@pytest.mark.parametrize("env_id", IDS)
def test_restored_state_continues_bit_for_bit(env_id):
    env = make(env_id, observation=("state", "environment_state", "points"), image_size=32, randomization="wide")
    env.reset(seed=2)
    expert = env.expert()
    for _ in range(26):  # into the grasp
        env.advance(expert(env))
    token = env.save_state()

    def finish():
        return [env.step(expert(env))[0] for _ in range(8)]

    first = finish()
    env.restore_state(token)
    assert equal(first, finish())


@pytest.mark.parametrize(
    ("env_id", "randomization"), [(IDS[0], "none"), (IDS[0], "wide"), (IDS[0], "held_out"), (IDS[1], "none")]
)
def test_expert_lifts(env_id, randomization):
    env = make(env_id, randomization=randomization)
    outcomes = [run(env, seed)[1] for seed in range(8)]
    assert sum(info["success"] for info in outcomes) >= 7
    assert all(info["progress"] == 1.0 for info in outcomes if info["success"])


def test_imperfect_experts_fail_about_half_of_the_time():
    env, rng = make(), np.random.default_rng(0)
    success = [run(env, seed, expert=LiftExpert.imperfect(rng))[1]["success"] for seed in range(16)]
    assert 3 <= sum(success) <= 13


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
    hand = c.getLinkState(uid, 11, computeForwardKinematics=1)  # the URDF's own grasp target frame
    T = robot.forward(env.engine.joints()[0])
    assert np.allclose(T[:3, 3], hand[4], atol=1e-4)


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
