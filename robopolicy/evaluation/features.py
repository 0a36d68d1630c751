"""What a checkpoint's encoder makes of observations: the features in which out-of-distribution detection looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robopolicy.data.episodes import EpisodeStore
from robopolicy.data.windows import Windows
from robopolicy.policies.load import load_policy
from robopolicy.spec import Array

BATCH = 256


def dataset_features(
    checkpoint: str | Path, store: EpisodeStore, episodes: list[int], num_frames: int, seed: int
) -> tuple[Array, Array]:
    """Features float32 [n, D] and the episode index int64 [n] of up to num_frames frames drawn from `episodes`.

    Raises:
        SpecError: the dataset lacks a key that the policy needs. ValueError: the policy offers no features.
    """
    policy = load_policy(checkpoint)
    if "features" not in policy.spec.capabilities:
        raise ValueError(
            f"{checkpoint} offers no features: rank it by simulated success alone, or train a policy that has them"
        )
    windows = Windows(store, tuple(policy.spec.observation), policy.spec.obs_horizon, 1, episodes=episodes)
    rows = np.random.default_rng(seed).permutation(len(windows))[:num_frames]
    rows.sort()
    out, owner = [], []
    for start in range(0, len(rows), BATCH):
        batch = windows.batch(rows[start : start + BATCH])
        out.append(policy.features({key: batch[key] for key in policy.spec.observation}))
        owner.append(batch["episode"])
    return np.concatenate(out), np.concatenate(owner)
