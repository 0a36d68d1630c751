"""Is a grasp stable at the chosen physics step? Scripted lifts, then a hold that is shaken as hard as actions allow."""

from __future__ import annotations

from typing import Any

import numpy as np

LIFT_STEPS = 120  # at most
HOLD_STEPS = 60  # 3 s at 20 Hz
SETTLE_STEPS = 5  # before the first measurement
AMPLITUDES = {  # m and rad: half of the commanded sway along and about each axis
    "still": np.zeros(6),
    "translated": np.array([0.03, 0.03, 0.03, 0.0, 0.0, 0.0]),
    "translated and turned": np.array([0.03, 0.03, 0.03, 0.12, 0.12, 0.12]),
}
TURNS_PER_STEP = np.array([0.191, 0.191, 0.13, 0.11, 0.17, 0.15])  # of the sways; 0.191 is 3.8 Hz


def shaken_lifts(lifts: int, seed: int, shake: str, nominal: dict[str, Any] | None = None) -> dict[str, Any]:
    """How many of `lifts` scripted Lift episodes succeed and keep their object, and how far it slips (mm).

    shake: one of AMPLITUDES. nominal: overrides of the nominal world.

    Slip: the greatest distance of the object's centre, in the gripper's frame, from where it was when shaking began. An
    object counts as held when at the end both fingers touch it and it slipped less than 10 mm.
    """
    import gymnasium

    import robopolicy
    from robopolicy.geometry import pose

    env = gymnasium.make("robopolicy/Lift-v0", observation=("state",), randomization="none", nominal=nominal or {}).unwrapped
    expert = robopolicy.expert(env)

    def in_gripper() -> np.ndarray:
        return (np.linalg.inv(env.T_base_ee) @ pose(*env.engine.pose("object")))[:3, 3]

    lifted, held, slips, speeds = 0, 0, [], []
    for episode in range(lifts):
        env.reset(seed=seed + episode)
        success = any(env.advance(expert(env))[1] for _ in range(LIFT_STEPS))
        if not success:
            continue
        lifted += 1
        still = np.array([0, 0, 0, 0, 0, 0, 0], np.float32)
        for _ in range(SETTLE_STEPS):
            env.advance(still)
        start, slip, before = in_gripper(), 0.0, np.zeros(6)
        phase = np.random.default_rng(seed + episode).uniform(0, 2 * np.pi, 6)
        origin = np.sin(phase)
        for step in range(1, HOLD_STEPS + 1):
            sway = AMPLITUDES[shake] * (np.sin(2 * np.pi * TURNS_PER_STEP * step + phase) - origin)
            env.advance(np.array([*(sway - before), 0.0], np.float32))
            before = sway
            slip = max(slip, float(np.linalg.norm(in_gripper() - start)))
            speeds.append(float(np.linalg.norm(env.engine.velocity("object"))))
        held += bool((env.engine.grip_forces() > 0.1).all() and slip < 0.01)
        slips.append(1e3 * slip)
    return {
        "lifts": lifts,
        "lifted": lifted / lifts,
        "held": held / lifts,
        "slip_mm_median": float(np.median(slips)),
        "slip_mm_p95": float(np.percentile(slips, 95)),
        "slip_mm_max": float(np.max(slips)),
        "object_speed_p95": float(np.percentile(speeds, 95)),
        "physics_step_ms": 1e3 * env.engine.time_step,
    }
