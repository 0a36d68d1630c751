"""Training windows over the steps of episodes: To frames of history and the H actions that follow.

Vectors are held in memory. So are images, depth and points of as many episodes as a budget allows; those of the others
are decoded from their files when a window needs them, so memory stays flat however large the dataset is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from tqdm import tqdm

from robopolicy.data.episodes import EpisodeStore
from robopolicy.spec import (
    ACTION,
    ACTION_IS_PAD,
    CHUNK_SUCCESS,
    EPISODE,
    EPISODE_LENGTH,
    HAS_SUCCESSOR,
    OUTCOME,
    STEP,
    SUCCESS,
    TASK,
    TERMINATED,
    Array,
    DatasetSpec,
    FeatureSpec,
    SpecError,
    did_you_mean,
    successor,
)

logger = logging.getLogger(__name__)

MEMORY_GB = 4.0
_SHOW_PROGRESS = 200  # episodes; fewer load in a moment


def window_indices(
    step: Array, start: Array, length: Array, *, obs_horizon: int, action_horizon: int
) -> tuple[Array, Array, Array]:
    """Rows of a window's frames and actions in arrays where episodes lie one after the other.

    Args:
        step: current step within the episode, int [B].
        start: row of the episode's first step, int [B].
        length: steps of the episode, int [B].
        obs_horizon: To; the last frame is the current one, frames before the episode repeat its first.
        action_horizon: H; the chunk starts at the current step, actions past the episode's end repeat its last.

    Returns:
        Frame rows int [B, To], action rows int [B, H], and whether an action is such a repetition, bool [B, H].
    """
    frames = step[:, None] + np.arange(1 - obs_horizon, 1)
    actions = step[:, None] + np.arange(action_horizon)
    last = length[:, None] - 1
    return start[:, None] + np.maximum(frames, 0), start[:, None] + np.minimum(actions, last), actions > last


def episode_tasks(store: EpisodeStore) -> Array:
    """The task of every episode of the store, str [E]; "" where none was recorded."""
    if TASK not in store.table.column_names:
        return np.full(len(store), "")
    return np.array([task or "" for task in store.table[TASK].to_pylist()], str)


def task_feature(store: EpisodeStore, episodes: Sequence[int] | None = None) -> FeatureSpec:
    """The feature TASK of a store: its values are the tasks of `episodes` (None = all), sorted."""
    tasks = episode_tasks(store)
    chosen = tasks if episodes is None else tasks[np.asarray(episodes, np.int64)]
    return FeatureSpec((), "str", values=tuple(np.unique(chosen).tolist()))


def discounted_rewards(rewards: Array, lengths: Array, gamma: float) -> Array:
    """(1 - gamma) sum_k gamma^k r_{t+k} at every step [n] of episodes one after the other, the last reward going on for ever.

    In the range of the rewards. Where these are 1 at success and else 0, it is gamma to the steps left until success.
    """
    found = np.asarray(rewards, np.float64).copy()
    for stop, length in zip(np.cumsum(lengths), lengths, strict=True):
        for t in range(stop - 2, stop - length - 1, -1):
            found[t] = (1 - gamma) * found[t] + gamma * found[t + 1]
    return found.astype(np.float32)


class TrainingWindows(Protocol):
    """What can be trained on, see Windows: a number of windows, batches of them, and whole columns for statistics."""

    spec: DatasetSpec
    obs_horizon: int

    def __len__(self) -> int: ...

    def values(self, key: str) -> Array:
        """All values of `key` [n, ...], one after the other."""

    def batch(self, indices: Array) -> dict[str, Array]:
        """Windows at `indices`, int [B] in 0..len(self) - 1."""


class Windows:
    """A window for every step of the chosen episodes but a last one that ended in a fault. Images stay uint8.

    Args:
        store: the dataset.
        observation_keys: keys given with To frames. TASK among them is given as text [B], from the episode table.
        obs_horizon: To. action_horizon: H.
        keys: further keys given at the current step only, e.g. SUCCESS.
        episodes: rows of the store to use; None for all.
        successor_horizon: h; where above 0, windows also hold what follows h steps later, see batch().
        extras: {key: [len(self), ...]} from outside the dataset, a row for every step of the chosen episodes in a row, such
            as WEIGHT or PROPOSALS.
        memory_gb: budget (1e9 bytes) for observations with more than one axis per step. The first episodes that fit are
            read once; windows of the others are read from the files, which gives the same values more slowly.

    Attributes:
        spec: DatasetSpec of the store, and the feature TASK. data_hash: its hash.
        episodes: rows of the store in use, int64 [E]. lengths: their steps, int64 [E]. Neither knows a faulty last step.

    Raises:
        SpecError: the dataset lacks a key or an episode, a horizon below 1, or no episodes.
    """

    def __init__(
        self,
        store: EpisodeStore,
        observation_keys: Sequence[str],
        obs_horizon: int,
        action_horizon: int,
        keys: Sequence[str] = (),
        episodes: Sequence[int] | None = None,
        memory_gb: float = MEMORY_GB,
        successor_horizon: int = 0,
        extras: Mapping[str, Array] | None = None,
    ) -> None:
        if obs_horizon < 1 or action_horizon < 1 or successor_horizon < 0:
            raise SpecError(
                f"obs_horizon={obs_horizon} and action_horizon={action_horizon} must be at least 1, "
                f"successor_horizon={successor_horizon} at least 0"
            )
        self.data_hash = store.hash
        self.observation_keys = tuple(key for key in observation_keys if key != TASK)
        self.gives_task, self.keys = TASK in observation_keys, tuple(keys)
        self.obs_horizon, self.action_horizon = obs_horizon, action_horizon
        self.successor_horizon, self.extras = successor_horizon, dict(extras or {})
        if successor_horizon:
            self.keys += tuple(key for key in (SUCCESS, TERMINATED) if key in store.spec.features and key not in self.keys)
        self.episodes = np.arange(len(store)) if episodes is None else np.asarray(episodes, np.int64)
        if not len(self.episodes):
            raise SpecError(f"no episodes chosen of the {len(store)} in {store.path}")
        for index in self.episodes:
            if not 0 <= index < len(store):
                raise SpecError(f"no episode {index}: {store.path} has episodes 0 to {len(store) - 1}")
        lengths = store.lengths - np.array([bool(fault) for fault in store.faults])
        self.episodes = self.episodes[lengths[self.episodes] > 0]
        if not len(self.episodes):
            raise SpecError(f"all chosen episodes of {store.path} ended in a fault at their first step")
        self.lengths = lengths[self.episodes]
        self.spec = replace(store.spec, features={**store.spec.features, TASK: task_feature(store, self.episodes.tolist())})
        self._tasks = episode_tasks(store)[self.episodes]
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._row_episode = np.repeat(np.arange(len(self.episodes)), self.lengths)
        for key, array in self.extras.items():
            if len(array) != len(self):
                raise SpecError(f"{key!r} has {len(array)} rows, the chosen episodes have {len(self)} steps")
        self._store = store
        self._values = self._load(store, memory_gb)
        if SUCCESS in self.keys:
            reached = np.logical_or.reduceat(self._values[SUCCESS], self._starts[:-1])
            self._outcomes = reached.astype(np.float32)

    def __len__(self) -> int:
        return len(self._row_episode)

    def values(self, key: str) -> Array:
        """All recorded steps of a loaded key, episodes one after the other, [len(self), ...] without padding."""
        if key not in self._values:
            raise SpecError(f"{key!r} was not loaded; {did_you_mean(key, self._values)}")
        if len(self._values[key]) < len(self):
            raise SpecError(f"{key!r} is in memory for {self.num_resident} of {len(self)} steps only; raise memory_gb")
        return self._values[key]

    def action_values(self) -> Array:
        """All recorded actions [len(self), A], physical units."""
        return self.values(ACTION)

    def batch(self, indices: Array) -> dict[str, Array]:
        """Windows at `indices`, int [B] in 0..len(self) - 1; index i is the i-th step of all episodes in a row.

        Returns:
            Observation keys [B, To, ...]; ACTION [B, H, A], whose first action belongs to the last frame; ACTION_IS_PAD
            bool [B, H], True where an action past the episode's end repeats the last; the further keys [B, ...] at the
            current step; EPISODE (row in the store), STEP and EPISODE_LENGTH, int64 [B]. With SUCCESS among the further
            keys also OUTCOME, float32 [B]: 1 when the episode succeeds at any of its steps, else 0. TASK, str [B], when it
            is among the observation keys. The extras at the current step.

            With a successor_horizon h, and t the current step: successor(key) [B, To, ...] of the observation keys, and
            successor(key) of the extras, at step t + h or the last one; CHUNK_SUCCESS, HAS_SUCCESSOR.
        """
        rows = np.asarray(indices)
        episode = self._row_episode[rows]
        start, length = self._starts[episode], self.lengths[episode]
        frames, actions, is_pad = window_indices(
            rows - start, start, length, obs_horizon=self.obs_horizon, action_horizon=self.action_horizon
        )
        batch = self._take(self.observation_keys, frames) | self._take(self.keys, rows)
        if SUCCESS in self.keys:
            batch[OUTCOME] = self._outcomes[episode]
        if self.gives_task:
            batch[TASK] = self._tasks[episode]
        batch |= {ACTION: self._values[ACTION][actions], ACTION_IS_PAD: is_pad}
        batch |= {key: array[rows] for key, array in self.extras.items()}
        if self.successor_horizon:
            batch |= self._successors(rows, start, length)
        return batch | {EPISODE: self.episodes[episode], STEP: rows - start, EPISODE_LENGTH: length}

    def _successors(self, rows: Array, start: Array, length: Array) -> dict[str, Array]:
        """What follows `successor_horizon` steps after the current ones; see batch()."""
        horizon, step = self.successor_horizon, rows - start
        later = np.minimum(step + horizon, length - 1)
        frames, _, _ = window_indices(later, start, length, obs_horizon=self.obs_horizon, action_horizon=1)
        found = {successor(key): value for key, value in self._take(self.observation_keys, frames).items()}
        found |= {successor(key): array[start + later] for key, array in self.extras.items()}
        _, chunk, is_pad = window_indices(step, start, length, obs_horizon=1, action_horizon=horizon)
        nothing = np.zeros(len(self), bool)
        success, terminated = (self._values.get(key, nothing)[chunk] & ~is_pad for key in (SUCCESS, TERMINATED))
        return found | {CHUNK_SUCCESS: success, HAS_SUCCESSOR: (step + horizon < length) & ~terminated.any(1)}

    def _take(self, keys: Sequence[str], rows: Array) -> dict[str, Array]:
        """{key: [*rows.shape, ...]}: steps `rows`, from memory and, beyond the resident ones, from the files."""
        taken = {key: self._values[key][rows] for key in keys if len(self._values[key]) == len(self)}
        partial = [key for key in keys if key not in taken]
        if not partial:
            return taken
        unique, inverse = np.unique(rows, return_inverse=True)
        split = int(np.searchsorted(unique, self.num_resident))
        steps = {key: np.empty((len(unique), *self._values[key].shape[1:]), self._values[key].dtype) for key in partial}
        for key in partial:
            steps[key][:split] = self._values[key][unique[:split]]
        owners = self._row_episode[unique[split:]]
        for position in np.unique(owners):
            at = split + np.flatnonzero(owners == position)
            local = unique[at] - self._starts[position]
            first, last = int(local[0]), int(local[-1])
            for key, array in self._store.read(int(self.episodes[position]), partial, first, last + 1).items():
                steps[key][at] = array[local - first]
        return taken | {key: array[inverse.reshape(rows.shape)] for key, array in steps.items()}

    def _load(self, store: EpisodeStore, memory_gb: float) -> dict[str, Array]:
        needed = list(dict.fromkeys([*self.observation_keys, ACTION, *self.keys]))
        for key in needed:
            if key not in store.spec.features:
                available = sorted(store.spec.features)
                raise SpecError(f"{store.path} has no key {key!r}; {did_you_mean(key, available)} Its keys: {available}")
        features = {key: store.spec.features[key] for key in needed}
        large = [key for key, feature in features.items() if len(feature.shape) > 1 and key != ACTION]
        step_bytes = sum(math.prod(features[key].shape) * np.dtype(features[key].dtype).itemsize for key in large)
        num_resident = np.searchsorted(self._starts * step_bytes, memory_gb * 1e9, side="right") - 1  # episodes
        self.num_resident = int(self._starts[num_resident])
        if self.num_resident < len(self):
            share = self.num_resident / len(self)
            logger.info("%.0f %% of the images fit into memory_gb=%g; the others are read when needed", 100 * share, memory_gb)
        rows = {key: self.num_resident if key in large else len(self) for key in needed}
        values = {key: np.empty((rows[key], *features[key].shape), features[key].dtype) for key in needed}
        hidden = len(self.episodes) <= _SHOW_PROGRESS
        for position, index in enumerate(tqdm(self.episodes, desc="load", unit="episode", disable=hidden, leave=False)):
            steps = slice(self._starts[position], self._starts[position + 1])
            wanted = [key for key in needed if steps.stop <= rows[key]]
            for key, array in store.read(int(index), wanted, stop=int(self.lengths[position])).items():
                values[key][steps] = array
        return values
