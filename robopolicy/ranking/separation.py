"""Which policies can be told apart: p-values of all pairs, and groups of those that cannot."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from scipy import sparse, special, stats
from scipy.sparse.csgraph import connected_components

from robopolicy.ranking import checks
from robopolicy.ranking.statistics import holm

Array = np.ndarray


def mcnemar_matrix(outcomes: Any) -> Array:
    """Exact two-sided McNemar p-values [C, C] of all pairs, from outcomes 0 or 1 [C, K] on the same K conditions.

    Raises:
        ValueError: not [C, K], or outcomes other than 0 and 1.
    """
    x = np.asarray(outcomes, dtype=np.float64)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"outcomes of shape {x.shape}: give [C, K], the same conditions for every policy")
    checks.outcomes(x.ravel(), "outcomes")
    only = x @ (1 - x).T
    discordant = only + only.T
    return np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(only, only.T), discordant, 0.5))


def fisher_matrix(successes: Any, trials: Any) -> Array:
    """Fisher's exact two-sided p-values [C, C] of all pairs, from successes [C] in so many trials [C] of each, not paired.

    Raises:
        ValueError: not whole numbers 0 <= successes <= trials, trials >= 1, one of each per policy.
    """
    k, n = (np.atleast_1d(x).astype(np.int64) for x in checks.counts(successes, trials))
    i, j = np.triu_indices(k.size, 1)
    order = np.lexsort((k[i] + k[j], n[j], n[i]))
    margins = np.stack([n[i], n[j], k[i] + k[j]])[:, order]
    edges = np.flatnonzero(np.diff(margins, axis=1, prepend=-1, append=-1).any(axis=0))
    p_values = np.ones((k.size, k.size))
    for start, stop in pairwise(edges):  # tables of equal margins have one distribution
        (first, second, won), at = margins[:, start], order[start:stop]
        support = np.arange(max(0, won - second), min(first, won) + 1)
        rest = won - support
        logs = -special.betaln(support + 1, first - support + 1) - special.betaln(rest + 1, second - rest + 1)
        mass = special.softmax(logs)
        ascending = np.sort(mass)
        total = np.cumsum(ascending)[np.searchsorted(ascending, mass * (1 + 1e-7), side="right") - 1]
        p_values[i[at], j[at]] = p_values[j[at], i[at]] = np.minimum(total[k[i[at]] - support[0]], 1.0)
    return p_values


def wald_matrix(scores: Any, draws: Any) -> Array:
    """Two-sided p-values [C, C] of all pairs from scores [C] and joint bootstrap draws [B, C]: for scores that are no 0 or 1.

    Normal approximation with the bootstrap variance of each paired difference; equal scores that never differ have p = 1.

    Raises:
        ValueError: shapes that do not match, NaN, or fewer than 2 draws.
    """
    s, d = checks.vector(scores, "scores"), np.asarray(draws, dtype=np.float64)
    if d.ndim != 2 or d.shape[1] != s.size or len(d) < 2 or not np.isfinite(d).all():
        raise ValueError(f"draws of shape {d.shape} for {s.size} scores: give finite [B, C] with B >= 2")
    covariance = np.atleast_2d(np.cov(d, rowvar=False))
    variance = np.diag(covariance)
    spread = np.sqrt(np.maximum(variance[:, None] + variance[None, :] - 2 * covariance, 0))
    gap = np.abs(s[:, None] - s[None, :])
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(gap > 0, gap / spread, 0.0)
    return 2 * stats.norm.sf(z)


def tie_groups(p_values: Any, scores: Any, *, alpha: float = 0.05) -> Array:
    """Group of each policy: int [C], 0 holds the best score. Policies of different groups are all told apart at alpha.

    Groups are the connected sets of pairs not separated: Holm-adjusted p > alpha over all C (C - 1) / 2 pairs. Being in one
    group does not mean being equal: a chain of near neighbours joins ends that differ.

    Raises:
        ValueError: p_values not [C, C] in [0, 1] for scores [C], NaN, or alpha outside (0, 1).
    """
    s, p = checks.vector(scores, "scores"), np.asarray(p_values, dtype=np.float64)
    if p.shape != (s.size, s.size):
        raise ValueError(f"p-values of shape {p.shape} for {s.size} scores: give [C, C]")
    checks.fraction(alpha, "alpha")
    i, j = np.triu_indices(s.size, 1)
    tied = holm(p[i, j]) > alpha
    graph = sparse.coo_matrix((np.ones(int(tied.sum())), (i[tied], j[tied])), shape=p.shape)
    number, member = connected_components(graph, directed=False)
    best = np.full(number, -np.inf)
    np.maximum.at(best, member, s)
    place = np.empty(number, dtype=np.int64)
    place[np.argsort(-best, kind="stable")] = np.arange(number)
    return place[member]
