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
NONE = -1


@dataclass(frozen=True)
class Transition:
    """One step. action [H, A] normalised. ended: whether nothing follows (terminated, not cut off). group: see
    ReplayBuffer. continues: whether it follows the one that a dataset gave before it.
    """

    observation: Observation
    action: Array
    reward: float
    following: Observation
    ended: bool
    group: int = 0
    continues: bool = False


@dataclass(frozen=True)
class Transitions:
    """A batch: observations {key: [B, 1, ...]} now and some steps later, normalised actions [B, H, A], the discounted rewards
    [B] of those steps, the discount [B] of what follows them, and whether nothing does, bool [B]."""

    now: Batch
    action: Tensor
    reward: Tensor
    following: Batch
    discount: Tensor
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
        self.arrays["successor"] = np.full((groups, capacity), NONE)
        self.count = np.zeros(groups, np.int64)

    def __len__(self) -> int:
        return int(np.minimum(self.count, self.capacity).sum())

    def add(self, transition: Transition, previous: int = NONE) -> int:
        """Keep a transition, in place of the oldest of its group when that is full; its number among those of the group.

        previous: number of the transition before it in its episode.
        """
        group, number = transition.group, int(self.count[transition.group])
        row = number % self.capacity
        for key in self.keys:
            self.arrays[key][group, row] = transition.observation[key]
            self.arrays[NEXT + key][group, row] = transition.following[key]
        for name in ("action", "reward", "ended"):
            self.arrays[name][group, row] = getattr(transition, name)
        self.arrays["successor"][group, row] = NONE
        if previous != NONE and number - previous < self.capacity:
            self.arrays["successor"][group, previous % self.capacity] = number
        self.count[group] += 1
        return number

    def sample(
        self, size: int, rng: np.random.Generator, device: torch.device | str = "cpu", *, steps: int = 1, gamma: float = 0.99
    ) -> tuple[int, Transitions]:
        """A group that has transitions, and `size` of them with repetition.

        steps: n, whose rewards are summed, fewer where an episode has no more (Peng and Williams 1996). gamma: of a step.
        """
        group = int(rng.choice(np.flatnonzero(self.count)))
        rows = rng.integers(min(int(self.count[group]), self.capacity), size=size)
        last, reward, discount = self._ahead(group, rows, steps, gamma)
        picked = {name: self.arrays[name][group, rows] for name in (*self.keys, "action")}
        picked |= {name: self.arrays[name][group, last] for name in (*(NEXT + key for key in self.keys), "ended")}
        halves = {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in picked.items()}
        tensors = to_torch({**halves, "reward": reward, "discount": discount}, device)
        now, following = ({key: tensors[prefix + key].unsqueeze(1) for key in self.keys} for prefix in ("", NEXT))
        return group, Transitions(now, tensors["action"], tensors["reward"], following, tensors["discount"], tensors["ended"])

    def _ahead(self, group: int, rows: Array, steps: int, gamma: float) -> tuple[Array, Array, Array]:
        """The rows of the last of `steps` transitions, their discounted rewards, and the discount of what follows."""
        last, reward = rows.copy(), self.arrays["reward"][group, rows]
        discount = np.full(rows.shape, gamma, np.float32)
        for _ in range(steps - 1):
            numbers = self.arrays["successor"][group, last]
            there = numbers != NONE
            last = np.where(there, numbers % self.capacity, last)
            reward = reward + np.where(there, discount * self.arrays["reward"][group, last], 0)
            discount = np.where(there, gamma * discount, discount)
        return last, reward.astype(np.float32), discount.astype(np.float32)

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
