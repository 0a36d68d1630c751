"""What is trained on: recorded episodes or branched rollouts, with a policy's proposals and weights for a target domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robopolicy.data.branches import Branches, BranchWindows, is_branches
from robopolicy.data.episodes import EpisodeStore
from robopolicy.data.manage import select_episodes
from robopolicy.data.transforms import is_normalized
from robopolicy.data.windows import MEMORY_GB, Windows, discounted_rewards, task_feature
from robopolicy.models.trainable import Trainable
from robopolicy.ope.dynamics_gap import GapConfig, dynamics_gap
from robopolicy.ope.transitions import Transitions
from robopolicy.policies.load import policy_at
from robopolicy.spec import (
    ACTION,
    EPISODE,
    HAS_SUCCESSOR,
    PROGRESS,
    PROPOSALS,
    REWARD,
    STEP,
    TASK,
    UNSAFE,
    WEIGHT,
    Array,
    CriticSpec,
    Features,
    FeatureSpec,
    Policy,
    PolicySpec,
    SpecError,
    successor,
)

ROWS = 512  # windows in one forward pass


class Recorded:
    """A dataset of episodes. observation: its features, TASK with the chosen episodes' tasks included."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.store = EpisodeStore(options["path"])
        self.episodes = select_episodes(self.store, options.get("where") or {})
        self.spec, self.hash = self.store.spec, self.store.hash
        self.observation: Features = {**self.spec.observation, TASK: task_feature(self.store, self.episodes)}

    def windows(self, module: Trainable, options: Mapping[str, Any], seed: int = 0) -> Windows:
        """Windows with all that `module` needs. options: see `source`.

        Raises:
            SpecError: proposals that are needed and not given, or a target domain that cannot be told from the rest.
        """
        extras: dict[str, Array] = {}
        if PROPOSALS in module.extra_keys:
            proposals = options.get("proposals") or {}
            if not proposals.get("checkpoint"):
                name = type(module).__name__
                raise SpecError(f"{name} compares with a policy's proposals: give data.proposals.checkpoint=CHECKPOINT")
            policy, num = policy_at(proposals["checkpoint"]), int(proposals.get("num", 4))
            extras[PROPOSALS] = proposed(self.store, policy, self.episodes, num, execute_horizon(module), seed)
        if PROGRESS in module.extra_keys:
            extras[PROGRESS] = progress(self.store, self.episodes, module)
        if options.get("target"):
            extras[WEIGHT] = target_weights(self.store, module, self.episodes, options["target"], GapConfig(seed=seed))
        return plain_windows(self.store, module, self.episodes, options, extras)


class Branched:
    """A folder of branched rollouts, for critics of outcomes."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        if options.get("where") or options.get("target"):
            raise SpecError("data.where and data.target choose among recorded episodes; branched rollouts have none")
        self.branches = Branches.load(options["path"])
        self.spec, self.hash = self.branches.spec, self.branches.hash
        tasks = tuple(np.unique(self.branches.observation[TASK]).tolist())
        self.observation: Features = {**self.spec.observation, TASK: FeatureSpec((), "str", values=tasks)}

    def windows(self, module: Trainable, options: Mapping[str, Any], seed: int = 0) -> BranchWindows:
        """A window for each state, chunk and continuation. options: see `source`.

        Raises:
            SpecError: a module that needs more than how each try ended.
        """
        spec, name = module.spec, type(module).__name__
        if not isinstance(spec, CriticSpec) or module.successor_horizon or module.extra_keys:
            raise SpecError(f"{name} learns from recorded episodes; branched rollouts are for critic=success and critic=safety")
        if UNSAFE in module.batch_keys and not self.branches.events:
            raise SpecError(f"{name} learns what is unsafe, and nothing was watched for in these branches: branch with limits")
        events = options.get("events"), options.get("event_horizon")
        return BranchWindows(self.branches, tuple(spec.observation), spec.obs_horizon, spec.execute_horizon, *events)


def source(options: Mapping[str, Any]) -> Recorded | Branched:
    """What is at options["path"].

    options, the node `data` of conf/train.yaml: path; of a dataset where, memory_gb, proposals {checkpoint, num} (whose
    chunks a critic compares with) and target (columns of the episode table that pick the episodes of the target domain:
    all others are weighed by how their dynamics fit it); of branches events and event_horizon (Branches.unsafe).

    Raises:
        SpecError, DatasetError: nothing that can be trained on.
    """
    return Branched(options) if is_branches(options["path"]) else Recorded(options)


def progress(store: EpisodeStore, episodes: Sequence[int], module: Trainable) -> Array:
    """Discounted rewards float32 [n] at every step of the episodes, by the module's gamma.

    Raises:
        SpecError: rewards outside [0, 1], or sparse ones.
    """
    windows = Windows(store, (), 1, 1, (REWARD,), episodes)
    rewards = windows.values(REWARD)
    dense = (
        "a critic of progress needs a dense reward (collect with +task.env.reward=dense); for success alone take critic=success"
    )
    parts = np.split(rewards, np.cumsum(windows.lengths)[:-1])
    sparse = sum(len(part) > 1 and part[-1] == 1 and not part[:-1].any() for part in parts)
    if sparse:
        raise SpecError(f"{sparse} of {len(parts)} episodes have no reward but 1 at their last step: {dense}")
    if not rewards.any():
        raise SpecError(f"{REWARD!r} is 0 everywhere: {dense}")
    if rewards.min() < 0 or rewards.max() > 1:
        raise SpecError(f"{REWARD!r} lies in {rewards.min():.3g} .. {rewards.max():.3g}; a critic of progress needs 0 .. 1")
    return discounted_rewards(rewards, windows.lengths, getattr(module, "gamma", 0.99))


def execute_horizon(module: Trainable) -> int:
    """Steps of a chunk that are executed."""
    return module.spec.execute_horizon


def plain_windows(
    store: EpisodeStore,
    module: Trainable,
    episodes: Sequence[int],
    options: Mapping[str, Any],
    extras: Mapping[str, Array] | None = None,
    successor_horizon: int | None = None,
) -> Windows:
    """Windows of the keys and horizons of `module`; successor_horizon: None = the module's own."""
    spec = module.spec
    horizon = spec.action_horizon if isinstance(spec, PolicySpec) else spec.execute_horizon
    later = module.successor_horizon if successor_horizon is None else successor_horizon
    memory_gb = options.get("memory_gb", MEMORY_GB)
    keys = tuple(spec.observation)
    return Windows(store, keys, spec.obs_horizon, horizon, module.batch_keys, episodes, memory_gb, later, extras)


def proposed(store: EpisodeStore, policy: Policy, episodes: Sequence[int], num: int, horizon: int, seed: int) -> Array:
    """The first `horizon` steps of `num` chunks that `policy` proposes at every step of the episodes, float32 [n, N, h, A]."""
    spec = policy.spec
    if differs := store.spec.action.difference(spec.action, "shape", "unit", "names"):
        name, mine, its = differs
        raise SpecError(f"data.proposals: the data's actions have {name} {mine}, those of the policy {its}")
    if spec.control_hz != store.spec.fps:
        raise SpecError(f"data.proposals: the data has {store.spec.fps} steps a second, the policy {spec.control_hz}")
    if spec.action_horizon < horizon:
        raise SpecError(f"the critic scores {horizon} steps, the policy's chunks have {spec.action_horizon}")
    windows = Windows(store, tuple(spec.observation), spec.obs_horizon, horizon, (), episodes)
    parts = []
    for number, rows in enumerate(np.array_split(np.arange(len(windows)), -(-len(windows) // ROWS))):
        batch = windows.batch(rows)
        observation = {key: batch[key] for key in spec.observation}
        parts.append(policy.sample(observation, num, seed + number)[:, :, :horizon])
    return np.concatenate(parts)


def target_weights(
    store: EpisodeStore,
    module: Trainable,
    episodes: Sequence[int],
    target: Mapping[str, Any],
    gap_config: GapConfig,
) -> Array:
    """Weights float32 [n] of the windows of `episodes`: 1 in the target domain, elsewhere P_target / P_simulator of what
    followed the chunk (H2O, arXiv 2206.13464), scaled to a mean of 1 there.

    Dynamics are seen in the vectors that the module looks at; where it looks at none, in all that were recorded.

    Raises:
        SpecError: no vector observations to see the dynamics in, or a ratio that cannot be trusted; it says why.
    """
    looked_at = [key for key, feature in module.spec.observation.items() if is_normalized(key, feature)]
    keys = looked_at or [key for key, feature in store.spec.observation.items() if is_normalized(key, feature)]
    if not keys:
        raise SpecError("data.target compares dynamics in vectors, such as observation.state: the data has none")
    horizon = execute_horizon(module)
    windows = Windows(store, tuple(keys), module.spec.obs_horizon, horizon, (), episodes, successor_horizon=horizon)
    batch = windows.batch(np.arange(len(windows)))
    chosen = set(select_episodes(store, target))
    ours = np.array([episode in chosen for episode in batch[EPISODE]])
    if ours.all() or not ours.any():
        raise SpecError(
            f"data.target picks {'all' if ours.all() else 'none'} of the episodes: it must tell the target from the rest"
        )
    now, then = (np.concatenate([batch[name(key)][:, -1] for key in keys], -1) for name in (str, successor))
    follows = batch[HAS_SUCCESSOR]

    def transitions(rows: Array) -> Transitions:
        nothing = np.zeros(int(rows.sum()), np.float32)
        return Transitions.of(now[rows], batch[ACTION][rows], nothing, then[rows], nothing, batch[EPISODE][rows])

    gap = dynamics_gap(transitions(~ours & follows), transitions(ours & follows), gap_config)
    if not gap.estimate.applicable:
        raise SpecError(f"data.target: the ratio of dynamics cannot be trusted: {gap.estimate.reason}")
    weights = np.ones(len(windows))
    weights[~ours & follows] = gap.ratio
    order = np.lexsort((batch[STEP], batch[EPISODE]))
    last = 1.0
    for row in order:  # a chunk that the episode's end cuts off has the weight of the one before it
        if batch[STEP][row] == 0:
            last = 1.0 if ours[row] else float(gap.ratio.mean())
        last = weights[row] = weights[row] if ours[row] or follows[row] else last
    weights[~ours] /= weights[~ours].mean()
    return weights.astype(np.float32)
