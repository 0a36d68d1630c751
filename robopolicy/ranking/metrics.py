"""How well predicted scores order policies, given what the policies obtained. Pure functions of two arrays [C].

`scores` are predictions (larger = better), `truth` is what was obtained (larger = better), in this order everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

Array = np.ndarray


def _pair(scores: Any, truth: Any) -> tuple[Array, Array]:
    s, r = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if s.shape != r.shape or s.ndim != 1 or not s.size:
        raise ValueError(f"scores of shape {s.shape} and truth of shape {r.shape}: give one of each per policy, both [C]")
    if not (np.isfinite(s).all() and np.isfinite(r).all()):
        raise ValueError("scores and truth must be finite: leave out policies that lack one of them")
    return s, r


def _top(scores: Array, truth: Array, k: int) -> Array:
    """Truth [k] of the k best scores. Ties are broken against the scorer (worst truth first), whatever the order given."""
    if not 1 <= k <= scores.size:
        raise ValueError(f"k={k} for {scores.size} policies: use 1 <= k <= {scores.size}")
    return truth[np.lexsort((truth, -scores))[:k]]


def pearson(scores: Any, truth: Any) -> float:
    """Linear correlation; NaN when either is constant or there are fewer than 2 policies."""
    s, r = _pair(scores, truth)
    s, r = s - s.mean(), r - r.mean()
    scale = np.linalg.norm(s) * np.linalg.norm(r)
    return float(np.clip(s @ r / scale, -1.0, 1.0)) if scale > 0 else float("nan")


def spearman(scores: Any, truth: Any) -> float:
    """Rank correlation: Pearson of mid-ranks; NaN when either is constant."""
    s, r = _pair(scores, truth)
    return pearson(stats.rankdata(s), stats.rankdata(r))


def kendall(scores: Any, truth: Any) -> float:
    """Kendall's tau-b (ties corrected); NaN when either is constant."""
    s, r = _pair(scores, truth)
    return float(stats.kendalltau(s, r).statistic)


def mmrv(scores: Any, truth: Any) -> float:
    """Mean maximum rank violation, in units of `truth`; 0 is a perfect order (SIMPLER, arXiv 2405.05941, section V).

    (1/C) sum_i max_j |R_i - R_j| 1[order of (S_i, S_j) differs from order of (R_i, R_j)]. Not symmetric in its
    arguments. A tie in the scores where the truth differs counts as a violation (SIMPLER's own code counts it for one of
    the two directions), so a constant score is penalised and never looks perfect.
    """
    s, r = _pair(scores, truth)
    gap = r[:, None] - r[None, :]
    violated = np.sign(s[:, None] - s[None, :]) != np.sign(gap)
    return float((np.abs(gap) * violated).max(axis=1).mean())


def regret_at_k(scores: Any, truth: Any, k: int) -> float:
    """max truth - max truth among the k best-scored, in units of `truth` (DOPE's regret, without its rescaling).

    Ties in the scores are broken against the scorer.

    Raises:
        ValueError: k outside 1..C.
    """
    s, r = _pair(scores, truth)
    return float(r.max() - _top(s, r, k).max())


@dataclass(frozen=True)
class Portfolio:
    """What trying the k best-scored policies would have brought. sharpe is None, with a reason, where undefined."""

    k: int
    best: float
    worst: float
    mean: float
    std: float
    baseline: float
    sharpe: float | None
    reason: str = ""


def portfolio_at_k(scores: Any, truth: Any, k: int, baseline: float) -> Portfolio:
    """best, worst, mean and std@k of the k best-scored policies, and SharpeRatio@k against `baseline`.

    SharpeRatio@k = (best@k - baseline) / std@k (Kiyohara et al., arXiv 2311.18207), with the convention of the paper:
    population standard deviation, numerator not clipped. SCOPE-RL's code uses ddof = 1 and clips at 0: other values.
    Undefined where std@k = 0 (k = 1, equal policies).

    Raises:
        ValueError: k outside 1..C.
    """
    s, r = _pair(scores, truth)
    chosen = _top(s, r, k)
    std = float(chosen.std())
    defined = std > 1e-12
    return Portfolio(
        k=k,
        best=float(chosen.max()),
        worst=float(chosen.min()),
        mean=float(chosen.mean()),
        std=std,
        baseline=float(baseline),
        sharpe=float((chosen.max() - baseline) / std) if defined else None,
        reason="" if defined else f"std@{k} is 0",
    )
