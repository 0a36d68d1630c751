"""A picture of one decision of a steered policy: where each candidate would take the hand, and what the critic makes of it."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np

from robopolicy.data.collect import environment, robot_env
from robopolicy.evaluation.film import look
from robopolicy.evaluation.rollout import Arm, PolicyActor, Suite, arm_policy, observing
from robopolicy.files import atomic_write
from robopolicy.policies.steering import Decision, SteeredPolicy
from robopolicy.sim import world
from robopolicy.sim.scene import Camera
from robopolicy.spec import Array, SpecError, did_you_mean

SIZE = 480  # px of the camera's picture
TRANSLATION = ("dx", "dy", "dz")  # entries of an action that move the hand, m in the base frame


def pixels(camera: Camera, points: Array) -> Array:
    """Pixels (column, row) [n, 2] at which a camera sees points [n, 3] (m, base frame)."""
    T = np.linalg.inv(camera.T_base_cam)
    seen = points @ T[:3, :3].T + T[:3, 3]
    centre = np.array([camera.center[0] * camera.width, camera.center[1] * camera.height])
    return seen[:, :2] / seen[:, 2:] * float(camera.focal) + centre


def paths(chunks: Array, names: tuple[str, ...], start: Array) -> Array:
    """Positions [N, h + 1, 3] of the hand if every command of chunks [N, h, A] is carried out at once, from `start` [3]."""
    missing = [name for name in TRANSLATION if name not in names]
    if missing:
        raise SpecError(f"the actions have no entry {missing[0]!r}: their path is not known; {did_you_mean(missing[0], names)}")
    moves = chunks[:, :, [names.index(name) for name in TRANSLATION]]
    return start + np.concatenate([np.zeros((len(chunks), 1, 3)), moves.cumsum(1)], 1)


def decision_at(arm: Arm, suite: Suite, seed: int, number: int) -> tuple[Decision, Array, Camera, Array]:
    """Decision `number` of the arm's episode `seed`, with the picture uint8 [S, S, 3], the camera and the hand's position.

    Raises:
        ValueError: the arm is not steered, or the episode has fewer decisions.
    """
    policy = arm_policy(arm)
    if not isinstance(policy, SteeredPolicy):
        raise ValueError(f"{arm.name} is not steered: give steer.critic=RUN")
    actor = PolicyActor(policy, arm.instruction)
    env = environment(suite.env_id, observing(suite.env_kwargs, policy))
    robot, limit = robot_env(env), env.spec.max_episode_steps if env.spec else None
    actor.reset(seed)
    observation, _ = env.reset(seed=seed)
    done, step, found = False, 0, 0
    while not done and (limit is None or step < limit):
        if step and actor.wants_observation:
            observation = robot.observe()
        if actor.executor.see(actor.told(env, observation)):
            batched, number_seed = actor.executor.question()
            if found == number:
                camera = world.camera("front", robot.world, robot.T_base_ee, SIZE)
                return policy.decide(batched, number_seed), look(env, "front", SIZE).rgb, camera, robot.T_base_ee[:3, 3]
            found += 1
            actor.executor.give(policy.sample(batched, 1, number_seed)[0, 0, : actor.executor.execute_horizon])
        action = np.clip(actor.executor.next(), env.action_space.low, env.action_space.high)  # type: ignore[attr-defined]
        _, terminated, truncated, _ = robot.advance(action)
        done, step = terminated or truncated, step + 1
    raise ValueError(f"picture.decision={number}: the episode has {found} decisions, numbered from 0")


def draw_decision(arm: Arm, suite: Suite, seed: int, number: int, file: str | Path) -> Path:
    """Write decision `number` of the arm's episode `seed` as PNG; the file."""
    from matplotlib.figure import Figure

    decision, picture, camera, hand = decision_at(arm, suite, seed, number)
    policy = arm_policy(arm)
    horizon, chosen = policy.spec.execute_horizon, int(decision.index[0])
    tracks = paths(decision.candidates[0, :, :horizon], policy.spec.action.names, hand)
    mean, spread = decision.scores[:, 0].mean(0), decision.scores[:, 0].std(0)
    scale = mpl.colors.Normalize(mean.min(), max(mean.max(), mean.min() + 1e-6))
    colours = mpl.colormaps["viridis"](scale(mean))
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    left.imshow(picture)
    for n in np.argsort(mean):
        where = pixels(camera, tracks[n])
        left.plot(*where.T, color=colours[n], lw=1.6, ls="-" if decision.allowed[0, n] else ":", zorder=2)
    for n, colour in ((0, "white"), (chosen, "red")):
        where = pixels(camera, tracks[n])
        left.plot(*where.T, color=colour, lw=2.6, zorder=3)
        left.plot(*where[-1], "o", color=colour, ms=6, zorder=4)
    around = np.concatenate([pixels(camera, track) for track in tracks])
    middle, reach = around.mean(0), max(120.0, 1.6 * np.abs(around - around.mean(0)).max())
    left.set(xlim=(max(0, middle[0] - reach), min(SIZE, middle[0] + reach)))
    left.set(ylim=(min(SIZE, middle[1] + reach), max(0, middle[1] - reach)), xticks=[], yticks=[])
    left.set_title(f"seed {seed}, decision {number}: paths of the hand")
    order = np.argsort(-mean)
    marks = ["red" if n == chosen else "dimgray" if n == 0 else colours[n] for n in order]
    right.barh(range(len(order)), mean[order], xerr=spread[order], color=marks, error_kw={"ecolor": "0.4", "lw": 1})
    labels = [f"{n}{' vetoed' if not decision.allowed[0, n] else ''}" for n in order]
    right.set_yticks(range(len(order)), labels)
    right.invert_yaxis()
    right.set(xlabel="value (mean over heads, bar: standard deviation)", ylabel="candidate")
    right.set_title(f"red: chosen ({chosen}), grey and white: the policy's own (0)")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, buffer.getvalue())
    return file
