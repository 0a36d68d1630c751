"""Branched rollouts as data: states, the chunks that were tried in each, and what became of every try.

They are the truth about a critic: the value of a chunk, followed by the base policy, measured instead of learned. They are
also its cleanest training data, and the only one that a safety critic has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robopolicy.files import atomic_write
from robopolicy.spec import (
    ACTION,
    ACTION_IS_PAD,
    EPISODE,
    EPISODE_LENGTH,
    OUTCOME,
    STEP,
    SUCCESS,
    TASK,
    UNSAFE,
    Array,
    DatasetSpec,
    FeatureSpec,
    SpecError,
    did_you_mean,
)

FILE, INFO = "branches.npz", "branches.json"
NEVER = -1  # steps until an event that does not happen
_PARTS = ("candidates", "success", "steps", "progress", "seeds", "decisions")


@dataclass(frozen=True)
class Branches:
    """S states, K chunks tried in each, M continuations of each by the base policy.

    observation: {key: [S, To, ...]}; TASK is str [S]. candidates: float32 [S, K, H, A], physical units; number 0 is what the
        base policy would execute. success: bool [S, K, M]. steps: int64 [S, K, M], from the state to the end of the episode.
    progress: float32 [S, K, M, T], the task's progress after each of these steps; the last value goes on.
    events: {name: int64 [S, K, M]}, steps until it first happens, NEVER if it does not.
    seeds, decisions: int64 [S], the episode of a state and its control step in it.
    spec: features and rate. execute_horizon: steps of a chunk that are executed. facts: where it comes from, JSON values.
    """

    observation: Mapping[str, Array]
    candidates: Array
    success: Array
    steps: Array
    progress: Array
    events: Mapping[str, Array]
    seeds: Array
    decisions: Array
    spec: DatasetSpec
    execute_horizon: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.candidates)

    def values(self, gamma: float = 0.99) -> Array:
        """Discounted success [S, K], the mean over continuations: gamma to the steps until success, 0 without it."""
        return (self.success * gamma ** (self.steps - 1.0)).mean(2)

    def progress_values(self, gamma: float) -> Array:
        """Discounted mean of the progress that follows [S, K, M], the last value going on for ever. gamma: below 1."""
        weights = (1 - gamma) * gamma ** np.arange(self.progress.shape[-1])
        weights[-1] /= 1 - gamma
        return self.progress @ weights

    def unsafe(self, names: Sequence[str] | None = None, horizon: int | None = None) -> Array:
        """Whether one of the events `names` (None = any) happens within `horizon` steps (None = ever), bool [S, K, M].

        Raises:
            ValueError: an event that was not watched for.
        """
        for name in names or ():
            if name not in self.events:
                raise ValueError(f"no event {name!r} was watched for; {did_you_mean(name, self.events)}")
        found = np.zeros(self.success.shape, bool)
        for name in self.events if names is None else names:
            at = self.events[name]
            found |= (at != NEVER) & (at <= (horizon or np.iinfo(np.int64).max))
        return found

    def select(self, rows: Array) -> Branches:
        """The states `rows`, indices or a mask."""
        rows = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows)
        observation = {key: value[rows] for key, value in self.observation.items()}
        arrays = {name: getattr(self, name)[rows] for name in _PARTS}
        events = {name: value[rows] for name, value in self.events.items()}
        return Branches(
            observation, events=events, spec=self.spec, execute_horizon=self.execute_horizon, facts=self.facts, **arrays
        )

    def split(self, share: float) -> tuple[Branches, Branches]:
        """Two parts that share no episode; the second has `share` of the episodes, chosen by their seeds' hashes."""
        unique = np.unique(self.seeds)
        order = sorted(unique.tolist(), key=lambda seed: hashlib.sha256(str(seed).encode()).hexdigest())
        held = np.isin(self.seeds, order[: round(share * len(order))])
        return self.select(~held), self.select(held)

    @property
    def hash(self) -> str:
        """Identity of what is in it."""
        digest = hashlib.sha256()
        for name in _PARTS:
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        for key in sorted(self.observation):
            digest.update(key.encode() + np.ascontiguousarray(self.observation[key]).tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write the folder `path`."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self, name) for name in _PARTS}
        arrays |= {f"observation/{key}": value for key, value in self.observation.items()}
        arrays |= {f"events/{key}": value for key, value in self.events.items()}

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)

        atomic_write(path / FILE, write)
        info = {"spec": self.spec.to_dict(), "execute_horizon": self.execute_horizon, "facts": dict(self.facts)}
        atomic_write(path / INFO, (json.dumps(info, indent=1) + "\n").encode())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Branches:
        """What save() wrote.

        Raises:
            SpecError: no branches there.
        """
        if not is_branches(path):
            raise SpecError(f"{path} holds no branched rollouts ({FILE}, {INFO}): make them with `robopolicy branch`")
        info = json.loads((Path(path) / INFO).read_text())
        with np.load(Path(path) / FILE, allow_pickle=False) as file:
            arrays = dict(file)
        parts = {name: arrays[name] for name in _PARTS}
        observation, events = ({k.removeprefix(p): a for k, a in arrays.items() if k.startswith(p)} for p in _PREFIXES)
        spec = DatasetSpec.from_dict(info["spec"])
        return cls(observation, events=events, spec=spec, execute_horizon=info["execute_horizon"], facts=info["facts"], **parts)


_PREFIXES = ("observation/", "events/")


def is_branches(path: str | Path) -> bool:
    """Whether the folder holds branched rollouts."""
    return (Path(path) / FILE).is_file() and (Path(path) / INFO).is_file()


def concatenate(parts: Sequence[Branches]) -> Branches:
    """One of all, in their order; spec, horizon and facts are those of the first."""
    first = parts[0]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _PARTS}
    observation = {key: np.concatenate([part.observation[key] for part in parts]) for key in first.observation}
    events = {name: np.concatenate([part.events[name] for part in parts]) for name in first.events}
    return Branches(
        observation, events=events, spec=first.spec, execute_horizon=first.execute_horizon, facts=first.facts, **arrays
    )


class BranchWindows:
    """Branches as training windows: one for every state, chunk and continuation. The interface is that of data.windows.

    Besides what Windows gives: UNSAFE float32 [B], 1 where an event of `events` happens within `horizon` steps.
    OUTCOME, STEP and EPISODE_LENGTH say how and how soon the continuation ended.

    Args:
        observation_keys, obs_horizon, action_horizon: see Windows.
        events, horizon: see Branches.unsafe.

    Raises:
        SpecError: a key that was not recorded, or a horizon longer than what was.
    """

    def __init__(
        self,
        branches: Branches,
        observation_keys: Sequence[str],
        obs_horizon: int,
        action_horizon: int,
        events: Sequence[str] | None = None,
        horizon: int | None = None,
    ) -> None:
        self.data_hash, self.obs_horizon, self.action_horizon = branches.hash, obs_horizon, action_horizon
        self.branches, self.observation_keys = branches, tuple(observation_keys)
        for key in self.observation_keys:
            if key not in branches.observation:
                have = sorted(branches.observation)
                raise SpecError(f"the branches have no {key!r}; {did_you_mean(key, have)} Record it with observation=[...]")
            frames = branches.observation[key].shape[1] if key != TASK else obs_horizon
            if frames < obs_horizon:
                raise SpecError(f"the branches hold {frames} frames of {key!r}, obs_horizon={obs_horizon} needs more")
        if action_horizon > branches.execute_horizon:
            raise SpecError(
                f"{branches.execute_horizon} steps of the branches' chunks were executed, {action_horizon} are asked for"
            )
        tasks = tuple(np.unique(branches.observation[TASK]).tolist()) if TASK in branches.observation else ("",)
        features = {**branches.spec.features, TASK: FeatureSpec((), "str", values=tasks)}
        self.spec = DatasetSpec(features, branches.spec.fps)
        self._shape = branches.success.shape
        self._unsafe = branches.unsafe(events, horizon).astype(np.float32)
        self.episodes, self.lengths = branches.seeds, branches.steps.reshape(-1)

    def __len__(self) -> int:
        return int(np.prod(self._shape))

    def values(self, key: str) -> Array:
        """The last frames of an observation key, or all actions that were executed first, one after the other [n, ...]."""
        if key == ACTION:
            chunks = self.branches.candidates[:, :, : self.branches.execute_horizon]
            return chunks.reshape(-1, chunks.shape[-1])
        if key not in self.branches.observation:
            raise SpecError(f"{key!r} was not recorded; {did_you_mean(key, self.branches.observation)}")
        return self.branches.observation[key][:, -1]

    def observations(self, states: Array) -> dict[str, Array]:
        """Observations {key: [n, To, ...]} of states, TASK str [n]."""
        found = {key: self.branches.observation[key][states] for key in self.observation_keys}
        return {key: value if key == TASK else value[:, -self.obs_horizon :] for key, value in found.items()}

    def batch(self, indices: Array) -> dict[str, Array]:
        """Windows at `indices`, int [B] in 0..len(self) - 1; see Windows.batch."""
        state, chunk, rollout = np.unravel_index(np.asarray(indices), self._shape)
        b, batch = self.branches, self.observations(state)
        actions = b.candidates[state, chunk, : self.action_horizon]
        batch |= {ACTION: actions, ACTION_IS_PAD: np.zeros(actions.shape[:2], bool)}
        success = b.success[state, chunk, rollout]
        zero, ends = np.zeros(len(success), np.int64), b.steps[state, chunk, rollout]
        batch |= {SUCCESS: success, OUTCOME: success.astype(np.float32), UNSAFE: self._unsafe[state, chunk, rollout]}
        return batch | {EPISODE: b.seeds[state], STEP: zero, EPISODE_LENGTH: ends.astype(np.int64)}
