"""Collection: actors play episodes in environments, whole episodes in parallel processes, into one dataset folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gymnasium
import numpy as np

from robopolicy import config
from robopolicy.data.actors import Actor, scripted_actor
from robopolicy.data.episodes import EpisodeStore, EpisodeWriter
from robopolicy.executor import Executor, WorkerError, map_units
from robopolicy.spec import ACTION, FAULT, REWARD, SUCCESS, TERMINATED, TRUNCATED, Array, DatasetSpec, FeatureSpec

if TYPE_CHECKING:
    from robopolicy.sim.env import RobotEnv

_SCALARS = {REWARD: "float32", TERMINATED: "bool", TRUNCATED: "bool", SUCCESS: "bool"}
FINAL = ("upper_ratio", "whole_ratio", "peak_force_n")  # of the last info, where the environment gives them
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Episode:
    """A played episode: per-step arrays {key: [T, ...]} when recorded, and a row of facts."""

    arrays: dict[str, Array] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict)
    randomization: dict[str, Any] = field(default_factory=dict)


def play(
    env: gymnasium.Env, actor: Actor, seed: int, record: bool = False, options: Mapping[str, Any] | None = None
) -> Episode:
    """One episode. Observations that nobody wants are not rendered, if the environment can step without (`advance`).

    Actions are clipped to the action space before they are executed and recorded. options: for the environment's reset().
    The row: seed, success, return, progress (the highest), length, seconds, FAULT, and those of FINAL that there are.
    """
    started = time.perf_counter()
    actor.reset(seed)
    observation: dict[str, Array] | None
    observation, info = env.reset(seed=seed, options=dict(options) if options else None)
    advance = getattr(env.unwrapped, "advance", None)
    limit = env.spec.max_episode_steps if env.spec else None  # gymnasium's wrapper counts calls of step() only
    space = cast(gymnasium.spaces.Box, env.action_space)
    steps: list[dict[str, Any]] = []
    total, best, length, ended = 0.0, float(info.get("progress", 0.0)), 0, False
    randomization = dict(info.get("randomization", {}))
    while not ended:
        action = np.clip(actor.act(env, observation), space.low, space.high)
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
    ending = {FAULT: info.get(FAULT) or "", **{name: float(info[name]) for name in FINAL if name in info}}
    return Episode(arrays, row | ending, randomization)


def fault_lines(faults: Sequence[str]) -> list[str]:
    """A line that says how many episodes ended in which fault, none where none did."""
    counts = Counter(filter(None, faults))
    kinds = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return [f"{counts.total()} of {len(faults)} episodes ended in a fault: {kinds}"] if counts else []


def environment(env_id: str, env_kwargs: Mapping[str, Any]) -> gymnasium.Env:
    """The environment `env_id` with these keyword arguments (what JSON holds); a process makes each once and keeps it."""
    return _environment(env_id, json.dumps(dict(env_kwargs), sort_keys=True))


@lru_cache(maxsize=4)
def _environment(env_id: str, env_kwargs: str) -> gymnasium.Env:
    return new_environment(env_id, json.loads(env_kwargs))


def new_environment(env_id: str, env_kwargs: Mapping[str, Any]) -> gymnasium.Env:
    """A fresh environment, for who wants several in a process."""
    return gymnasium.make(env_id, disable_env_checker=True, **env_kwargs)


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
    level: float | None


@dataclass(frozen=True)
class _Played:
    success: bool
    num_frames: int
    num_bytes: int


def _collect_unit(
    unit: _Unit, path: str, env_id: str, env_kwargs: Mapping[str, Any], make_actor: Callable[[str], Actor]
) -> _Played:
    env = environment(env_id, env_kwargs)
    actor = make_actor(unit.behaviour)
    episode = play(env, actor, unit.seed, record=True, options=None if unit.level is None else {"level": unit.level})
    facts = {key: episode.row[key] for key in ("seed", "success", "return", "progress", FAULT)}
    info = {"task": robot_env(env).task.name, "source": unit.behaviour, "env_id": env_id, **facts, **actor.facts}
    if unit.level is not None:
        info["level"] = unit.level
    info["randomization"] = episode.randomization
    file = _writer(path, env_id, json.dumps(dict(env_kwargs), sort_keys=True)).add(
        episode.arrays, info, unit.name, exist_ok=True
    )
    return _Played(episode.row["success"], episode.row["length"], file.stat().st_size)


@lru_cache(maxsize=1)
def _writer(path: str, env_id: str, env_kwargs: str) -> EpisodeWriter:
    """The writer of a dataset; a process opens it once, not for every episode."""
    return EpisodeWriter(path, dataset_spec(_environment(env_id, env_kwargs)))


class _Tally:
    """What the progress bar says beside episodes per second and the time left."""

    def __init__(self) -> None:
        self.episodes = self.successes = self.frames = self.bytes = 0
        self.started = time.monotonic()

    def __call__(self, played: _Played) -> str:
        self.episodes += 1
        self.successes += played.success
        self.frames += played.num_frames
        self.bytes += played.num_bytes
        rate = self.frames / max(time.monotonic() - self.started, 1e-9)
        return f"{rate:.0f} frames/s, success {self.successes / self.episodes:.0%}, {self.bytes / 1e6:.1f} MB"


def collect(
    path: str | Path,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    episodes: Mapping[str, int],
    seed: int,
    num_workers: int | None = None,
    title: str = "collect",
    make_actor: Callable[[str], Actor] = scripted_actor,
    executor: Executor | None = None,
    levels: Sequence[float] | None = None,
    actor_id: str = "",
) -> EpisodeStore:
    """Collect {behaviour: number of episodes} into the dataset at `path`; episodes that are there already are kept.

    An episode's name says what made it: behaviour, seed, position, and a digest of the environment, the actor and the
    levels. So the same call goes on where it stopped, whenever that was, and another call adds to the dataset.

    Args:
        path: dataset folder. env_id, env_kwargs: the environment.
        episodes: behaviours are those of actors.SCRIPTED, or whatever make_actor (picklable) makes an actor of. The
            behaviour becomes the episode's source in the dataset.
        seed: collections with different seeds share no episode.
        num_workers, executor: processes, see executor.py. The dataset does not depend on them.
        levels: [start, end] of a curriculum: the share of the randomisation, rising linearly over a behaviour's episodes.
        actor_id: tells actors of equal behaviour apart, such as the hash of a checkpoint.

    Raises:
        ValueError: an unknown behaviour, a number that cannot be, or levels that are no two numbers in [0, 1].
        SpecError: the dataset at `path` holds something else.
        OSError: no space left; what was finished stays.
        WorkerError: episodes that could not be played; all others are there.
        KeyboardInterrupt: with a message that says what is there.
    """
    config.whole("seed", seed)
    config.workers(num_workers)
    for behaviour, count in episodes.items():
        if config.whole(f"episodes.{behaviour}", count):
            make_actor(behaviour)  # a mistake shows here, not in every process
    if levels is not None and not _is_ramp(levels):
        raise config.ConfigError(f"levels={levels!r} does not work: give [start, end], both in 0..1")
    path, env_kwargs = Path(path).absolute(), dict(env_kwargs)  # workers may run elsewhere
    identity = [env_id, env_kwargs, actor_id]
    planned = [unit for kind, count in episodes.items() for unit in _units(kind, count, seed, levels, identity)]
    writer = EpisodeWriter(path, dataset_spec(environment(env_id, env_kwargs)))
    missing = [unit for unit in planned if not writer.has(unit.name)]
    if len(missing) < len(planned):
        title = f"{title} ({len(planned) - len(missing)} of {len(planned)} are there)"
    work = partial(_collect_unit, path=str(path), env_id=env_id, env_kwargs=env_kwargs, make_actor=make_actor)
    options: dict[str, Any] = {"executor": executor, "note": _Tally(), "unit_name": "episode"}

    def kept() -> str:
        count = sum(writer.has(unit.name) for unit in planned)
        return f"{count} of {len(planned)} episodes are in {path}; the same command goes on from there"

    try:
        map_units(work, missing, num_workers, title, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: {kept()}") from None
    except WorkerError as error:
        names = [missing[index].name for index in error.lost]
        why = next(iter(error.lost.values()))
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise CollectionError(f"not collected, because the worker {why}: {shown}; {kept()}") from error
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise OSError(f"no space left for {path} ({os.strerror(error.errno)}): {kept()} once there is space") from error
    return EpisodeStore(path)


def _is_ramp(levels: Any) -> bool:
    return (
        isinstance(levels, list | tuple)
        and len(levels) == 2
        and all(isinstance(level, int | float) and 0 <= level <= 1 for level in levels)
    )


class CollectionError(ChildProcessError):
    """Episodes that could not be played, because the simulator crashed or stalled on them every time."""


def _units(behaviour: str, count: int, seed: int, levels: Sequence[float] | None, identity: Sequence[Any]) -> list[_Unit]:
    ramp: list[float | None] = [None] * count if levels is None else np.linspace(levels[0], levels[1], count).tolist()
    units = []
    for index, level in enumerate(ramp):
        digest = hashlib.sha256(json.dumps([*identity, level], sort_keys=True).encode()).hexdigest()[:8]
        name = f"{behaviour}_{seed}_{index:06d}_{digest}"
        units.append(_Unit(behaviour, episode_seed(seed, zlib.crc32(behaviour.encode()), index), name, level))
    return units
