"""What a checkpoint's encoder makes of observations: the features in which out-of-distribution detection looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from robopolicy.policies.base import TrainablePolicy
from robopolicy.spec import EPISODE, Array, Observation

BATCH = 256


class Frames(Protocol):
    """Frames with their history, as data.windows.Windows gives them."""

    def __len__(self) -> int: ...

    def batch(self, indices: Array) -> dict[str, Array]:
        """{key: [B, To, ...]} and EPISODE int64 [B]."""


def draw_rows(total: int, num_frames: int, seed: int) -> Array:
    """Rows of up to num_frames of `total` frames, ascending: the same for every checkpoint."""
    rows = np.random.default_rng(seed).permutation(total)[:num_frames]
    rows.sort()
    return rows


def of_frames(
    policy: TrainablePolicy, make: Callable[[Observation], Array], frames: Frames, num_frames: int, seed: int
) -> tuple[Array, Array]:
    """make(what the policy sees) -> [B, ...] of up to num_frames of the frames: [n, ...], and their episodes int64 [n]."""
    rows = draw_rows(len(frames), num_frames, seed)
    out, owner = [], []
    for start in range(0, len(rows), BATCH):
        batch = frames.batch(rows[start : start + BATCH])
        out.append(make({key: batch[key] for key in policy.spec.observation}))
        owner.append(batch[EPISODE])
    return np.concatenate(out), np.concatenate(owner)
