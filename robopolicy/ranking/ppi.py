"""Few real trials plus many simulated ones: prediction-powered inference of a policy's real mean.

Each real trial has a simulated twin (same policy, same initial condition); further simulated trials have none. The simulated
mean is corrected by how far the twins are off (Angelopoulos et al., PPI++, 2023; for robots SureSim, arXiv 2510.04354).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from robopolicy.ranking import checks
from robopolicy.ranking.betting import betting_ci, capital, lower_bound
from robopolicy.ranking.intervals import CONFIDENCE
from robopolicy.spec import did_you_mean

Array = np.ndarray

METHODS = ("auto", "asymptotic", "betting")
MIN_ASYMPTOTIC = 100  # the normal approximation covers .88 at 20 and .94 at 50 trials where it should cover .95
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # among which the betting form spreads its capital; 0: as if there were no simulator
SIM_SHARE = 0.1  # of the error budget: for not knowing the simulator's mean exactly


@dataclass(frozen=True)
class PpiResult:
    """mean, low, high: the real mean and its interval, in the units of the outcomes.

    weight: how far the simulator is trusted: 0 not at all (classical), 1 fully.
    correlation: of real trials with their twins; None where either is constant.
    effective_multiplier: 1 / (1 - correlation^2 N / (n + N)): n trials with twins are worth that many times n without.
    """

    mean: float
    low: float
    high: float
    weight: float
    correlation: float | None
    effective_multiplier: float
    method: str
    num_real: int
    num_simulated: int


def ppi_mean(
    real: Any,
    predicted: Any,
    simulated: Any,
    confidence: float = CONFIDENCE,
    *,
    method: str = "auto",
    low: float = 0.0,
    high: float = 1.0,
) -> PpiResult:
    """The real mean from n real trials, their n simulated twins and N further simulated trials.

    real, predicted: outcomes [n] in [low, high], paired, in order of arrival. simulated: outcomes [N] of the same policy on
    other draws of the same conditions.
    method: "asymptotic": PPI++ with the optimal weight and a normal interval; for large n alone. "betting": covers at any n
        (and any time), wider. "auto" (default): betting below 100 real trials.

    Raises:
        ValueError: NaN, unequal numbers of real trials and twins, fewer than 2 of anything, or values outside [low, high].
    """
    y, f = checks.pair(real, predicted, ("real outcomes", "simulated twins"), min_size=2)
    extra = checks.vector(simulated, "simulated outcomes", min_size=2)
    for values, name in ((y, "real outcomes"), (f, "simulated twins"), (extra, "simulated outcomes")):
        if values.min() < low or values.max() > high:
            raise ValueError(f"{name} reach from {values.min():g} to {values.max():g}: outside [{low:g}, {high:g}]")
    checks.fraction(confidence, "confidence")
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; {did_you_mean(method, METHODS)}")
    if method == "auto":
        method = "betting" if y.size < MIN_ASYMPTOTIC else "asymptotic"
    estimate = _asymptotic if method == "asymptotic" else _betting
    mean, bottom, top, weight = estimate(y, f, extra, confidence, low, high)
    constant = np.ptp(y) == 0 or np.ptp(f) == 0
    rho = None if constant else float(np.corrcoef(y, f)[0, 1])
    n, N = y.size, extra.size
    gain = 1 / (1 - (rho or 0.0) ** 2 * N / (n + N))
    return PpiResult(mean, max(bottom, low), min(top, high), weight, rho, float(gain), method, n, N)


def _weight(y: Array, f: Array, ratio: float) -> float:
    """Cov(y, f) / ((1 + n / N) Var f), in [0, 1]; 0 where f is constant."""
    spread = f.var(ddof=1)
    if spread <= 0:
        return 0.0
    covariance = ((y - y.mean()) * (f - f.mean())).sum() / (y.size - 1)
    return float(np.clip(covariance / ((1 + ratio) * spread), 0.0, 1.0))


def _estimate(y: Array, f: Array, extra: Array) -> tuple[float, float]:
    """The mean of PPI++ and its weight."""
    weight = _weight(y, f, y.size / extra.size)
    return float(weight * extra.mean() + (y - weight * f).mean()), weight


def _asymptotic(y: Array, f: Array, extra: Array, confidence: float, low: float, high: float) -> tuple[float, ...]:
    mean, weight = _estimate(y, f, extra)
    variance = weight**2 * extra.var(ddof=1) / extra.size + (y - weight * f).var(ddof=1) / y.size
    half = float(stats.norm.ppf((1 + confidence) / 2) * np.sqrt(variance))
    return mean, mean - half, mean + half, weight


def _betting(y: Array, f: Array, extra: Array, confidence: float, low: float, high: float) -> tuple[float, ...]:
    """Bets on y - weight (f - simulated mean), the capital spread evenly over fixed weights.

    The simulated mean is known up to an interval that holds with a tenth of the error budget; what it may be off, times the
    weight, is taken off the values for the lower bound and added for the upper one, so both are one-sided tests of the real
    mean. Spreading costs at most a factor 5 of capital against the best weight, known or not.
    """
    alpha = 1 - confidence
    centre = float(extra.mean())
    bottom, top = betting_ci(extra, 1 - SIM_SHARE * alpha, low=low, high=high)
    tail = (1 - SIM_SHARE) * alpha / 2
    above, below = top - centre, centre - bottom  # how far the simulated mean may lie above and below

    def for_lower(mean: float) -> Array:
        parts = [(y - w * (f - centre) - w * below, low - w * (high - centre) - w * below) for w in WEIGHTS]
        return np.mean([capital(values, floor, mean) for values, floor in parts], axis=0)

    def for_upper(mean: float) -> Array:
        parts = [(y - w * (f - centre) + w * above, high + w * (centre - low) + w * above) for w in WEIGHTS]
        return np.mean([capital(-values, -ceiling, mean) for values, ceiling in parts], axis=0)

    mean, weight = _estimate(y, f, extra)
    under, over = lower_bound(for_lower, low, high, tail), -lower_bound(for_upper, -high, -low, tail)
    return float(np.clip(mean, under, max(under, over))), under, over, weight
