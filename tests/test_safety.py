"""Nothing that a policy says makes a command beyond the limits, and what is within them passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robopolicy.deploy.limits import SafetyLimits
from robopolicy.deploy.safety import SafetyFilter, limit_velocity, make_bounds

HZ = 20.0
BOX = {"workspace_low": (0.3, -0.4, 0.0), "workspace_high": (0.7, 0.4, 0.5)}
PLAIN = SafetyLimits(**BOX)
SMOOTH = {"max_acceleration": 2.0, "max_jerk": 20.0, "max_rotation_acceleration": 10.0, "max_rotation_jerk": 100.0}
FULL = SafetyLimits(**BOX, **SMOOTH, max_absolute_speed=(2.0,), max_absolute_acceleration=(10.0,), max_absolute_jerk=(100.0,))
MIDDLE = np.array([0.5, 0.0, 0.2])

floats = st.floats(-(2.0**99), 2.0**99, width=32)
anything = st.one_of(floats, st.floats(-0.0625, 0.0625, width=32), st.floats(width=32))
positions = hnp.arrays(np.float32, 3, elements=st.floats(-1, 1.5, width=32))


def make_filter(limits=PLAIN, control_hz=HZ, policy_hz=HZ):
    return SafetyFilter(limits, control_hz=control_hz, policy_hz=policy_hz)


def random_actions(rng, count):
    """Actions [count, 7] of every size, some of them huge, some not finite."""
    actions = rng.normal(size=(count, 7)) * 10.0 ** rng.uniform(-4, 4, (count, 1))
    bad = rng.random(count) < 0.05
    actions[bad, rng.integers(0, 7, bad.sum())] = rng.choice([np.nan, np.inf, -np.inf, 1e308], bad.sum())
    return actions


@given(action=hnp.arrays(np.float32, 7, elements=anything), position=positions)
@settings(max_examples=100, deadline=None)
def test_any_action_at_any_place_becomes_one_within_every_limit(action, position):
    guard = make_filter()
    guard(np.array([0, 0, 0, 0, 0, 0, 0.25]), MIDDLE)
    safe, flags = guard(action, position)
    assert np.isfinite(safe).all()
    assert np.linalg.norm(safe[:3]) <= PLAIN.max_translation_per_step
    assert np.linalg.norm(safe[3:6]) <= PLAIN.max_rotation_per_step
    assert 0 <= safe[6] <= 1
    low, high = np.array(PLAIN.workspace_low), np.array(PLAIN.workspace_high)
    target = position + safe[:3]
    outside = np.maximum(low - position, position - high).clip(0)
    assert (np.maximum(low - target, target - high) <= outside + 1e-6).all()  # never further out than it is
    if np.isfinite(action).all():
        kept = (safe[:6] == 0) | (np.sign(safe[:6]) == np.sign(action[:6]))
        assert kept.all()  # shortened, never reversed
    else:
        assert flags == ("not_finite",)
        assert safe.tolist() == [0, 0, 0, 0, 0, 0, 0.25]


@given(
    direction=hnp.arrays(np.float32, 7, elements=st.floats(-1, 1, width=32)),
    position=hnp.arrays(np.float32, 3, elements=st.floats(0, 1, width=32)),
)
@settings(max_examples=50, deadline=None)
def test_actions_inside_the_limits_pass_unchanged(direction, position):
    low, high = np.array(PLAIN.workspace_low) + 0.02, np.array(PLAIN.workspace_high) - 0.02
    action = direction * np.array([0.011] * 3 + [0.05] * 3 + [1.0])
    action[6] = abs(action[6])
    safe, flags = make_filter()(action, low + position * (high - low))
    np.testing.assert_allclose(safe, action, rtol=1e-12, atol=1e-15)
    assert flags == ()


def test_limits_act_on_the_vector_not_on_its_entries():
    safe, flags = make_filter()(np.array([0.04, 0.03, 0.0, 0.0, 0.6, 0.8, 0.5]), MIDDLE)
    np.testing.assert_allclose(safe, [0.016, 0.012, 0, 0, 0.06, 0.08, 0.5], rtol=1e-5)
    assert flags == ("translation", "rotation")


def test_at_the_wall_the_arm_slides_and_outside_it_only_comes_back():
    action = np.array([0.01, 0.01, 0, 0, 0, 0, 0.5])
    at_wall, flags = make_filter()(action, np.array([0.7, 0, 0.2]))
    np.testing.assert_allclose(at_wall[:3], [0, 0.01, 0], atol=1e-7)
    assert flags == ("workspace",)
    back, flags = make_filter()(-action, np.array([0.9, 0, 0.2]))
    np.testing.assert_allclose(back[:3], [-0.01, -0.01, 0], atol=1e-7)
    assert flags == ("bounds",)  # the gripper's -0.5
    for unknown in (None, np.full(3, np.nan), np.zeros(2)):
        blind, flags = make_filter()(action, unknown)
        assert blind[:3].tolist() == [0, 0, 0]
        assert flags == ("no_position",)


@pytest.mark.parametrize("control_hz", [20.0, 100.0])
def test_in_closed_loop_speed_acceleration_jerk_and_walls_hold_together(control_hz):
    """The robot goes where it is told; whatever the policy says, also at the walls and while it is told to hold."""
    rng, dt = np.random.default_rng(0), 1 / control_hz
    guard, position = make_filter(FULL, control_hz), MIDDLE.copy()
    commands, places = [guard(np.array([0, 0, 0, 0, 0, 0, 0.5]), position, np.array([0.5]))[0]], [position]
    for n, action in enumerate(random_actions(rng, 120)):
        for _ in range(int(rng.integers(1, 6))):
            command = guard.brake(position) if n % 7 == 0 else guard(action, position, np.array([0.5]))[0]
            position = position + command[:3]
            commands.append(command)
            places.append(position)
    commands, places = np.array(commands), np.array(places)
    assert np.isfinite(commands).all()
    assert (places >= np.array(FULL.workspace_low) - 1e-8).all()
    assert (places <= np.array(FULL.workspace_high) + 1e-8).all()
    gripper = np.diff(commands[:, 6], prepend=0.5)[:, None] / dt
    speeds = {"translation": commands[:, :3] / dt, "rotation": commands[:, 3:6] / dt, "gripper": gripper}
    most = {
        "translation": (0.02 * HZ, FULL.max_acceleration, FULL.max_jerk),
        "rotation": (0.1 * HZ, FULL.max_rotation_acceleration, FULL.max_rotation_jerk),
        "gripper": (2.0, 10.0, 100.0),
    }
    for part, velocity in speeds.items():
        acceleration = np.diff(velocity, axis=0, prepend=0) / dt
        jerk = np.diff(acceleration, axis=0, prepend=0) / dt
        for value, limit in zip((velocity, acceleration, jerk), most[part], strict=True):
            reached = np.linalg.norm(value, axis=1).max() / limit
            assert reached <= 1 + 1e-7, part
            assert reached > 0.5, part  # and the limits are used


@pytest.mark.parametrize(
    ("speed", "acceleration", "jerk", "dt", "size"),
    [
        (0.4, 2.0, 20.0, 0.05, 3),
        (0.4, 2.0, 5.0, 0.05, 3),
        (0.4, 20.0, 30.0, 0.05, 3),
        (0.4, 2.0, None, 0.05, 3),
        (1.0, 5.0, 30.0, 0.02, 1),
    ],
)
def test_of_many_random_motions_none_exceeds_a_limit(speed, acceleration, jerk, dt, size):
    rng, many, wall = np.random.default_rng(1), 200, 0.2
    shape = (many, size)
    bounds = make_bounds(speed, acceleration, jerk, -wall, wall, shape)
    velocity, push, position = np.zeros(shape), np.zeros(shape), rng.uniform(-wall, wall, shape)
    for _ in range(50):
        wanted = rng.normal(size=shape) * 10.0 ** rng.uniform(-2, 3, (many, 1))
        new = limit_velocity(wanted, velocity, push, position, bounds, dt).velocity
        change = (new - velocity) / dt
        assert np.linalg.norm(new, axis=1).max() <= speed
        assert np.linalg.norm(change, axis=1).max() <= acceleration
        assert jerk is None or np.linalg.norm(change - push, axis=1).max() / dt <= jerk
        velocity, push, position = new, change, position + new * dt
        assert np.abs(position).max() <= wall + 1e-8


def test_braking_comes_to_a_standstill_and_stays_there():
    guard, position = make_filter(FULL), MIDDLE.copy()
    fast = np.array([0.02, 0, 0, 0.1, 0, 0, 1.0])
    for _ in range(20):
        position = position + guard(fast, MIDDLE, np.array([0.0]))[0][:3]
    moved = [guard.brake(MIDDLE) for _ in range(40)]
    assert np.linalg.norm(moved[0][:3]) > 0.005  # no jump
    assert np.abs(np.array(moved[-10:])[:, :6]).max() == 0
    assert len({command[6] for command in moved[-10:]}) == 1


def test_an_emergency_stop_is_a_standstill_at_once():
    guard = make_filter(FULL)
    for _ in range(20):
        guard(np.array([0.02, 0, 0, 0, 0, 0, 1.0]), MIDDLE, np.array([0.0]))
    assert guard.halt()[:6].tolist() == [0] * 6


def test_joint_targets_start_where_the_joints_are_and_respect_their_limits():
    limits = SafetyLimits(
        translation=(),
        rotation=(),
        absolute=(0, 1),
        low=(-2.0, -1.0),
        high=(2.0, 1.0),
        max_absolute_speed=(1.0, 0.5),
        max_absolute_acceleration=(4.0, 4.0),
        joint_low=(-2.1, -1.1),
        joint_high=(2.1, 1.1),
    )
    guard, measured = make_filter(limits), np.array([0.5, -0.5])
    assert guard.refuses(np.zeros(2), None) == "joint_limits"
    _, flags = guard(np.zeros(2), None, np.array([3.0, 0.0]))
    assert flags == ("joint_limits",)
    path = [guard(np.array([5.0, 5.0]), None, measured)[0] for _ in range(150)]
    assert np.abs(path[0] - measured).max() <= 0.05  # no jump from where it is
    assert path[-1] == pytest.approx([2.0, 1.0], abs=1e-5)
    assert np.max(path, axis=0) == pytest.approx([2.0, 1.0], abs=1e-5)
    speeds = np.diff(path, axis=0) * HZ
    assert (np.abs(speeds).max(axis=0) <= [1.0, 0.5]).all()
    assert (np.abs(np.diff(speeds, axis=0)).max(axis=0) * HZ <= 4.0).all()
    fresh = make_filter(
        SafetyLimits(translation=(), rotation=(), absolute=(0, 1), low=None, high=None, max_absolute_speed=(1, 1))
    )
    assert fresh(np.zeros(2))[1] == ("no_joints",)
    first, _ = fresh(np.array([2.0, 0.7]), None, np.array([0.5]))  # the second, a gripper say, is not measured
    assert first == pytest.approx([0.5 + 1 / HZ, 0.7])


def test_an_action_of_the_wrong_shape_brakes():
    guard = make_filter(SafetyLimits())
    guard(np.array([0.01, 0, 0, 0, 0, 0, 0.25]))
    safe, flags = guard(np.zeros(6))
    assert safe.tolist() == [0, 0, 0, 0, 0, 0, 0.25]
    assert flags == ("shape",)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_translation_per_step": 0.0},
        {"max_rotation_per_step": float("nan")},
        {"max_acceleration": -1.0},
        {"max_jerk": 1.0},
        {"max_absolute_acceleration": (1.0,)},
        {"max_absolute_speed": (0.0,)},
        {"workspace_low": (0, 0, 0)},
        {"workspace_low": (0, 0, 1), "workspace_high": (1, 1, 1)},
        {"low": (0.0, 0.0), "high": (1.0, 1.0)},
        {"joint_low": (0.0,), "joint_high": (1.0, 1.0)},
        {"translation": (0, 1, 1)},
    ],
)
def test_limits_that_limit_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SafetyLimits(**wrong)
