"""Collection: actors play episodes in environments, whole episodes in parallel processes, into one dataset folder."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import gymnasium
import numpy as np

from robopolicy.data.episodes import EpisodeStore, EpisodeWriter
from robopolicy.executor import map_units
from robopolicy.spec import ACTION, REWARD, SUCCESS, TERMINATED, TRUNCATED, Array, DatasetSpec, FeatureSpec, did_you_mean

if TYPE_CHECKING:
    from robopolicy.sim.env import RobotEnv

BEHAVIOURS = ("expert", "imperfect")
_SCALARS = {REWARD: "float32", TERMINATED: "bool", TRUNCATED: "bool", SUCCESS: "bool"}


class Actor(Protocol):
    """Something that acts in an environment."""

    @property
    def wants_observation(self) -> bool:
        """Whether act() will look at the next observation."""

    def reset(self, seed: int) -> None:
        """A new episode, with the seed of all the actor's randomness."""

    def act(self, env: gymnasium.Env, observation: dict[str, Array] | None) -> Array:
        """Action float32 [A]; the observation is None at steps at which the actor did not want one."""


@dataclass
class Episode:
    """A played episode: per-step arrays {key: [T, ...]} when recorded, and a row of facts."""

    arrays: dict[str, Array] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict)
    randomization: dict[str, Any] = field(default_factory=dict)


def play(env: gymnasium.Env, actor: Actor, seed: int, record: bool = False) -> Episode:
    """One episode. Observations that nobody wants are not rendered, if the environment can step without (`advance`).

    The row: seed, success, return, progress (the highest), length, seconds.
    """
    started = time.perf_counter()
    actor.reset(seed)
    observation: dict[str, Array] | None
    observation, info = env.reset(seed=seed)
    advance = getattr(env.unwrapped, "advance", None)
    limit = env.spec.max_episode_steps if env.spec else None  # gymnasium's wrapper counts calls of step() only
    steps: list[dict[str, Any]] = []
    total, best, length, ended = 0.0, float(info.get("progress", 0.0)), 0, False
    randomization = dict(info.get("randomization", {}))
    while not ended:
        action = actor.act(env, observation)
        before = observation
        if advance is None or record or actor.wants_observation:
            observation, reward, terminated, truncated, info = env.step(action)
        else:
            observation = None
            reward, terminated, truncated, info = advance(action)
        total, length = total + float(reward), length + 1
        truncated = truncated or (not terminated and limit is not None and length >= limit)
        ended = terminated or truncated
        best = max(best, float(info.get("progress", 0.0)))
        success = bool(info.get("success", False))
        if record:
            facts = dict(zip(_SCALARS, (reward, terminated, truncated, success), strict=True))
            steps.append({**(before or {}), ACTION: np.asarray(action, np.float32), **facts})
    arrays = {key: np.stack([s[key] for s in steps]) for key in steps[0]} if steps else {}
    for key, dtype in _SCALARS.items():
        if key in arrays:
            arrays[key] = arrays[key].astype(dtype)
    seconds = time.perf_counter() - started
    row = {"seed": seed, "success": success, "return": total, "progress": best, "length": length, "seconds": seconds}
    return Episode(arrays, row, randomization)


class ExpertActor:
    """The scripted expert; imperfect=True draws another flawed copy of it for every episode."""

    wants_observation = False

    def __init__(self, imperfect: bool = False) -> None:
        self.imperfect = imperfect

    def reset(self, seed: int) -> None:
        """See Actor.reset."""
        self._rng = np.random.default_rng([seed, 1])  # apart from the streams of the environment
        self._expert: Callable[[gymnasium.Env], Array] | None = None

    def act(self, env: gymnasium.Env, observation: dict[str, Array] | None) -> Array:
        """See Actor.act."""
        if self._expert is None:
            expert = robot_env(env).expert()
            self._expert = type(expert).imperfect(self._rng) if self.imperfect else expert
        return self._expert(env)


def environment(env_id: str, env_kwargs: Mapping[str, Any]) -> gymnasium.Env:
    """The environment `env_id` with these keyword arguments (what JSON holds); a process makes each once and keeps it."""
    return _environment(env_id, json.dumps(dict(env_kwargs), sort_keys=True))


@lru_cache(maxsize=4)
def _environment(env_id: str, env_kwargs: str) -> gymnasium.Env:
    return gymnasium.make(env_id, disable_env_checker=True, **json.loads(env_kwargs))


def robot_env(env: gymnasium.Env) -> RobotEnv:
    """Our environment under gymnasium's wrappers."""
    return cast("RobotEnv", env.unwrapped)


def dataset_spec(env: gymnasium.Env) -> DatasetSpec:
    """The spec of what play(record=True) records in one of our environments."""
    world = robot_env(env)
    scalars = {key: FeatureSpec((), dtype) for key, dtype in _SCALARS.items()}
    return DatasetSpec({**world.features, ACTION: world.action_spec, **scalars}, fps=world.control_hz)


def episode_seed(seed: int, *index: int) -> int:
    """Seed of episode `index` of a collection with `seed`: collections with different seeds share no episode."""
    return int(np.random.SeedSequence([seed, *index]).generate_state(1, np.uint32)[0])


@dataclass(frozen=True)
class _Unit:
    behaviour: str
    seed: int
    name: str


def expert_actor(behaviour: str) -> Actor:
    """The actor of a scripted behaviour, "expert" or "imperfect". Raises ValueError for another one."""
    if behaviour not in BEHAVIOURS:
        raise ValueError(f"no behaviour {behaviour!r}; {did_you_mean(behaviour, BEHAVIOURS)}")
    return ExpertActor(imperfect=behaviour == "imperfect")


def _collect_unit(
    unit: _Unit, path: str, env_id: str, env_kwargs: Mapping[str, Any], make_actor: Callable[[str], Actor]
) -> None:
    env = environment(env_id, env_kwargs)
    writer = EpisodeWriter(path, dataset_spec(env))
    if not writer.has(unit.name):
        episode = play(env, make_actor(unit.behaviour), unit.seed, record=True)
        facts = {key: episode.row[key] for key in ("seed", "success", "return", "progress")}
        info = {"task": robot_env(env).task.name, "source": unit.behaviour, "env_id": env_id, **facts}
        writer.add(episode.arrays, {**info, "randomization": episode.randomization}, unit.name, exist_ok=True)


def collect(
    path: str | Path,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    episodes: Mapping[str, int],
    seed: int,
    num_workers: int | None = None,
    title: str = "collect",
    make_actor: Callable[[str], Actor] = expert_actor,
) -> EpisodeStore:
    """Collect {behaviour: number of episodes} into the dataset at `path`; episodes that are there already are kept.

    behaviours: "expert" (scripted, privileged), "imperfect" (the same misjudging where the object is; about half fail),
        or whatever make_actor (picklable) makes an actor of. It becomes the episode's source in the dataset.

    Raises:
        ValueError: an unknown behaviour. SpecError: the dataset at `path` holds something else.
    """
    for behaviour, count in episodes.items():
        if count:
            make_actor(behaviour)  # a mistake shows here, not in every process
    units = [
        _Unit(behaviour, episode_seed(seed, zlib.crc32(behaviour.encode()), i), f"{behaviour}_{seed}_{i:06d}")
        for behaviour, count in episodes.items()
        for i in range(count)
    ]
    work = partial(_collect_unit, path=str(path), env_id=env_id, env_kwargs=dict(env_kwargs), make_actor=make_actor)
    map_units(work, units, num_workers, title)
    return EpisodeStore(path)
