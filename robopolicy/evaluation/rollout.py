"""Episodes of checkpoints on frozen conditions, the same for every checkpoint: a score table, one row an episode."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robopolicy.data.collect import Episode, environment, episode_seed, play
from robopolicy.executor import Executor, map_units
from robopolicy.files import atomic_write
from robopolicy.policies.load import identity, load_critic, policy_at
from robopolicy.policies.steering import SteeredPolicy
from robopolicy.policies.wrappers import ChunkExecutor, Exploring, Perturbed
from robopolicy.spec import TASK, Array, Policy

BLOCK = 5  # episodes of one work unit
NOISE_STREAM = 7  # apart from what the seed of an episode draws else


@dataclass(frozen=True)
class Arm:
    """What is evaluated: a checkpoint, perhaps steered. `name` goes into the score table.

    checkpoint, critic, safety: checkpoint folders, the first perhaps the address of a policy server (policies.served).
    steer: keyword arguments of SteeredPolicy.
    perturb: keyword arguments of Perturbed, where the policy's own candidates are too much alike; {} = they stay.
    run, step: the training run the checkpoint comes from (its cluster in the statistics) and its training step.
    instruction: what a policy that can do several things is told; None = what the environment says.
    noise: see PolicyActor.
    """

    name: str
    checkpoint: str
    run: str = ""
    step: int = 0
    critic: str | None = None
    steer: Mapping[str, Any] = field(default_factory=dict)
    instruction: str | None = None
    perturb: Mapping[str, Any] = field(default_factory=dict)
    safety: str | None = None
    noise: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """A frozen list of conditions: an environment and the seeds of its episodes.

    split: what the suite may be used for ("select" for choosing; "target" for what stands in for the robot).
    """

    name: str
    env_id: str
    env_kwargs: Mapping[str, Any]
    seeds: tuple[int, ...]
    split: str = "select"

    @classmethod
    def draw(cls, name: str, env_id: str, env_kwargs: Mapping[str, Any], episodes: int, seed: int, split: str) -> Suite:
        """`episodes` conditions whose seeds are those of a collection with `seed`."""
        return cls(name, env_id, dict(env_kwargs), tuple(episode_seed(seed, i) for i in range(episodes)), split)


class PolicyActor:
    """data.actors.Actor for a policy: history, chunk execution, one seed per episode.

    instruction: what a policy that can do several things is told; None = what the environment says (env_task).
    noise: {key: standard deviation} of Gaussian noise on what the policy sees, fresh for every observation, before frames are
        stacked; in the key's unit, for uint8 images as a fraction of their range.
    """

    def __init__(self, policy: Policy, instruction: str | None = None, noise: Mapping[str, float] | None = None) -> None:
        self.executor, self.instruction, self.noise = ChunkExecutor(policy), instruction, dict(noise or {})
        self.facts: Mapping[str, Any] = {}

    @classmethod
    def of(cls, executor: ChunkExecutor, instruction: str | None = None) -> PolicyActor:
        """The actor of an executor that is under way."""
        actor = cls.__new__(cls)
        actor.executor, actor.instruction, actor.facts, actor.noise = executor, instruction, {}, {}
        return actor

    @property
    def wants_observation(self) -> bool:
        """See Actor."""
        return self.executor.wants_observation

    def reset(self, seed: int) -> None:
        """See Actor.reset."""
        self.executor.reset(seed)
        self._random = np.random.default_rng([seed, NOISE_STREAM])

    def act(self, env: gymnasium.Env, observation: dict[str, Array] | None) -> Array:
        """See Actor.act."""
        told = self.told(env, observation)
        if told is not None and self.noise and self.wants_observation:
            shaken = {key: _noisy(told[key], sd, self._random) for key, sd in self.noise.items() if key in told}
            told = {**told, **shaken}
        return self.executor.act(told)

    def told(self, env: gymnasium.Env, observation: dict[str, Array] | None) -> dict[str, Array] | None:
        """The observation with what there is to do, where the policy wants to know."""
        if observation is None or TASK not in self.executor.policy.spec.observation:
            return observation
        told = env_task(env) if self.instruction is None else self.instruction
        return {**observation, TASK: np.asarray(told)}


def _noisy(value: Array, sd: float, random: np.random.Generator) -> Array:
    """A value with Gaussian noise; images stay uint8, clipped to their range."""
    noise = sd * random.standard_normal(value.shape)
    if value.dtype == np.uint8:
        return np.clip(np.rint(value + 255 * noise), 0, 255).astype(np.uint8)
    return (value + noise).astype(value.dtype)


def env_task(env: gymnasium.Env) -> str:
    """What there is to do in `env`: its `task`, which is text or has a `name`.

    Raises:
        ValueError: it has none.
    """
    task = getattr(env.unwrapped, "task", None)
    name = getattr(task, "name", task)
    if not isinstance(name, str):
        raise ValueError(f"the policy needs to know its task, and {env} has no attribute `task` that says it")
    return name


def exploring_actor(arm: Arm) -> PolicyActor:
    """Actor that executes drawn candidates of an arm's policy."""
    return PolicyActor(Exploring(arm_policy(arm)), arm.instruction)


@lru_cache(maxsize=4)
def _policy(checkpoint: str, critic: str | None, safety: str | None, steer: str, perturb: str) -> Policy:
    policy = policy_at(checkpoint)
    policy = Perturbed(policy, **json.loads(perturb)) if perturb != "{}" else policy
    if critic is None:
        return policy
    veto = None if safety is None else load_critic(safety)
    return SteeredPolicy(policy, load_critic(critic), safety=veto, **json.loads(steer))


def arm_policy(arm: Arm) -> Policy:
    """The policy of an arm, steered if it says so."""
    steer, perturb = (json.dumps(dict(options), sort_keys=True) for options in (arm.steer, arm.perturb))
    return _policy(arm.checkpoint, arm.critic, arm.safety, steer, perturb)


def observing(env_kwargs: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """Keyword arguments of an environment that renders what the policy looks at and no more."""
    if "observation" not in env_kwargs:
        return dict(env_kwargs)
    keys = [key for key in policy.spec.observation if key != TASK]
    return {**env_kwargs, "observation": [key.removeprefix("observation.") for key in keys]}


def play_block(unit: tuple[Arm, Suite]) -> list[dict[str, Any]]:
    """The rows of an arm's episodes on all conditions of a suite, played in this process."""
    import torch

    torch.set_num_threads(1)
    arm, suite = unit
    actor = PolicyActor(arm_policy(arm), arm.instruction, arm.noise)
    env = environment(suite.env_id, observing(suite.env_kwargs, actor.executor.policy))
    return [_row(play(env, actor, seed), arm, suite) for seed in suite.seeds]


def _row(episode: Episode, arm: Arm, suite: Suite) -> dict[str, Any]:
    drawn = {f"randomization.{name}": value for name, value in episode.randomization.items()}
    identity = {"checkpoint": arm.name, "checkpoint_sha": _sha(arm.checkpoint), "run": arm.run, "step": arm.step}
    condition = {"suite": suite.name, "split": suite.split, "condition": str(episode.row["seed"])}
    return {**identity, **condition, **episode.row, **drawn}


_sha: Callable[[str], str] = lru_cache(maxsize=256)(identity)


def evaluate(
    arms: Sequence[Arm],
    suite: Suite,
    num_workers: int | None = None,
    title: str = "evaluate",
    executor: Executor | None = None,
) -> pa.Table:
    """The score table of all arms on all conditions of the suite. Independent of the processes, but for `seconds`."""
    blocks = [suite.seeds[i : i + BLOCK] for i in range(0, len(suite.seeds), BLOCK)]
    units = [(arm, Suite(suite.name, suite.env_id, suite.env_kwargs, seeds, suite.split)) for arm in arms for seeds in blocks]
    options: dict[str, Any] = {"executor": executor, "unit_name": "episode"}
    results = map_units(play_block, units, num_workers, title, weight=lambda unit: len(unit[1].seeds), **options)
    return pa.Table.from_pylist([row for rows in results for row in rows])


def write_table(path: str | Path, table: pa.Table) -> Path:
    """Write a score table as parquet, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, partial(pq.write_table, table))
    return path


def success_by_arm(table: pa.Table) -> dict[str, Array]:
    """{arm name: success of its episodes, bool, in the order of the conditions}."""
    rows = table.select(["checkpoint", "condition", "success"]).to_pylist()
    names = dict.fromkeys(row["checkpoint"] for row in rows)
    ordered = {name: sorted((r["condition"], r["success"]) for r in rows if r["checkpoint"] == name) for name in names}
    return {name: np.array([success for _, success in pairs], bool) for name, pairs in ordered.items()}
