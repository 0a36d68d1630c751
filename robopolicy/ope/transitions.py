"""Recorded transitions between decisions, as tensors, checked once. N transitions, D features, A entries of a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Transitions:
    """What the steps between decisions brought: a chunk was executed in a state, and the next decision came.

    features, next_features: float32 [N, D] of a frozen encoder, or states. action: float32 [N, A], the executed chunk, flat.
    reward: float32 [N], sum over the chunk's steps of gamma^j r_j. discount: float32 [N], gamma^steps, 0 where the episode
    ended (terminated, not merely cut off). episode: int64 [N], the unit of resampling. start: bool [N], first of its episode.
    """

    features: Tensor
    action: Tensor
    reward: Tensor
    next_features: Tensor
    discount: Tensor
    episode: Tensor
    start: Tensor

    @classmethod
    def of(
        cls, features: Any, action: Any, reward: Any, next_features: Any, discount: Any, episode: Any, start: Any = None
    ) -> Transitions:
        """From arrays; chunks [N, H, A] are flattened. start: default: the first row of each episode, rows in order of time.

        Raises:
            ValueError: shapes that differ, values that are not finite, or discounts outside [0, 1].
        """
        f, a, r, n, d = (_tensor(x) for x in (features, action, reward, next_features, discount))
        a = a.flatten(1) if a.ndim > 2 else a
        num = len(f)
        if f.ndim != 2 or not num or f.shape != n.shape or a.ndim != 2 or any(len(x) != num for x in (a, r, d)) or r.ndim != 1:
            shapes = {"features": f.shape, "action": a.shape, "reward": r.shape, "next_features": n.shape, "discount": d.shape}
            given = ", ".join(f"{k} {list(v)}" for k, v in shapes.items())
            raise ValueError(f"{given}: needs [N, D], [N, A] or [N, H, A], [N], [N, D], [N]")
        for name, x in (("features", f), ("action", a), ("reward", r), ("next_features", n), ("discount", d)):
            if not torch.isfinite(x).all():
                raise ValueError(
                    f"{name} is not finite in row {int(torch.argwhere(~torch.isfinite(x))[0, 0])}: drop that episode"
                )
        if bool(((d < 0) | (d > 1)).any()):
            raise ValueError("a discount lies outside [0, 1]: it is gamma^steps, and 0 where the episode ended")
        codes = np.unique(np.asarray(episode), return_inverse=True)[1].astype(np.int64)
        if codes.shape != (num,):
            raise ValueError(f"episode has shape {list(codes.shape)}, expected [{num}]")
        first = np.zeros(num, bool)
        if start is None:
            first[np.unique(codes, return_index=True)[1]] = True
        else:
            first[:] = np.asarray(start, bool)
        return cls(f, a, r, n, d, torch.from_numpy(codes), torch.from_numpy(first))

    def rows(self, mask: Tensor) -> Transitions:
        """The rows of a mask bool [N]; episodes keep their numbers."""
        names = ("features", "action", "reward", "next_features", "discount", "episode", "start")
        return Transitions(*[getattr(self, name)[mask] for name in names])


def _tensor(x: Any) -> Tensor:
    return x.to(torch.float32) if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x, np.float32))


@dataclass(frozen=True)
class Scale:
    """Centre and spread [D] of a quantity, for networks; entries that do not vary are centred only."""

    centre: Tensor
    spread: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Scale:
        """Those of the rows of x [N, D]."""
        spread = x.std(0, correction=0)
        floor = 1e-6 * x.abs().amax(0).clamp(min=1e-12)
        return cls(x.mean(0), torch.where(spread > floor, spread, torch.ones_like(spread)))

    def __call__(self, x: Tensor) -> Tensor:
        """In units of the spread."""
        return (x - self.centre) / self.spread
