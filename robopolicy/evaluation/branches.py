"""Branching a simulator: from a state of an episode try each of several chunks, then follow the base policy to the end.

A restored state continues bit for bit (tests/test_sim.py), so what differs between branches is the chunk. The twin restores
at once. Bullet replays the episode up to the state, a millisecond a control step: little beside the continuations, which
render; so branch in the world in which the critic will be used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from robopolicy.data.branches import NEVER, Branches, concatenate, is_branches
from robopolicy.data.collect import environment, robot_env
from robopolicy.evaluation.rollout import Arm, PolicyActor, Suite, arm_policy, env_task, observing
from robopolicy.executor import Executor, map_units
from robopolicy.files import atomic_write
from robopolicy.policies.selection import chunk_distances
from robopolicy.policies.wrappers import ChunkExecutor, Watching
from robopolicy.sim.unsafe import EVENTS, Limits
from robopolicy.spec import ACTION, TASK, Array, DatasetSpec, Observation, Policy, SpecError

if TYPE_CHECKING:
    from robopolicy.sim.env import RobotEnv

PLAN = "plan.json"  # what a folder of finished episodes is of


@dataclass
class Ending:
    """How an episode went on: success, steps until its end, the step of each event's first time, progress after each step."""

    success: bool
    steps: int
    events: dict[str, int] = field(default_factory=dict)
    progress: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Point:
    """A moment of an episode at which a decision is due: the simulator's state, the executor there, the control step."""

    token: Any
    executor: ChunkExecutor
    step: int


def follow(robot: RobotEnv, actor: PolicyActor, start: int, limit: int, limits: Limits | None) -> Ending:
    """Play on from the present state, at step `start` of at most `limit`; the actor's chunk is under way.

    limits: of what is watched for, None = nothing.
    """
    ending, over = Ending(False, 0), False
    while not over and start + ending.steps < limit:
        if ending.steps:
            wanted = actor.wants_observation
            action = actor.act(robot, robot.observe() if wanted else None)
        else:
            action = actor.executor.next()
        action = np.clip(action, robot.action_space.low, robot.action_space.high)  # type: ignore[attr-defined]
        _, terminated, truncated, info = robot.advance(action)
        ending.success, over, ending.steps = bool(info["success"]), terminated or truncated, ending.steps + 1
        ending.progress.append(info["progress"])
        for name in robot.unsafe(limits) if limits else ():
            ending.events.setdefault(name, ending.steps)
    return ending


def try_chunk(
    robot: RobotEnv, point: Point, base: PolicyActor, chunk: Array, seed: int | None, limit: int, limits: Limits | None = None
) -> Ending:
    """Go back to `point`, execute `chunk` [n, A], then follow the policy of `base` to the end of the episode.

    seed: of the policy's later decisions; None = those that the executor at the point would make.
    """
    robot.restore_state(point.token)
    actor = PolicyActor.of(point.executor.fork(chunk, base.executor.policy, seed), base.instruction)
    return follow(robot, actor, point.step, limit, limits)


def decision_points(env: gymnasium.Env, actor: PolicyActor, seed: int) -> tuple[list[Point], Ending]:
    """Every decision of the episode `seed` that `actor` plays, and how it ended. Valid until the next reset.

    Raises:
        SpecError: the environment cannot be branched.
    """
    robot = robot_env(env)
    if not hasattr(robot, "save_state"):
        raise SpecError(f"{env} cannot be branched: it has no save_state()")
    limit = time_limit(env)
    actor.reset(seed)
    observation, _ = env.reset(seed=seed)
    points: list[Point] = []
    success, over, step = False, False, 0
    while not over and step < limit:
        if actor.wants_observation and step:
            observation = robot.observe()
        if actor.executor.see(actor.told(env, observation)):
            points.append(Point(robot.save_state(), actor.executor.fork(np.empty((0, 0))), step))
            batched, number = actor.executor.question()
            chunk = actor.executor.policy.sample(batched, 1, number)[0, 0, : actor.executor.execute_horizon]
            actor.executor.give(chunk)
        action = np.clip(actor.executor.next(), env.action_space.low, env.action_space.high)  # type: ignore[attr-defined]
        _, terminated, truncated, info = robot.advance(action)
        success, over, step = bool(info["success"]), terminated or truncated, step + 1
    return points, Ending(success, step)


def time_limit(env: gymnasium.Env) -> int:
    """Control steps of an episode. Raises SpecError where there is no limit."""
    limit = env.spec.max_episode_steps if env.spec else None
    if limit is None:
        raise SpecError(f"{env} has no max_episode_steps: a branch would not end")
    return limit


@dataclass(frozen=True)
class Plan:
    """How an episode is branched.

    states: of its decisions, at most so many, drawn evenly over the episode. candidates: K. rollouts: M.
    observation: further keys to record (short names), for critics that see more than the policy.
    limits: of the events that are watched for, None = none.
    """

    states: int = 4
    candidates: int = 8
    rollouts: int = 1
    observation: tuple[str, ...] = ()
    limits: Limits | None = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("states", "candidates", "rollouts"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name}={getattr(self, name)} must be a whole number of at least 1")


def branch_episode(unit: tuple[int, Arm, Suite, Plan]) -> Branches | None:
    """The branches of one episode; None when no decision was made in it."""
    import torch

    torch.set_num_threads(1)
    seed, arm, suite, plan = unit
    policy = arm_policy(arm)
    kwargs = observing(suite.env_kwargs, policy)
    if plan.observation:
        kwargs["observation"] = list(dict.fromkeys([*kwargs.get("observation", ()), *plan.observation]))
    env = environment(suite.env_id, kwargs)
    robot = robot_env(env)
    base = PolicyActor(Watching(policy, robot.features), arm.instruction)
    points, _ = decision_points(env, base, seed)
    rng = np.random.default_rng([seed, 7])
    chosen = np.sort(rng.permutation(len(points))[: plan.states])
    records = [branch_point(env, base, points[i], plan) for i in chosen]
    if not records:
        return None
    features = {key: spec for key, spec in base.executor.policy.spec.observation.items() if key != TASK}
    spec = DatasetSpec({**features, ACTION: policy.spec.action}, policy.spec.control_hz)
    observation = {key: np.concatenate([record[0][key] for record in records]) for key in records[0][0]}
    observation[TASK] = np.full(len(records), env_task(env) if arm.instruction is None else arm.instruction)
    endings = [record[2] for record in records]  # [S][K][M]
    events = {name: _table(endings, lambda e, name=name: e.events.get(name, NEVER)) for name in (EVENTS if plan.limits else ())}
    return Branches(
        observation,
        np.stack([record[1] for record in records]).astype(np.float32),
        _table(endings, lambda e: e.success).astype(bool),
        _table(endings, lambda e: e.steps),
        _progress(endings, time_limit(env)),
        events,
        np.full(len(records), seed, np.int64),
        np.array([points[i].step for i in chosen], np.int64),
        spec,
        policy.spec.execute_horizon,
    )


def _table(endings: Sequence[Sequence[Sequence[Ending]]], value: Any) -> Array:
    return np.array([[[value(ending) for ending in row] for row in state] for state in endings], np.int64)


def _progress(endings: Sequence[Sequence[Sequence[Ending]]], length: int) -> Array:
    """Progress float32 [S, K, M, length]; the last value goes on."""
    return np.array(
        [[[np.pad(e.progress, (0, length - e.steps), "edge") for e in row] for row in state] for state in endings], np.float32
    )


def branch_point(
    env: gymnasium.Env, base: PolicyActor, point: Point, plan: Plan
) -> tuple[Observation, Array, list[list[Ending]]]:
    """What the policy saw at `point` [1, To, ...], its candidates [K, H, A], and M endings of each. `base` is who goes on."""
    robot, policy, limit = robot_env(env), base.executor.policy, time_limit(env)
    batched, number = point.executor.fork(np.empty((0, 0))).question()
    candidates = policy.sample(batched, plan.candidates, number)[0]
    horizon = point.executor.execute_horizon
    after = point.executor.fork(np.empty((0, 0)))
    after.question()  # the branches go on with the decisions that follow this one
    at = Point(point.token, after, point.step)
    tries = [
        [
            try_chunk(robot, at, base, chunk[:horizon], None if m == 0 else _seed(number, m), limit, plan.limits)
            for m in range(plan.rollouts)
        ]
        for chunk in candidates
    ]
    return batched, candidates, tries


def _seed(number: int | None, rollout: int) -> int:
    return int(np.random.SeedSequence([number or 0, rollout]).generate_state(1)[0])


def differing(branches: Branches) -> tuple[float, float]:
    """How often two candidates of a state end differently (difference of their success rates), of the nearest fifth of all
    such pairs and of the farthest fifth. NaN with fewer than two candidates.

    What near ones differ by is chance to whoever has to tell them apart, a critic too; the rest is what one could know.
    """
    distances = chunk_distances(branches.candidates[:, :, : branches.execute_horizon])
    first, second = np.triu_indices(distances.shape[1], 1)
    order = distances[:, first, second].ravel().argsort(kind="stable")
    if not len(order):
        return float("nan"), float("nan")
    rates = branches.success.mean(2)
    gaps = np.abs(rates[:, first] - rates[:, second]).ravel()[order]
    fifth = -(-len(order) // 5)
    return float(gaps[:fifth].mean()), float(gaps[-fifth:].mean())


def kept_episode(unit: tuple[int, Arm, Suite, Plan], folder: Path) -> Branches | None:
    """See branch_episode; what is in `folder` is read, what is not is put there."""
    part, none = folder / str(unit[0]), folder / f"{unit[0]}.none"
    if none.is_file():
        return None
    if not is_branches(part):
        found = branch_episode(unit)
        if found is None:
            none.touch()
            return None
        found.save(part)
    return Branches.load(part)


def open_parts(folder: Path, arm: Arm, plan: Plan, facts: Mapping[str, Any]) -> None:
    """Make the folder of finished episodes, or check that those in it are of this arm, plan and `facts`.

    Raises:
        SpecError: they are of others.
    """
    asked = {**facts, "plan": asdict(plan), "perturb": dict(arm.perturb), "instruction": arm.instruction}
    asked = json.loads(json.dumps({name: value for name, value in asked.items() if name != "checkpoint"}))
    file = folder / PLAN
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(file, (json.dumps(asked, indent=1) + "\n").encode())
        return
    known = json.loads(file.read_text())
    other = [name for name in {**asked, **known} if asked.get(name) != known.get(name)]
    if other:
        raise SpecError(
            f"{folder} holds episodes that were branched with another {other[0]} ({known.get(other[0])!r}, now "
            f"{asked.get(other[0])!r}): remove it, or give the settings that it was made with, to go on"
        )


def branch(
    arm: Arm,
    suite: Suite,
    plan: Plan,
    num_workers: int | None = None,
    executor: Executor | None = None,
    facts: Mapping[str, Any] | None = None,
    parts_folder: Path | None = None,
) -> Branches:
    """Branches of the arm's own episodes in the suite. Independent of the processes.

    parts_folder: where finished episodes are kept, so that a stopped call goes on; the caller removes it. None = nowhere.

    Raises:
        SpecError: no decision was made in any episode, the environment cannot be branched, or kept episodes are of other
            settings.
    """
    units = [(seed, arm, suite, plan) for seed in suite.seeds]
    work: Callable[[tuple[int, Arm, Suite, Plan]], Branches | None] = branch_episode
    if parts_folder is not None:
        open_parts(parts_folder, arm, plan, facts or {})
        work = partial(kept_episode, folder=parts_folder.absolute())
    found = map_units(work, units, num_workers, "branch", executor=executor, unit_name="episode")
    parts = [part for part in found if part is not None]
    if not parts:
        raise SpecError(f"{arm.name} made no decision in {len(suite.seeds)} episodes of {suite.name}")
    joined = concatenate(parts)
    return Branches(**{**vars(joined), "facts": dict(facts or {})})


class OracleActor(PolicyActor):
    """Plays a policy, and at every decision the first of its candidates after which it will succeed, if there is one.

    The ceiling of what any critic can do with these candidates, changing one decision: each is tried in the simulator, with
    the policy going on as it would. Where none succeeds, candidate 0 is executed and the next decision tries again. It knows
    the policy's later draws, which no critic does. For benchmarks.

    Args:
        base: the policy. num_samples: candidates of a decision, its own among them.
    """

    def __init__(self, base: Policy, num_samples: int, instruction: str | None = None) -> None:
        super().__init__(base, instruction)
        self.num_samples = num_samples

    def reset(self, seed: int) -> None:
        """See Actor.reset."""
        super().reset(seed)
        self._step, self._sure = 0, False

    def act(self, env: gymnasium.Env, observation: dict[str, Array] | None) -> Array:
        """See Actor.act."""
        if self.executor.see(self.told(env, observation)):
            batched, number = self.executor.question()
            num, horizon = 1 if self._sure else self.num_samples, self.executor.execute_horizon
            chunks = self.executor.policy.sample(batched, num, number)[0, :, :horizon]
            self.executor.give(chunks[0 if self._sure else self._search(env, chunks)])
        self._step += 1
        return self.executor.next()

    def _search(self, env: gymnasium.Env, chunks: Array) -> int:
        """The first of chunks [N, h, A] that leads to success; 0 where none does. The environment is as before."""
        robot, limit = robot_env(env), time_limit(env)
        point = Point(robot.save_state(), self.executor, self._step)
        tries = (n for n, chunk in enumerate(chunks) if try_chunk(robot, point, self, chunk, None, limit).success)
        found = next(tries, None)
        robot.restore_state(point.token)
        self._sure = found is not None
        return found or 0
