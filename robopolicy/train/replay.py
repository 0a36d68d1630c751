"""Transitions in memory, in halves: a ring that is saved and restored as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robopolicy.batch import Batch, to_torch
from robopolicy.spec import Array, Features, Observation

NEXT = "next."


@dataclass(frozen=True)
class Transition:
    """One step. action [H, A] normalised. ended: whether nothing follows (terminated, not cut off). group: see ReplayBuffer."""

    observation: Observation
    action: Array
    reward: float
    following: Observation
    ended: bool
    group: int = 0


@dataclass(frozen=True)
class Transitions:
    """A batch: observations {key: [B, 1, ...]} now and next, normalised actions [B, H, A], rewards [B], ended bool [B]."""

    now: Batch
    action: Tensor
    reward: Tensor
    following: Batch
    ended: Tensor


class ReplayBuffer:
    """The last `capacity` transitions of each of `groups` groups (regions: a batch is of one group, as in the paper's code).

    Observations are kept in float16: at 1 m that is half a millimetre.
    """

    def __init__(self, observation: Features, action_shape: tuple[int, int], capacity: int, groups: int = 1) -> None:
        if capacity < 1:
            raise ValueError(f"replay_capacity={capacity} must be at least 1")
        self.capacity, self.groups, self.keys = capacity, groups, tuple(observation)
        self.arrays: dict[str, Array] = {}
        for key, feature in observation.items():
            dtype = np.float16 if np.dtype(feature.dtype).kind == "f" else np.dtype(feature.dtype)
            for name in (key, NEXT + key):
                self.arrays[name] = np.zeros((groups, capacity, *feature.shape), dtype)
        self.arrays["action"] = np.zeros((groups, capacity, *action_shape), np.float32)
        self.arrays["reward"] = np.zeros((groups, capacity), np.float32)
        self.arrays["ended"] = np.zeros((groups, capacity), bool)
        self.count = np.zeros(groups, np.int64)

    def __len__(self) -> int:
        return int(np.minimum(self.count, self.capacity).sum())

    def add(self, transition: Transition) -> None:
        """Keep a transition, in place of the oldest of its group when that is full."""
        group, row = transition.group, int(self.count[transition.group] % self.capacity)
        for key in self.keys:
            self.arrays[key][group, row] = transition.observation[key]
            self.arrays[NEXT + key][group, row] = transition.following[key]
        for name in ("action", "reward", "ended"):
            self.arrays[name][group, row] = getattr(transition, name)
        self.count[group] += 1

    def sample(self, size: int, rng: np.random.Generator, device: torch.device | str = "cpu") -> tuple[int, Transitions]:
        """A group that has transitions, and `size` of them with repetition."""
        group = int(rng.choice(np.flatnonzero(self.count)))
        rows = rng.integers(min(int(self.count[group]), self.capacity), size=size)
        picked = {name: array[group, rows] for name, array in self.arrays.items()}
        halves = {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in picked.items()}
        tensors = to_torch(halves, device)
        now, following = ({key: tensors[prefix + key].unsqueeze(1) for key in self.keys} for prefix in ("", NEXT))
        return group, Transitions(now, tensors["action"], tensors["reward"], following, tensors["ended"])

    def state(self) -> dict[str, Tensor]:
        """What restore() takes: the filled rows of every array."""
        filled = int(min(self.count.max(initial=0), self.capacity))
        out = {name: torch.from_numpy(array[:, :filled].copy()) for name, array in self.arrays.items()}
        return {**out, "count": torch.from_numpy(self.count.copy())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Return to what state() saw."""
        self.count = state["count"].numpy().copy()
        for name, array in self.arrays.items():
            saved = state[name].numpy()
            array[:, : saved.shape[1]] = saved
