"""Confidence intervals for the mean of bounded outcomes by betting, valid at any time and any sample size.

After Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (JRSS B 2024): whoever bets against
the true mean cannot expect to get rich, so the means against which a betting rule did get rich are excluded. The rule splits
the capital over bets of fixed sizes (their "diversified Kelly"); for outcomes 0 and 1 that is a mixture likelihood ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from robopolicy.ranking import checks
from robopolicy.ranking.intervals import CONFIDENCE

Array = np.ndarray

STAKES = ((np.arange(30) + 0.5) / 30) ** 2  # shares of the capital that a bet may lose; denser towards small bets
RESOLUTION = 1000  # steps of the grid of a confidence sequence, over [low, high]


def capital(values: Array, floor: float, mean: float) -> Array:
    """Capital [T] after every bet that the mean exceeds `mean`, of `values` [T] >= floor; falls with `mean` > floor.

    Average over stakes c of prod (1 - c) + c (value - floor) / (mean - floor): a supermartingale from 1 where the mean given
    the past is at most `mean`.
    """
    with np.errstate(over="ignore", under="ignore"):
        return np.cumprod(1 + STAKES[:, None] * ((values - floor) / (mean - floor) - 1), axis=1).mean(axis=0)


def lower_bound(wealth: Callable[[float], Array], low: float, high: float, alpha: float) -> float:
    """A number in [low, high] that the mean undercuts with probability at most alpha, at any time.

    wealth(mean) -> [T]: a capital as above or an average of such; the bound is where it once reached 1 / alpha.
    """

    def rich(mean: float) -> bool:
        return bool(wealth(mean).max() >= 1 / alpha)

    below, above = low, high
    if rich(above):
        return above
    while above - below > 1e-7 * (high - low):
        middle = (below + above) / 2
        below, above = (middle, above) if rich(middle) else (below, middle)
    return below


def _bounded(values: Any, low: float, high: float) -> Array:
    x = checks.vector(values, "values")
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"low={low}, high={high}: give the finite range of a value, low < high")
    outside = np.flatnonzero((x < low) | (x > high))
    if outside.size:
        raise ValueError(f"values[{outside[0]}] = {x[outside[0]]:g} is outside [{low:g}, {high:g}]: bounds must be certain")
    return x


def betting_ci(values: Any, confidence: float = CONFIDENCE, *, low: float = 0.0, high: float = 1.0) -> tuple[float, float]:
    """Two-sided interval (low, high) for the mean of outcomes in [low, high] (success, progress), in their order of arrival.

    Covers with at least `confidence` at any n, also when one looks after every episode and stops at will. Needs no more
    than that each outcome has the same mean given the past; low > high says that they cannot have had.

    Raises:
        ValueError: no values, NaN, values outside [low, high], or confidence outside (0, 1).
    """
    x = _bounded(values, low, high)
    tail = (1 - checks.fraction(confidence, "confidence")) / 2
    bottom = lower_bound(lambda mean: capital(x, low, mean), low, high, tail)
    return bottom, -lower_bound(lambda mean: capital(-x, -high, mean), -high, -low, tail)


def betting_sequence(
    values: Any, confidence: float = CONFIDENCE, *, low: float = 0.0, high: float = 1.0
) -> tuple[Array, Array]:
    """The running `betting_ci`: bounds ([T], [T]) after every outcome, never widening, all valid at once.

    Bounds lie on a grid of 1,000 steps and are rounded outwards: wider than `betting_ci` by less than one step.

    Raises:
        ValueError: as `betting_ci`.
    """
    x = _bounded(values, low, high)
    tail = (1 - checks.fraction(confidence, "confidence")) / 2
    return _running(x, low, high - low, tail), -_running(-x, -high, high - low, tail)


def _running(values: Array, floor: float, width: float, alpha: float) -> Array:
    grid = width * np.arange(1, RESOLUTION + 1) / RESOLUTION
    capital = np.ones((STAKES.size, grid.size))
    bounds, excluded = np.empty(values.size), 0
    with np.errstate(over="ignore"):
        for t, value in enumerate(values):
            capital *= 1 + STAKES[:, None] * ((value - floor) / grid - 1)
            excluded = max(excluded, int((capital.mean(axis=0) >= 1 / alpha).sum()))
            bounds[t] = floor + width * excluded / RESOLUTION
    return bounds
