"""Two-sided intervals of a success rate, or of the difference of two, from counts. Scalars give floats, arrays broadcast.

| interval | coverage | when |
| `clopper_pearson` | at least nominal, at any n, n fixed beforehand | claims, gates |
| `wilson` | nominal on average over rates, below it at some | tables, plots |
| `anytime_binomial` | at least nominal at all n at once | looking after every episode, stopping early |
| `tango` | nominal on average, also where no pair differs | the difference of two policies on the same conditions |
"""

from __future__ import annotations

from collections.abc import Callable
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

    low, high = _between(excluded, np.zeros_like(peak), peak), _between(excluded, np.ones_like(peak), peak)
    return np.where(k == 0, 0.0, low)[()], np.where(k == n, 1.0, high)[()]


def tango(gained: Any, lost: Any, pairs: Any, confidence: float = CONFIDENCE) -> tuple[Any, Any]:
    """Score interval (low, high) of the difference of two paired success rates, (gained - lost) / pairs (Tango 1998).

    gained, lost: pairs in which only the second, only the first succeeded. Where no pair differs it is z^2 / (pairs + z^2) to
    both sides, never a point. Approximate: see the module.

    Raises:
        ValueError: not whole numbers with gained + lost <= pairs, pairs >= 1, or confidence outside (0, 1).
    """
    b, n = checks.counts(gained, pairs)
    c, n = checks.counts(lost, n)
    checks.counts(b + c, n)
    b, c, n = np.broadcast_arrays(b, c, n)
    z = stats.norm.ppf((1 + checks.fraction(confidence, "confidence")) / 2)
    peak = (b - c) / n

    def excluded(difference: Array) -> Array:
        linear, product = (2 * n - b + c) * difference - b - c, c * difference * (1 - difference)
        fitted = (np.sqrt(np.maximum(linear**2 + 8 * n * product, 0)) - linear) / (4 * n)  # rate of lost pairs
        variance = n * np.maximum(2 * fitted + difference * (1 - difference), 0)
        return (b - c - n * difference) ** 2 > z**2 * variance

    return _between(excluded, np.full_like(peak, -1.0), peak), _between(excluded, np.ones_like(peak), peak)


def _between(excluded: Callable[[Array], Array], outside: Array, inside: Array) -> Any:
    """Bisection between an end that may be excluded and a value that never is; rounded outwards."""
    outside, inside = outside.copy(), inside.copy()
    for _ in range(60):
        middle = (outside + inside) / 2
        out = excluded(middle)
        outside, inside = np.where(out, middle, outside), np.where(out, inside, middle)
    return outside[()]
