"""Reinforcement learning from settings: environments, actor and critic, data, teachers; then train.rl does the work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import yaml

from robopolicy import checkpoint, config
from robopolicy.data.collect import dataset_spec, environment, new_environment
from robopolicy.data.episodes import EpisodeStore
from robopolicy.data.vector import VectorEnv
from robopolicy.models.point_critic import PointCritic
from robopolicy.policies.load import ALLOWED, load_policy
from robopolicy.policies.point_actor import PointActor
from robopolicy.resources import conf_dir
from robopolicy.spec import ACTION, REWARD, TERMINATED, Array, DatasetSpec, FeatureSpec, did_you_mean
from robopolicy.train import rl
from robopolicy.train.distil import Distillation
from robopolicy.train.learners import Learner
from robopolicy.train.plan import seeded, torch_device
from robopolicy.train.replay import Transition

SCORES = ("upper_ratio", "success", "progress")  # what a run's checkpoints are compared by, the first that it has
DISTIL = ("teachers", "kind", "weight", "rl_weight")


def reinforce_run(settings: Mapping[str, Any], env_id: str, env_kwargs: Mapping[str, Any], run_dir: str | Path) -> list[Path]:
    """Train the actor `policy` and the critic `critic` in an environment as the node `rl` says; the actor's checkpoints.

    Raises:
        ValueError: settings that cannot work, before any work starts.
    """
    node = settings["rl"]
    _check_ignored(settings)
    train = config.read(rl.RLConfig, {**node["train"], "logger": settings.get("logger", "jsonl")}, where="rl.train")
    if not settings.get("critic"):
        raise config.ConfigError("rl needs an actor and a critic: give critic=point_q")
    world, spec = make_world(env_id, env_kwargs, node.get("groups") or {"all": {}})
    demonstrations = Path(train.demonstrations) if train.demonstrations else None
    if demonstrations and len(world.groups) > 1:
        raise config.ConfigError(
            f"rl.train.demonstrations with {len(world.groups)} groups: a dataset is of one; give one group"
        )
    learner = make_learner(node["learner"], settings["policy"], settings["critic"], spec, world, train.seed, train.device)
    if distil := node.get("distil"):
        learner.distillation = distillation(distil, list(world.groups), learner.actor)
    resolved = {key: value for key, value in settings.items() if key not in ("inputs", "run_dir", "train", "data")}
    told: dict[str, Any] = {}
    if demonstrations:
        told = {"data": transitions(demonstrations, learner.actor), "data_hash": EpisodeStore(demonstrations).hash}
        resolved["data"] = {"path": str(demonstrations.resolve())}  # ranking looks there again
    return rl.train(learner, world, run_dir, config=resolved, settings=train, **told)


def _check_ignored(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for settings of conf/train.yaml that were given and say nothing about a run with rl."""
    defaults = yaml.safe_load((conf_dir() / "train.yaml").read_text())
    for node, instead in (("train", "rl.train"), ("data", "rl.train.demonstrations")):
        for key, value in settings.get(node, {}).items():
            if value != defaults[node].get(key):
                raise config.ConfigError(f"{node}.{key}={value} says nothing about a run with rl: give {instead}")


def make_world(env_id: str, env_kwargs: Mapping[str, Any], groups: Mapping[str, Any]) -> tuple[rl.World, DatasetSpec]:
    """What to learn in, and the spec of what is observed there.

    Raises:
        ConfigError: a group whose options the environment does not take.
    """
    env = environment(env_id, env_kwargs)
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    make = partial(VectorEnv, partial(new_environment, env_id, dict(env_kwargs)))
    if not isinstance(groups, Mapping):
        raise config.ConfigError(f"rl.groups={groups} does not work: give {{name: {{option: value}}}}")
    options = {str(name): _options(env, f"rl.groups.{name}", given or {}) for name, given in groups.items()}
    return rl.World(make, options, space.low, space.high), dataset_spec(env)


def _options(env: gymnasium.Env, where: str, given: Any) -> dict[str, Any]:
    """Options of reset() that the environment takes."""
    try:
        env.reset(seed=0, options=dict(given))
    except (ValueError, TypeError) as error:
        raise config.ConfigError(f"{where}={given} does not work: {error}") from error
    return dict(given)


def make_learner(
    learner: Mapping[str, Any],
    policy: Mapping[str, Any],
    critic: Mapping[str, Any],
    spec: DatasetSpec,
    world: rl.World,
    seed: int = 0,
    device: str = "cpu",
) -> Learner:
    """The learner that nodes with a `_target_` describe, its normalisers set to the action's bounds.

    Raises:
        ConfigError: a policy or critic that cannot learn by reinforcement. TrainingError: a device that is not there.
    """
    known = {"observation": spec.observation, "action": spec.action, "control_hz": spec.fps}
    place = torch_device(device, "rl.train.device")
    with seeded(seed):
        actor = config.build(policy, within=ALLOWED, **known)
        judge = config.build(critic, within="robopolicy.models", **known)
        for name, module, kind in (("policy", actor, PointActor), ("critic", judge, PointCritic)):
            if not isinstance(module, kind):
                raise config.ConfigError(f"{name} is a {type(module).__name__}; rl needs a {kind.__name__}")
        if actor.spec.action_horizon != 1 or judge.execute_horizon != 1:
            raise config.ConfigError("rl learns single actions: give policy.action_horizon=1 and critic.execute_horizon=1")
        for module in (actor, judge):
            module.fit(rl.bound_statistics(module.observation, world.low, world.high))
            module.to(place)
        return config.build(learner, within="robopolicy.train", actor=actor, critic=judge)


def distillation(node: Mapping[str, Any], groups: Sequence[str], actor: PointActor) -> Distillation:
    """The teachers {group: run or checkpoint} that a node names, and how their student `actor` learns from them.

    Raises:
        ConfigError: an unknown key, a group without a teacher, a teacher without a group, or one that sees or does something
            else than the actor. CheckpointError: no policy there.
    """
    for key in node:
        if key not in DISTIL:
            raise config.ConfigError(f"rl.distil has {key!r}; {did_you_mean(str(key), DISTIL)}")
    for name in ("weight", "rl_weight"):
        config.number(f"rl.distil.{name}", node.get(name, 0.0))
    given = {str(name): run for name, run in (node.get("teachers") or {}).items()}
    for name in given:
        if name not in groups:
            raise config.ConfigError(f"rl.distil.teachers has {name!r}; {did_you_mean(name, groups)}")
    for name in groups:
        if name not in given:
            raise config.ConfigError(f"rl.distil.teachers lacks {name!r}: give every group a run")
    teachers = [_teacher(best_checkpoint(given[name]), actor).to(actor.device) for name in groups]
    return Distillation(teachers, **{key: value for key, value in node.items() if key != "teachers"})


def _teacher(path: Path, actor: PointActor) -> PointActor:
    """The teacher at `path`, which sees what `actor` sees and acts as it does."""
    teacher = load_policy(path)
    if not isinstance(teacher, PointActor):
        raise config.ConfigError(f"{path} holds a {type(teacher).__name__}; a teacher is a PointActor")
    its, wanted = _interface(teacher), _interface(actor)
    for key in {**its, **wanted}:
        if its.get(key) != wanted.get(key):
            given = f"{path} has {key} as {its.get(key)}, its student as {wanted.get(key)}"
            raise config.ConfigError(f"the teacher {given}: train it with the task and settings of the student")
    return teacher


def _interface(actor: PointActor) -> dict[str, Any]:
    """All that a teacher and its student have in common."""
    numbers = {name: getattr(actor.spec, name) for name in ("action_horizon", "control_hz")}
    return {**actor.spec.observation, ACTION: actor.spec.action, **numbers}


def best_checkpoint(run: str | Path, *scores: str) -> Path:
    """The checkpoint of a run with the highest mean over its groups (the later of equals), or `run` if it is one.

    scores: names of evaluated scores; the first that the run has counts. None given: SCORES.
    """
    folders = checkpoint.list_checkpoints(run)
    if not folders:
        return Path(run)
    found = [checkpoint.describe(folder)[1].get("metrics") or {} for folder in folders]

    def means(score: str) -> list[float]:
        columns = ([x for name, x in one.items() if name.endswith(f"/{score}") and x is not None] for one in found)
        return [float(np.mean(column)) if column else -np.inf for column in columns]

    candidates = [means(score) for score in scores or SCORES]
    best = next((values for values in candidates if np.isfinite(values).any()), candidates[0])
    return folders[max(range(len(folders)), key=lambda index: (best[index], index))]


def transitions(path: Path, actor: PointActor) -> Iterator[Transition]:
    """The steps of a dataset's episodes. The last one of an episode counts where it was the end, not a time limit.

    Raises:
        DatasetError: no dataset there. ConfigError: one without episodes, or with other observations, actions or rate than
            the actor's. Both before the first step is asked for.
    """
    store = EpisodeStore(path)
    if not len(store):
        raise config.ConfigError(f"rl.train.demonstrations={path} holds no episodes")
    wanted = {**actor.observation, ACTION: actor.spec.action, REWARD: FeatureSpec(()), TERMINATED: FeatureSpec(())}
    for key, feature in wanted.items():
        if key not in store.spec.features:
            raise config.ConfigError(f"rl.train.demonstrations={path} lacks {key!r}: give a dataset that has it")
        if differs := store.spec.features[key].difference(feature, "shape", "unit", "names"):
            name, its, ours = differs
            given = f"rl.train.demonstrations={path} has {key!r} with {name} {its!r}"
            raise config.ConfigError(f"{given}, the task {ours!r}: collect them with the task's settings")
    if store.spec.fps != actor.spec.control_hz:
        given = f"rl.train.demonstrations={path} has {store.spec.fps:g} steps a second, the task {actor.spec.control_hz:g}"
        raise config.ConfigError(f"{given}: collect them with the task's settings")
    return _steps(store, actor)


def _steps(store: EpisodeStore, actor: PointActor) -> Iterator[Transition]:
    keys = tuple(actor.observation)
    for index in range(len(store)):
        arrays = store.read(index, [*keys, ACTION, REWARD, TERMINATED])
        physical = torch.from_numpy(arrays[ACTION].astype(np.float32)).to(actor.device)
        actions = actor.normalizer.normalize(ACTION, physical).clamp(-1, 1).cpu().numpy()[:, None]
        length = len(actions)
        for t in range(length):
            ended = bool(arrays[TERMINATED][t])
            if t + 1 == length and not ended:
                break
            now = {key: arrays[key][t] for key in keys}
            following: dict[str, Array] = {key: arrays[key][min(t + 1, length - 1)] for key in keys}
            yield Transition(now, actions[t], float(arrays[REWARD][t]), following, ended, continues=t > 0)
