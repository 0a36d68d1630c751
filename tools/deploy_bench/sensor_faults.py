"""Faults of sensors and outputs, in a time of the robot's own. Each gives what happened and what had to be true of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy_bench.robot import Messages, Robot
from deploy_bench.toy import Toward
from robopolicy.deploy.runtime import RUN, STOPPED
from robopolicy.deploy.safety import limit_velocity, make_bounds

Outcome = tuple[dict[str, Any], dict[str, bool]]

AGE_S, STOP_S = 0.25, 1.0  # max_age_s, stop_after_s of these robots
CONFIGURATIONS = [  # speed, acceleration, jerk, step (s), entries
    (0.4, 2.0, 20.0, 0.05, 3),
    (0.4, 4.0, 80.0, 0.05, 3),
    (0.4, 4.0, None, 0.02, 3),
    (0.4, None, None, 0.05, 3),
    (2.0, 20.0, 400.0, 0.05, 3),
    (1.0, 5.0, 30.0, 0.05, 1),
]


def sensor_robot(**settings: Any) -> Robot:
    """A robot in a time of its own, far enough from its goal to be on its way when the fault comes."""
    policy = Toward(goal=(0.65, -0.35, 0.45))
    return Robot(policy, lead_steps=1, max_age_s=AGE_S, stop_after_s=STOP_S, **settings)


def held_then_stopped(robot: Robot, fault_s: float, age_s: float = AGE_S) -> Outcome:
    """What every loss of a sensor must come to."""
    found = robot.summary(fault_s)
    braking_m = 0.05
    return found, {
        "held in time": found["hold_after_s"] is not None and found["hold_after_s"] <= age_s + 0.051,
        "stopped in time": found["stop_after_s"] is not None and found["stop_after_s"] <= age_s + STOP_S + 0.15,
        "moved no further than old data and braking allow": found["moved_after_fault_m"] <= 0.4 * age_s + braking_m,
        "at a standstill in the end": not robot.log.commands[-1].action[:6].any(),
        "nothing beyond limits": found["beyond_limits"] == 0,
    }


def camera_stops(quick: bool, seed: int) -> Outcome:
    """The camera goes silent while the arm moves."""

    def fault(elapsed: float, now: float, messages: Messages) -> tuple[float, Messages]:
        return now, [m for m in messages if m[0] != "camera" or elapsed < 0.3]

    return held_then_stopped(sensor_robot().run(3.0, fault), 0.3)


def frames_out_of_order(quick: bool, seed: int) -> Outcome:
    """Every second pair of pictures is swapped, and every fifth picture comes twice."""
    kept: Messages = []
    count = 0

    def fault(elapsed: float, now: float, messages: Messages) -> tuple[float, Messages]:
        nonlocal count
        count += 1
        camera, rest = [m for m in messages if m[0] == "camera"], [m for m in messages if m[0] != "camera"]
        if count % 4 == 1:
            kept[:] = camera
            return now, rest
        swapped = [*camera, *kept]
        kept.clear()
        return now, [*swapped, *(camera if count % 5 == 0 else []), *rest]

    robot = sensor_robot(tolerance_s=0.06).run(4.0, fault)
    found = robot.summary(0.0)
    refused = robot.controller.counters.get("refused:camera:out_of_order", 0)
    return {**found, "refused": refused}, {
        "old frames refused": refused > 20,
        "went on": found["states"].get(RUN, 0) > 0.9 * len(robot.log.commands) and found["stop_after_s"] is None,
        "nothing beyond limits": found["beyond_limits"] == 0,
    }


def nan_joints(quick: bool, seed: int) -> Outcome:
    """The measured state becomes NaN, then infinite."""

    def fault(elapsed: float, now: float, messages: Messages) -> tuple[float, Messages]:
        bad = np.nan if elapsed < 0.8 else np.inf
        if elapsed < 0.3:
            return now, messages
        return now, [(s, stamp, np.full_like(v, bad) if s == "ee" else v) for s, stamp, v in messages]

    robot = sensor_robot().run(3.0, fault)
    found, must = held_then_stopped(robot, 0.3)
    refused = robot.controller.counters.get("refused:ee:not_finite", 0)
    return {**found, "refused": refused}, {**must, "every one refused": refused == round(2.7 * 20)}


def clock_jumps_back(quick: bool, seed: int) -> Outcome:
    """The clock goes back by 50 s (a bag that loops, a simulation that starts again), stamps with it."""

    def fault(elapsed: float, now: float, messages: Messages) -> tuple[float, Messages]:
        jump = 50.0 if elapsed >= 0.5 else 0.0
        return now - jump, [(stream, stamp - jump, value) for stream, stamp, value in messages]

    robot = sensor_robot().run(6.0, fault)
    found = robot.summary(0.5)
    return found, {
        "held at once": found["hold_after_s"] is not None and found["hold_after_s"] < 0.06,
        "said so": "clock_jumped_back" in found["reasons"],
        "went on with new data": robot.log.commands[-1].state == RUN,
        "arrived": float(np.abs(robot.position - robot.policy.goal).max()) < 5e-3,
        "nothing beyond limits": found["beyond_limits"] == 0,
    }


def stamps_go_wrong(quick: bool, seed: int) -> Outcome:
    """The camera's clock jumps 10 s ahead, alone."""

    def fault(elapsed: float, now: float, messages: Messages) -> tuple[float, Messages]:
        ahead = 10.0 if elapsed >= 0.3 else 0.0
        return now, [(s, stamp + (ahead if s == "camera" else 0.0), v) for s, stamp, v in messages]

    return held_then_stopped(sensor_robot().run(3.0, fault), 0.3)


def late_camera(quick: bool, seed: int) -> Outcome:
    """The camera gives 10 pictures a second, each 100 ms old, and the policy wants through the floor."""

    def fault(elapsed: float, now: float, messages: Messages) -> tuple[float, Messages]:
        shown = round(elapsed * 20) % 2 == 0
        return now, [(s, t - 0.1 if s == "camera" else t, v) for s, t, v in messages if s != "camera" or shown]

    robot = Robot(Toward(goal=(0.65, -0.35, -5.0)), lead_steps=1, max_age_s=AGE_S, stop_after_s=STOP_S).run(3.0, fault)
    found = {**robot.summary(0.0), "lowest_m": min(float(place[2]) for place in robot.log.places)}
    return found, {
        "stopped by the floor": abs(found["lowest_m"]) < 1e-3,
        "nothing beyond limits": found["beyond_limits"] == 0,
    }


def emergency_stop(quick: bool, seed: int) -> Outcome:
    """Pressed at full speed, released, resumed only when somebody says so."""
    robot = sensor_robot().run(0.5)
    speed = float(np.linalg.norm(robot.log.commands[-1].action[:3]) * 20)
    robot.controller.estop(True)
    pressed = robot.log.times[-1] + 0.01
    robot.run(1.0)
    refused = not robot.controller.resume()
    robot.controller.estop(False)
    robot.run(1.0)
    latched = robot.log.commands[-1].state == STOPPED
    found = robot.summary(pressed)
    resumed = robot.controller.resume()
    robot.run(4.0)
    return {**found, "speed_before": speed}, {
        "was fast": speed > 0.1,
        "a standstill at the next command": found["moved_after_fault_m"] == 0,
        "latched": refused and latched,
        "goes on when resumed": resumed and robot.log.commands[-1].state == RUN,
    }


def actions_beyond_limits(quick: bool, seed: int) -> Outcome:
    """Random policy outputs of every size through the limits, and, NaN among them, through the whole pipeline."""
    rng, total = np.random.default_rng(seed), 100_000 if quick else 1_000_000
    many, broken, count, wall = 2000, 0, 0, 0.2
    steps = -(-total // (many * len(CONFIGURATIONS)))
    for speed, acceleration, jerk, dt, size in CONFIGURATIONS:
        shape = (many, size)
        bounds = make_bounds(speed, acceleration, jerk, -wall, wall, shape)
        velocity, push, place = np.zeros(shape), np.zeros(shape), rng.uniform(-wall, wall, shape)
        for _ in range(steps):
            wanted = rng.normal(size=shape) * 10.0 ** rng.uniform(-3, 6, (many, 1))
            new = limit_velocity(wanted, velocity, push, place, bounds, dt).velocity
            change = (new - velocity) / dt
            place = place + new * dt
            bad = ~np.isfinite(new).all(axis=1) | (np.linalg.norm(new, axis=1) > speed)
            bad |= np.linalg.norm(change, axis=1) > (acceleration or np.inf)
            bad |= np.linalg.norm(change - push, axis=1) / dt > (jerk or np.inf)
            bad |= (np.abs(place) > wall + 1e-7).any(axis=1)
            broken, count = broken + int(bad.sum()), count + many
            velocity, push = new, change
    robots = [wild_robot(seed + n) for n in range(2 if quick else 6)]
    found = {"random_outputs": count, "beyond_limits": broken, "pipeline_commands": sum(len(r.log.commands) for r in robots)}
    found["pipeline_beyond_limits"] = sum(robot.beyond for robot in robots)
    return found, {
        "nothing beyond limits": broken == 0,
        "nothing through the whole pipeline": found["pipeline_beyond_limits"] == 0,
        "it moved": all(robot.log.moved_m(0.0) > 0.1 for robot in robots),
    }


def wild_robot(seed: int) -> Robot:
    """Driven by noise of every size, NaN included, in one of the scheduler's modes."""
    rng = np.random.default_rng(seed)

    class Wild(Toward):
        def sample(self, observation: Any, num_samples: int = 1, seed: int | None = None) -> np.ndarray:
            chunks = rng.normal(size=(1, num_samples, 16, 7)) * 10.0 ** rng.uniform(-4, 3)
            if rng.random() < 0.1:
                chunks[0, 0, rng.integers(16), rng.integers(7)] = rng.choice([np.nan, np.inf, 1e300])
            return chunks

    mode = ("replace", "ensemble", "real_time")[seed % 3]
    return Robot(Wild(), lead_steps=1, stop_after_s=None, mode=mode, num_candidates=2, control_hz=(20.0, 60.0)[seed % 2]).run(
        20.0
    )
