"""What every scorer returns: a value, its standard error, how much data is behind it, and whether to believe it. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

Array = np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A score of one policy.

    value: NaN where not applicable. sd: standard error of the value. n_eff: effective number of independent units (episodes,
    conditions) behind it. applicable: whether the value means anything here; reason: why not, or a caveat.
    """

    value: float
    sd: float
    n_eff: float
    applicable: bool = True
    reason: str = ""

    @classmethod
    def refuse(cls, reason: str) -> Estimate:
        """No value, and why."""
        return cls(float("nan"), float("nan"), 0.0, False, reason)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; what is not finite is None."""
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(self).items()}


def clustered_mean(values: Any, episode: Any = None, weights: Any = None) -> tuple[float, float, float]:
    """Mean of values [N], its standard error where rows of an episode depend on each other, effective number of episodes.

    episode: int [N], the unit of sampling (default: every row is one). weights: [N] >= 0. The standard error is that of a
    ratio of sums over episodes (Cochran, Sampling Techniques, 6.3), NaN for a single one. The effective number is Kish's, of
    the episodes' weights.

    Raises:
        ValueError: shapes that differ, no row, weights that are negative or all zero.
    """
    x = np.asarray(values, np.float64)
    unit = np.arange(len(x)) if episode is None else np.unique(np.asarray(episode), return_inverse=True)[1]
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    if x.ndim != 1 or not x.size or unit.shape != x.shape or w.shape != x.shape or (w < 0).any() or w.sum() <= 0:
        raise ValueError(f"values {x.shape}, episode {unit.shape}, weights {w.shape}: needs one of each a row, weights >= 0")
    mean = float((w * x).sum() / w.sum())
    mass, residual = np.bincount(unit, w), np.bincount(unit, w * (x - mean))
    num = int((mass > 0).sum())
    sd = float(np.sqrt(num / (num - 1) * np.square(residual).sum()) / mass.sum()) if num > 1 else float("nan")
    return mean, sd, float(mass.sum() ** 2 / np.square(mass).sum())


def auroc(positive: Array, negative: Array) -> float:
    """P(positive > negative) + P(equal) / 2 of scores [M], [N]."""
    places = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    return float((places.sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative)))
