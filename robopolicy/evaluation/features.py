"""What a checkpoint's encoder makes of observations: the features in which out-of-distribution detection looks."""

from __future__ import annotations

import numpy as np

from robopolicy.data.episodes import EpisodeStore
from robopolicy.data.windows import Windows
from robopolicy.policies.base import TrainablePolicy
from robopolicy.spec import Array

BATCH = 256


def dataset_features(
    policy: TrainablePolicy, store: EpisodeStore, episodes: list[int], num_frames: int, seed: int
) -> tuple[Array, Array]:
    """Features float32 [n, D] and the episode index int64 [n] of up to num_frames frames drawn from `episodes`.

    Raises:
        SpecError: the dataset lacks a key that the policy needs.
    """
    windows = Windows(store, tuple(policy.spec.observation), policy.spec.obs_horizon, 1, episodes=episodes)
    rows = np.random.default_rng(seed).permutation(len(windows))[:num_frames]
    rows.sort()
    out, owner = [], []
    for start in range(0, len(rows), BATCH):
        batch = windows.batch(rows[start : start + BATCH])
        out.append(policy.features({key: batch[key] for key in policy.spec.observation}))
        owner.append(batch["episode"])
    return np.concatenate(out), np.concatenate(owner)
