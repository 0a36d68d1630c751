"""Intervals, paired tests and cluster bootstraps on plain arrays. Every draw comes from its own named Philox stream.

Letters: B bootstrap replicates, C checkpoints, K resampling units (conditions, episodes of observations, training runs).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from robopolicy.ranking import checks
from robopolicy.ranking.intervals import CONFIDENCE, tango, wilson

Array = np.ndarray
Interval = tuple[float, float]


def stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """The generator of (seed, purpose): the same on every machine and independent of what else was drawn before."""
    digest = hashlib.sha256(repr((int(seed), *purpose)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def mcnemar(base: Array, other: Array) -> tuple[int, int, float]:
    """Exact two-sided McNemar test of paired outcomes, bool [K] each: (only base succeeds, only other succeeds, p).

    Raises:
        ValueError: the two are not paired (different shapes).
    """
    a, b = np.asarray(base, dtype=bool), np.asarray(other, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"outcomes of shape {a.shape} and {b.shape} are not paired: give one row a shared condition")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = only_a + only_b
    return only_a, only_b, float(stats.binomtest(only_a, discordant).pvalue) if discordant else 1.0


def holm(p_values: Any) -> Array:
    """Holm-adjusted p-values (family-wise error), in the order given. Raises ValueError for values outside [0, 1]."""
    p = checks.vector(p_values, "p-values", min_size=0)
    if p.size and not 0 <= p.min() <= p.max() <= 1:
        raise ValueError(f"p-values reach from {p.min():g} to {p.max():g}: needs values in [0, 1]")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (p.size - np.arange(p.size)))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def bootstrap_weights(num_units: int, num_bootstrap: int, generator: np.random.Generator) -> Array:
    """How often each of K units is drawn in each replicate: int32 [B, K], rows sum to K."""
    return generator.multinomial(num_units, np.full(num_units, 1 / num_units), size=num_bootstrap).astype(np.int32)


def bootstrap_means(sums: Array, counts: Array, weights: Array) -> Array:
    """Means [B, C] over resampled units, from per-unit sums [C, K], episodes per unit [K] and weights [B, K]."""
    w = weights.astype(np.float64)
    return (w @ np.asarray(sums, dtype=np.float64).T) / (w @ np.asarray(counts, dtype=np.float64))[:, None]


def percentile_interval(draws: Array, confidence: float = CONFIDENCE) -> Interval:
    """Percentile interval of draws [B]; undefined (NaN) draws are left out, and all undefined gives (nan, nan)."""
    defined = np.asarray(draws, dtype=np.float64)
    defined = defined[np.isfinite(defined)]
    if not defined.size:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return float(low), float(high)


def ranks(scores: Array) -> Array:
    """Mid-ranks along the last axis of scores [..., C]: 1 is the largest score, ties share, NaN comes last."""
    scores = np.asarray(scores, dtype=np.float64)
    return stats.rankdata(-np.where(np.isnan(scores), -np.inf, scores), axis=-1)


def prob_top_k(rank_draws: Array, k: int) -> Array:
    """Share [C] of replicates in which each checkpoint is among the best k, from mid-ranks [B, C].

    Ties at the border share the places that are left, so the values sum to min(k, C).
    """
    first, last = (stats.rankdata(rank_draws, method=method, axis=-1) for method in ("min", "max"))
    return np.clip((k + 1 - first) / (last - first + 1), 0.0, 1.0).mean(axis=0)


@dataclass(frozen=True)
class RankSummary:
    """Where each of C policies stands: arrays [C]. Ranks count from 1 = best; ties share.

    median, low, high: of its rank over the draws. prob_best, prob_top[k]: probability of being best, among the best k.
    """

    median: Array
    low: Array
    high: Array
    prob_best: Array
    prob_top: dict[int, Array]


def rank_summary(score_draws: Array, k: Sequence[int] = (1, 3), confidence: float = 0.9) -> RankSummary:
    """Rank intervals, P(best) and P(top k) from draws of all scores together: bootstrap or posterior [B, C], larger = better.

    Draws must be joint (the same resampled conditions for all policies): what policies have in common then cancels.

    Raises:
        ValueError: not [B, C] with B, C >= 1, NaN, k outside 1..C, or confidence outside (0, 1).
    """
    draws = np.asarray(score_draws, dtype=np.float64)
    if draws.ndim != 2 or not draws.size:
        raise ValueError(f"draws of shape {draws.shape}: give [B, C], one row a replicate")
    if np.isnan(draws).any():
        raise ValueError("draws hold NaN: leave out policies that lack a score, or give -inf for last")
    wrong = [n for n in k if not 1 <= n <= draws.shape[1]]
    if wrong:
        raise ValueError(f"k={wrong[0]} for {draws.shape[1]} policies: use 1 <= k <= {draws.shape[1]}")
    tail = (1 - checks.fraction(confidence, "confidence")) / 2
    places = ranks(draws)
    low, median, high = np.quantile(places, [tail, 0.5, 1 - tail], axis=0, method="inverted_cdf")
    top = {int(n): prob_top_k(places, n) for n in {1, *k}}
    return RankSummary(median, low, high, top[1], {n: top[n] for n in sorted(top)})


@dataclass(frozen=True)
class PairedComparison:
    """Two policies on the same conditions. Rates are fractions; intervals are at `CONFIDENCE`.

    difference: other minus base, with Tango's score interval where every condition has one episode, else the percentile
        interval of a bootstrap over conditions.
    p_value: exact McNemar; None when a condition has more than one episode, where the test does not apply.
    """

    base: float
    base_interval: Interval
    other: float
    other_interval: Interval
    difference: float
    difference_interval: Interval
    only_base: int | None
    only_other: int | None
    p_value: float | None
    num_conditions: int
    num_episodes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def paired_comparison(
    base: Array, other: Array, counts: Array, generator: np.random.Generator, num_bootstrap: int
) -> PairedComparison:
    """Compares successes per condition, int [K] each, of `counts` [K] episodes per condition (the same for both).

    Raises:
        ValueError: different lengths, no conditions, or not 0 <= successes <= counts.
    """
    for values, name in ((base, "base"), (other, "other")):
        if np.shape(values) != np.shape(counts) or np.ndim(values) != 1 or not np.size(values):
            raise ValueError(f"{name} {np.shape(values)} and counts {np.shape(counts)}: give one of each per condition, [K]")
        checks.counts(values, counts)
    sums = np.stack([base, other]).astype(np.float64)
    episodes = int(np.sum(counts))
    rates = sums.sum(axis=1) / episodes
    low, high = wilson(sums.sum(axis=1), episodes)
    test: tuple[int | None, int | None, float | None] = (None, None, None)
    if (np.asarray(counts) == 1).all():
        test = lost, gained, _ = mcnemar(sums[0] > 0, sums[1] > 0)
        interval = tango(gained, lost, episodes)
    else:
        draws = bootstrap_means(sums, counts, bootstrap_weights(sums.shape[1], num_bootstrap, generator))
        interval = percentile_interval(draws[:, 1] - draws[:, 0])
    return PairedComparison(
        base=float(rates[0]),
        base_interval=(float(low[0]), float(high[0])),
        other=float(rates[1]),
        other_interval=(float(low[1]), float(high[1])),
        difference=float(rates[1] - rates[0]),
        difference_interval=(float(interval[0]), float(interval[1])),
        only_base=test[0],
        only_other=test[1],
        p_value=test[2],
        num_conditions=sums.shape[1],
        num_episodes=episodes,
    )


def cluster_bootstrap(
    statistic: Callable[[Array], Any], clusters: Sequence[str], generator: np.random.Generator, num_bootstrap: int
) -> Array:
    """Draws [B, ...] of statistic(indices) over whole clusters drawn with replacement.

    Checkpoints of one training run are not independent: resampling them one by one gives intervals far too narrow
    (coverage .54 to .91 instead of .95 with 3 to 10 checkpoints a run); resampling runs gives the nominal coverage.
    """
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    members = [np.flatnonzero(member == c) for c in range(len(names))]
    drawn = generator.integers(len(names), size=(num_bootstrap, len(names)))
    return np.asarray([statistic(np.concatenate([members[c] for c in row])) for row in drawn], dtype=np.float64)
