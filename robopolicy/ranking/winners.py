"""The best of many is partly lucky: shrink what it showed, and quote only what it shows again on fresh conditions.

With true rates ~ Beta(8, 4), the best of 1,000 after 20 episodes each shows 1.000 and is truly 0.877.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from robopolicy.ranking import checks
from robopolicy.ranking.intervals import CONFIDENCE, clopper_pearson

Array = np.ndarray

MAX_CONCENTRATION = 1e5  # of the pool's Beta distribution: all policies are equal


@dataclass(frozen=True)
class Shrunk:
    """Posterior of each true rate under the pool's own distribution Beta(alpha, beta): mean, low, high [C]."""

    alpha: float
    beta: float
    mean: Array
    low: Array
    high: Array


def shrink(successes: Any, trials: Any, confidence: float = CONFIDENCE) -> Shrunk:
    """Empirical Bayes over the pool: Beta(alpha, beta) by maximum marginal likelihood, then each policy's posterior.

    Chosen for its score or not, a policy's posterior stays the same, so the winner's is not inflated, as far as the pool is
    one population and large (tens of policies). Intervals leave out the uncertainty of alpha and beta.

    Raises:
        ValueError: bad counts, fewer than 2 policies, or confidence outside (0, 1).
    """
    k, n = checks.counts(successes, trials)
    if k.ndim != 1 or k.size < 2:
        raise ValueError(f"successes of shape {k.shape}: shrinkage needs the pool, at least 2 policies")
    (ku, nu), count = _distinct(k, n)

    def loss(x: Array) -> float:
        mean, size = special.expit(x[0]), np.exp(x[1])
        a, b = mean * size, (1 - mean) * size
        return -float(count @ (special.betaln(ku + a, nu - ku + b) - special.betaln(a, b)))

    start = np.array([special.logit((k.sum() + 1) / (n.sum() + 2)), np.log(10.0)])
    limits = [(-12.0, 12.0), (np.log(0.1), np.log(MAX_CONCENTRATION))]
    x = optimize.minimize(loss, start, method="L-BFGS-B", bounds=limits).x
    mean, size = special.expit(x[0]), np.exp(x[1])
    a, b = mean * size + k, (1 - mean) * size + n - k
    tail = (1 - checks.fraction(confidence, "confidence")) / 2
    low, high = stats.beta.ppf(tail, a, b), stats.beta.ppf(1 - tail, a, b)
    return Shrunk(float(mean * size), float((1 - mean) * size), a / (a + b), low, high)


def _distinct(k: Array, n: Array) -> tuple[tuple[Array, Array], Array]:
    rows, count = np.unique(np.stack([k, n]), axis=1, return_counts=True)
    return (rows[0], rows[1]), count.astype(np.float64)


@dataclass(frozen=True)
class Finalist:
    """index: in the pool. selected: rate on the conditions that chose it, not to be quoted. shrunk: what the pool makes of it.

    confirmed, low, high: rate on fresh conditions; intervals cover for all finalists at once. optimism: selected - confirmed.
    """

    index: int
    selected: float
    shrunk: float
    confirmed: float
    low: float
    high: float
    optimism: float


def confirm(
    successes: Any,
    trials: Any,
    finalists: Any,
    confirm_successes: Any,
    confirm_trials: Any,
    confidence: float = CONFIDENCE,
) -> list[Finalist]:
    """The headline numbers of the finalists [F], from episodes on conditions that had no part in choosing them.

    successes, trials: [C] of the whole pool on `select`. finalists: their F indices. confirm_*: [F] on `confirm`.
    Intervals are Clopper-Pearson at 1 - (1 - confidence) / F, so that all hold together whichever is deployed.

    Raises:
        ValueError: bad counts, no finalists, repeated or unknown ones, or not one confirmation each.
    """
    chosen = np.asarray(finalists)
    k, n = checks.counts(successes, trials)
    if chosen.ndim != 1 or not chosen.size or len(set(chosen.tolist())) != chosen.size:
        raise ValueError(f"finalists={finalists}: give their indices in the pool, each once, at least one")
    if not np.issubdtype(chosen.dtype, np.integer) or chosen.min() < 0 or chosen.max() >= k.size:
        raise ValueError(f"finalists={finalists} of a pool of {k.size}: indices from 0 to {k.size - 1}")
    again, of = checks.counts(confirm_successes, confirm_trials)
    if again.shape != chosen.shape:
        raise ValueError(f"{chosen.size} finalists and confirmations of shape {again.shape}: give one of each")
    shrunk = shrink(k, n).mean if k.size > 1 else (k + 1) / (n + 2)
    low, high = clopper_pearson(again, of, 1 - (1 - checks.fraction(confidence, "confidence")) / chosen.size)
    rows = zip(chosen, again / of, low, high, strict=True)
    return [
        Finalist(
            index=int(i),
            selected=float(k[i] / n[i]),
            shrunk=float(shrunk[i]),
            confirmed=float(rate),
            low=float(a),
            high=float(b),
            optimism=float(k[i] / n[i] - rate),
        )
        for i, rate, a, b in rows
    ]
