"""The one loop of reinforcement learning: environments that are handed in, a replay buffer, a learner; or data alone.

A killed run resumes as if it had never stopped. All randomness of a round is a function of (seed, round), and the saved
state holds the weights, the optimisers' moments, the buffer, and of every environment the seed and actions of its episode,
which are replayed.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from robopolicy import checkpoint
from robopolicy.batch import to_torch
from robopolicy.config import DEVICES, ConfigError
from robopolicy.data.transforms import Statistics, is_normalized, vector_statistics
from robopolicy.data.vector import Start, Step, VectorEnv, episodes, stacked
from robopolicy.files import plain
from robopolicy.models.point_critic import PointCritic
from robopolicy.policies.point_actor import PointActor
from robopolicy.spec import ACTION, Array, Features, Observation
from robopolicy.train import plan
from robopolicy.train.learners import Learner
from robopolicy.train.logging import MetricsLog, means, open_log
from robopolicy.train.plan import TrainingError
from robopolicy.train.replay import NONE, ReplayBuffer, Transition
from robopolicy.train.run_folder import drop_state, open_run, replace_state, resumable

logger = logging.getLogger(__name__)

Act = Callable[[Observation], Array]  # a batch of observations {key: [B, 1, ...]} to actions [B, A] in physical units
PATIENCE = 100  # rounds after the warm-up in which there may be nothing but faults
_ACT, _UPDATE, _EPISODE = 1, 2, 3  # streams of randomness
_EVALUATION = 2026  # seed of the episodes that the run of seed 0 is evaluated on


@dataclass(frozen=True, kw_only=True)
class RLConfig:
    """How a run learns by reinforcement (`rl.train.*` on the command line).

    steps: rounds. In each round every one of `num_envs` environments makes one decision, then there are `updates` updates of
        `batch_size` transitions. num_envs=0 learns from `demonstrations` alone.
    n_step: steps whose rewards a critic's target sums before it trusts the critic (Peng and Williams 1996); values then spread
        n times as fast. Actions of an older actor are in them, so small numbers are usual: 3 to 10.
    warmup: rounds with uniformly random actions and no updates. replay_capacity: transitions kept of each group.
    num_workers: processes that environments live in, 0 = this one. evaluate_every: rounds between evaluations, each of which
        makes a checkpoint. evaluate_episodes: of each group, without exploration, on worlds of their own,
        the same ones throughout a run, others under another seed: what is easy about them is not so for all runs.
    demonstrations: a dataset whose transitions are in the buffer from the start.
    Others: see TrainConfig.
    """

    steps: int = 5000
    num_envs: int = 2
    updates: int = 2
    batch_size: int = 64
    n_step: int = 1
    warmup: int = 300
    replay_capacity: int = 50_000
    num_workers: int = 0
    evaluate_every: int = 500
    evaluate_episodes: int = 6
    demonstrations: str | None = None
    seed: int = 0
    log_every: int = 100
    save_every_seconds: float = 120.0
    num_threads: int = 1
    device: str = "cpu"
    logger: str = "jsonl"
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        counts = ("steps", "updates", "batch_size", "n_step", "replay_capacity", "evaluate_every", "log_every", "num_threads")
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"rl.train.{name}={getattr(self, name)} does not work: give a whole number of at least 1")
        for name in ("num_envs", "warmup", "num_workers", "evaluate_episodes", "seed", "save_every_seconds"):
            if getattr(self, name) < 0:
                raise ConfigError(f"rl.train.{name}={getattr(self, name)} does not work: give a number of at least 0")
        if not re.fullmatch(DEVICES, self.device):
            raise ConfigError(f"rl.train.device={self.device!r} does not work: give 'cpu', 'cuda' or 'cuda:N'")
        if not self.num_envs and not self.demonstrations:
            raise ConfigError("rl.train.num_envs=0 learns from data alone: give rl.train.demonstrations=DATASET")


@dataclass(frozen=True)
class World:
    """What a run learns in. make(count, num_workers): its environments. groups: {name: options of reset()}, which episodes
    are drawn from evenly. low, high [A]: bounds of an action in physical units.
    """

    make: Callable[[int, int], VectorEnv]
    groups: Mapping[str, Mapping[str, Any]]
    low: Array
    high: Array


@dataclass
class _Playing:
    """An environment's episode so far. last: number of its last transition in the buffer."""

    start: Start
    group: int
    episode: int
    observation: Observation
    actions: list[Array] = field(default_factory=list)
    last: int = NONE


def train(
    learner: Learner,
    world: World | None,
    run_dir: str | Path,
    *,
    config: Mapping[str, Any],
    settings: RLConfig,
    data: Iterator[Transition] | None = None,
    data_hash: str = "",
) -> list[Path]:
    """Train the learner's actor and critic; the actor's checkpoints by ascending step. The critic's are in <run>/critic.

    A finished run that resumes is left as it is.

    Args:
        learner: trained in place, on the device of `settings`; its action normaliser is set (see bound_statistics).
        world: None when num_envs is 0 and nothing is to be evaluated.
        run_dir: see train.loop.train. config: resolved config with the nodes "policy" and "critic".
        data: transitions that are in the buffer from the start; read only when the run does not resume. data_hash: of the
            dataset they come from, which checkpoints name.

    Raises:
        TrainingError: a folder that holds another run, an environment of nothing but faults. ValueError: a loss that is not
            finite.
    """
    run = _Run(learner, world, Path(run_dir), config, settings, data_hash)
    open_run(run.run_dir, plain(config, where="config"), settings.resume, "rl.train.resume")
    if not run.finished:
        with (
            plan.torch_threads(settings.num_threads),
            world.make(settings.num_envs, settings.num_workers) if world and settings.num_envs else nullcontext() as envs,
            _evaluating(world, settings) as judges,
        ):
            run.run(envs, judges, data)
    drop_state(run.run_dir)
    run.load_last()
    return checkpoint.list_checkpoints(run.run_dir)


def _evaluating(world: World | None, settings: RLConfig) -> Any:
    if world is None or not settings.evaluate_episodes:
        return nullcontext()
    return world.make(max(settings.num_envs, 2), settings.num_workers)


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        learner: Learner,
        world: World | None,
        run_dir: Path,
        config: Mapping[str, Any],
        settings: RLConfig,
        data_hash: str,
    ) -> None:
        self.learner, self.world, self.run_dir, self.config, self.settings = learner, world, run_dir, config, settings
        self.data_hash = data_hash
        self.names = list(world.groups) if world else ["data"]
        actor = learner.actor
        self.buffer = ReplayBuffer(actor.observation, learner.action_shape, settings.replay_capacity, len(self.names))
        self.step, self.seconds, self.started = 0, 0.0, time.monotonic()
        self.playing: list[_Playing] = []
        self.finals: list[dict[str, float]] = []
        self.faults, self.last_fault = 0, ""

    @property
    def modules(self) -> dict[str, tuple[Path, PointActor | PointCritic]]:
        """{kind: (folder of its checkpoints, what they hold)}."""
        return {"policy": (self.run_dir, self.learner.actor), "critic": (self.run_dir / "critic", self.learner.critic)}

    @property
    def finished(self) -> bool:
        """Whether both checkpoints of the last round are there."""
        last = self.settings.steps
        return all(
            checkpoint.step_folder(folder, last) in checkpoint.list_checkpoints(folder) for folder, _ in self.modules.values()
        )

    def load_last(self) -> None:
        """Give actor and critic the weights of their last checkpoints, in eval mode."""
        for folder, module in self.modules.values():
            path = checkpoint.step_folder(folder, self.settings.steps)
            checkpoint.load_into(module, checkpoint.load(path).tensors, path)
            module.eval()

    def run(self, envs: VectorEnv | None, judges: VectorEnv | None, data: Iterator[Transition] | None) -> None:
        settings = self.settings
        resumed = self._resume(envs)
        if not resumed:
            last = NONE
            for transition in data or ():
                last = self.buffer.add(transition, last if transition.continues else NONE)
            if envs is not None:
                self._begin(envs, {i: self._start(i, 0) for i in range(settings.num_envs)})
        if settings.num_envs == 0 and not len(self.buffer):
            raise ValueError(f"{settings.demonstrations} holds no transitions")
        wandb = settings.logger == "wandb"
        rows: list[Mapping[str, Any]] = []
        saved = time.monotonic()
        with (
            open_log(self.run_dir, step=self.step, wandb=wandb, config=self.config) as log,
            tqdm(total=settings.steps, initial=self.step, unit="round", disable=None if settings.progress else True) as bar,
        ):
            while self.step < settings.steps:
                if envs is not None:
                    self._play(envs)
                if len(self.buffer) and (self.step >= settings.warmup or envs is None):
                    rows += self._update()
                elif self.step >= settings.warmup + PATIENCE:
                    raise TrainingError(
                        f"all {self.faults} steps of {self.step + 1} rounds ended in a fault, the last in {self.last_fault!r}: "
                        "nothing can be learned; check the environment's settings"
                    )
                self.step += 1
                bar.update()
                last = self.step == settings.steps
                judged = last or self.step % settings.evaluate_every == 0
                scores = self._evaluate(judges, log) if judged else {}
                logged = last or self.step % settings.log_every == 0
                if logged:
                    self._log(log, rows)
                    rows = []
                if judged:  # after the log: what has its last checkpoints has all its lines
                    self._keep(scores)
                if logged and time.monotonic() - saved >= settings.save_every_seconds:
                    self._save()
                    saved = time.monotonic()

    def _log(self, log: MetricsLog, rows: list[Mapping[str, Any]]) -> None:
        now = time.monotonic()
        self.seconds, self.started = self.seconds + now - self.started, now
        played = {f"episode/{name}": value for name, value in means(self.finals).items()}
        row = {**means(rows), **played, "transitions": len(self.buffer), "faults": self.faults}
        log.write({"step": self.step, "phase": "rl", **row, "seconds": round(self.seconds, 3)})
        self.finals = []

    # episodes

    def _start(self, index: int, episode: int) -> _Playing:
        rng = _rng(self.settings.seed, _EPISODE, index, episode)
        group = int(rng.integers(len(self.names)))
        start = Start(int(rng.integers(2**31)), self.world.groups[self.names[group]])  # type: ignore[union-attr]
        return _Playing(start, group, episode, {})

    def _begin(self, envs: VectorEnv, playing: Mapping[int, _Playing]) -> None:
        observations = envs.reset({index: one.start for index, one in playing.items()})
        for index, one in sorted(playing.items()):
            one.observation = observations[index]
            if index < len(self.playing):
                self.playing[index] = one
            else:
                self.playing.append(one)

    def _play(self, envs: VectorEnv) -> None:
        """One decision of every environment."""
        actor, words = self.learner.actor, (self.settings.seed, _ACT, self.step)
        rng, generator = _rng(*words), _generator(actor.device, *words)
        if self.step < self.settings.warmup:
            chosen = torch.from_numpy(rng.uniform(-1, 1, (len(self.playing), *self.learner.action_shape)).astype(np.float32))
        else:
            keys = tuple(actor.observation)
            batch = stacked([{key: one.observation[key] for key in keys} for one in self.playing])
            chosen = self.learner.act(to_torch(batch, actor.device), generator).cpu()
        physical = actor.normalizer.denormalize(ACTION, chosen.to(actor.device))[:, 0].cpu().numpy()
        steps = envs.step(list(physical))
        over: dict[int, _Playing] = {}
        for index, one in enumerate(self.playing):
            self._remember(one, chosen[index].numpy(), physical[index], steps[index])
            if steps[index].terminated or steps[index].truncated:
                self.finals.append(numbers(steps[index].info))
                over[index] = self._start(index, one.episode + 1)
        if over:
            self._begin(envs, over)

    def _remember(self, one: _Playing, action: Array, physical: Array, step: Step) -> None:
        """Add the transition, unless the simulator says that it teaches nothing."""
        if fault := step.info.get("fault"):
            self.faults, self.last_fault = self.faults + 1, fault
        else:
            found = Transition(one.observation, action, step.reward, step.observation, step.terminated, one.group)
            one.last = self.buffer.add(found, one.last)
        one.observation = step.observation
        one.actions.append(physical)

    # learning

    def _update(self) -> list[Mapping[str, Any]]:
        settings, rows = self.settings, list[Mapping[str, Any]]()
        self.learner.actor.train()
        for number in range(settings.updates):
            step = self.step * settings.updates + number
            words, device = (settings.seed, _UPDATE, step), self.learner.actor.device
            rng, generator = _rng(*words), _generator(device, *words)
            group, transitions = self.buffer.sample(
                settings.batch_size, rng, device, steps=settings.n_step, gamma=self.learner.gamma
            )
            rows.append(self.learner.update(transitions, group, step, generator))
        return rows

    def _evaluate(self, judges: VectorEnv | None, log: MetricsLog) -> dict[str, float]:
        """Play without exploration and write the scores."""
        scores: dict[str, float] = {}
        if judges is not None:
            for name, options in self.world.groups.items():  # type: ignore[union-attr]
                starts = evaluation_starts(self.settings.evaluate_episodes, name, options, _EVALUATION + self.settings.seed)
                finals = play(judges, policy_act(self.learner.actor), starts)
                scores |= {f"{name}/{key}": value for key, value in means([numbers(info) for info in finals]).items()}
            log.write({"step": self.step, "phase": "evaluation", **scores})
        return scores

    def _keep(self, scores: Mapping[str, float]) -> None:
        """Write checkpoints of actor and critic, unless a killed run has done so already."""
        commit = checkpoint.git_commit()
        for kind, (run, module) in self.modules.items():
            folder = checkpoint.step_folder(run, self.step)
            if folder not in checkpoint.list_checkpoints(run):
                meta = {"kind": kind, "data_hash": self.data_hash, "git_commit": commit, "spec": module.spec.to_dict()}
                checkpoint.save(folder, module.state_dict(), self.config, {**meta, "step": self.step, "metrics": scores})

    # resuming

    def _save(self) -> None:
        tensors = {f"learner/{name}": value for name, value in self.learner.tensors().items()}
        tensors |= {f"buffer/{name}": value for name, value in self.buffer.state().items()}
        envs = [
            {
                **{"seed": one.start.seed, "group": one.group, "episode": one.episode, "last": one.last},
                "actions": np.array(one.actions).tolist(),
            }
            for one in self.playing
        ]
        state = {"step": self.step, "seconds": self.seconds, "faults": self.faults, "envs": envs}
        replace_state(self.run_dir, self.step, tensors, state)

    def _resume(self, envs: VectorEnv | None) -> bool:
        found = resumable(self.run_dir)
        if found is None:
            return False
        tensors, state = found
        self.learner.restore({k.removeprefix("learner/"): v for k, v in tensors.items() if k.startswith("learner/")})
        self.buffer.restore({k.removeprefix("buffer/"): v for k, v in tensors.items() if k.startswith("buffer/")})
        self.step, self.seconds, self.faults = state["step"], state["seconds"], state["faults"]
        playing = {}
        for index, one in enumerate(state["envs"]):
            actions = [np.asarray(action, np.float32) for action in one["actions"]]
            start = Start(one["seed"], self.world.groups[self.names[one["group"]]], tuple(actions))  # type: ignore[union-attr]
            playing[index] = _Playing(start, one["group"], one["episode"], {}, actions, one["last"])
        if envs is not None:
            self._begin(envs, playing)
        logger.info("resuming %s after round %d", self.run_dir, self.step)
        return True


def play(envs: VectorEnv, act: Act, starts: Sequence[Start]) -> list[dict[str, Any]]:
    """The last info of an episode from every start."""
    finals: list[dict[str, Any]] = []
    for block in episodes(starts, envs.count):
        seen = envs.reset(dict(block))
        last: dict[int, dict[str, Any]] = {}
        while seen:
            actions = act(stacked(list(seen.values())))
            steps = envs.step(dict(zip(seen, actions, strict=True)))
            seen = {}
            for index, step in steps.items():
                if step.terminated or step.truncated:
                    last[index] = step.info
                else:
                    seen[index] = step.observation
        finals += [last[index] for index, _ in block]
    return finals


def policy_act(policy: PointActor) -> Act:
    """What a policy of one-step chunks does on its own."""

    def act(observation: Observation) -> Array:
        policy.eval()
        return policy.sample({key: observation[key] for key in policy.spec.observation}, 1, seed=0)[:, 0, 0]

    return act


def evaluation_starts(count: int, name: str, options: Mapping[str, Any], seed: int) -> list[Start]:
    """`count` episodes of the group `name` for evaluation; no run trains on their seeds, which lie above 2**31."""
    digest = sum(map(ord, name))
    seeds = np.random.SeedSequence([seed, digest]).generate_state(count, np.uint32).astype(np.int64)
    return [Start(int(value % 2**31) + 2**31, options) for value in seeds]


def numbers(info: Mapping[str, Any]) -> dict[str, float]:
    """The entries of an info that are numbers."""
    return {key: float(value) for key, value in info.items() if isinstance(value, bool | int | float | np.number)}


def bound_statistics(observation: Features, low: Array, high: Array) -> Statistics:
    """Statistics that make a normaliser take actions from low .. high (both [A]) to -1 .. 1 and leave observations alone."""
    out: Statistics = {ACTION: vector_statistics(np.linspace(low, high, 101))}
    out[ACTION] |= {"q01": np.asarray(low, np.float64), "q99": np.asarray(high, np.float64)}
    for key, feature in observation.items():
        if is_normalized(key, feature):
            ones = np.ones(feature.shape)
            out[key] = vector_statistics(np.linspace(-ones, ones, 101)) | {"mean": 0 * ones, "std": ones}
    return out


def _rng(*words: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(list(words)))


def _generator(device: torch.device, *words: int) -> torch.Generator:
    seed = int(np.random.SeedSequence([*words, 77]).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)
