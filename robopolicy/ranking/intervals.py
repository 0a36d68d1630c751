"""Two-sided intervals of a success rate from counts. Scalars give floats, arrays broadcast.

| interval | coverage | when |
| `clopper_pearson` | at least nominal, at any n, n fixed beforehand | claims, gates |
| `wilson` | nominal on average over rates, below it at some | tables, plots |
| `anytime_binomial` | at least nominal at all n at once | looking after every episode, stopping early |
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special, stats

from robopolicy.ranking import checks

Array = np.ndarray

CONFIDENCE = 0.95


def wilson(successes: Any, trials: Any, confidence: float = CONFIDENCE) -> tuple[Any, Any]:
    """Score interval (low, high) of a binomial proportion (Wilson 1927). Approximate: see the module.

    Raises:
        ValueError: not whole numbers 0 <= successes <= trials, trials >= 1, or confidence outside (0, 1).
    """
    k, n = checks.counts(successes, trials)
    z = stats.norm.ppf((1 + checks.fraction(confidence, "confidence")) / 2)
    centre = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
    return np.where(k == 0, 0.0, centre - half)[()], np.where(k == n, 1.0, centre + half)[()]


def clopper_pearson(successes: Any, trials: Any, confidence: float = CONFIDENCE) -> tuple[Any, Any]:
    """Exact, conservative interval (low, high) of a binomial proportion (Clopper and Pearson 1934).

    Raises:
        ValueError: not whole numbers 0 <= successes <= trials, trials >= 1, or confidence outside (0, 1).
    """
    k, n = checks.counts(successes, trials)
    tail = (1 - checks.fraction(confidence, "confidence")) / 2
    low = stats.beta.ppf(tail, np.maximum(k, 1), n - k + 1)
    high = stats.beta.ppf(1 - tail, k + 1, np.maximum(n - k, 1))
    return np.where(k == 0, 0.0, low)[()], np.where(k == n, 1.0, high)[()]


def anytime_binomial(successes: Any, trials: Any, confidence: float = CONFIDENCE) -> tuple[Any, Any]:
    """Interval (low, high) that covers at every number of trials at once, so one may stop whenever one likes.

    All rates p whose likelihood ratio against a uniform mixture, B(k + 1, n - k + 1) / (p^k (1 - p)^(n - k)), stays below
    1 / (1 - confidence): a martingale under p, so Ville's inequality holds at all times (Robbins 1970). Depends on the
    counts alone, not on their order.

    Raises:
        ValueError: not whole numbers 0 <= successes <= trials, trials >= 1, or confidence outside (0, 1).
    """
    k, n = checks.counts(successes, trials)
    budget = -np.log1p(-checks.fraction(confidence, "confidence"))
    evidence, peak = special.betaln(k + 1, n - k + 1), k / n

    def excluded(p: Array) -> Array:
        return evidence - special.xlogy(k, p) - special.xlog1py(n - k, -p) >= budget

    def edge(outside: Array) -> Array:
        """Bisection between an end that may be excluded and the peak, which never is; rounded outwards."""
        inside = peak.copy()
        for _ in range(60):
            middle = (outside + inside) / 2
            out = excluded(middle)
            outside, inside = np.where(out, middle, outside), np.where(out, inside, middle)
        return outside

    low, high = edge(np.zeros_like(peak)), edge(np.ones_like(peak))
    return np.where(k == 0, 0.0, low)[()], np.where(k == n, 1.0, high)[()]
