"""How many episodes does it take? Sample sizes and power for comparing two success rates, paired or not.

Normal approximation of the difference of two proportions; `correlation` is that of the two outcomes on one condition, 0 for
unpaired episodes. Conditions shared between policies with correlation .6 save some 60 % of the episodes.
"""

from __future__ import annotations

import math

from scipy import optimize, stats

from robopolicy.ranking import checks


def _variance(p1: float, p2: float, correlation: float) -> float:
    """Variance of the difference of one pair of outcomes."""
    checks.fraction(p1, "p1")
    checks.fraction(p2, "p2")
    a, b = p1 * (1 - p1), p2 * (1 - p2)
    most = (min(p1, p2) - p1 * p2) / math.sqrt(a * b)
    least = (max(p1 + p2 - 1, 0) - p1 * p2) / math.sqrt(a * b)
    if not least - 1e-9 <= correlation <= most + 1e-9:
        raise ValueError(f"correlation={correlation}: outcomes with rates {p1:g} and {p2:g} reach {least:.3f} to {most:.3f}")
    return a + b - 2 * correlation * math.sqrt(a * b)


def episodes_to_separate(p1: float, p2: float, *, power: float = 0.8, alpha: float = 0.05, correlation: float = 0.0) -> int:
    """Episodes per policy to find p1 != p2 with probability `power`, two-sided at alpha.

    Raises:
        ValueError: p1 = p2, rates or probabilities outside (0, 1), or a correlation that outcomes of these rates cannot have.
    """
    variance = _variance(p1, p2, correlation)
    if p1 == p2:
        raise ValueError(f"p1 = p2 = {p1}: no number of episodes separates equal rates")
    z = stats.norm.ppf(1 - checks.fraction(alpha, "alpha") / 2) + stats.norm.ppf(checks.fraction(power, "power"))
    return max(math.ceil(z**2 * variance / (p1 - p2) ** 2 - 1e-9), 1)


def power_to_separate(num_episodes: int, p1: float, p2: float, *, alpha: float = 0.05, correlation: float = 0.0) -> float:
    """Probability of finding p1 != p2, in its true direction, with num_episodes per policy, two-sided at alpha.

    Raises:
        ValueError: as `episodes_to_separate` (p1 = p2 gives alpha / 2), or num_episodes < 1.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes={num_episodes}: needs at least 1")
    spread = math.sqrt(_variance(p1, p2, correlation) / num_episodes)
    z = stats.norm.ppf(1 - checks.fraction(alpha, "alpha") / 2)
    return float(stats.norm.cdf(abs(p1 - p2) / spread - z)) if spread > 0 else 1.0


def detectable_difference(
    num_episodes: int, p1: float, *, power: float = 0.8, alpha: float = 0.05, correlation: float = 0.0
) -> float | None:
    """Smallest improvement over p1 found with probability `power` by num_episodes per policy; None where none below 1 is.

    Raises:
        ValueError: as `episodes_to_separate`.
    """
    checks.fraction(power, "power")

    if not 0 <= correlation < 1:
        raise ValueError(f"correlation={correlation}: needs 0 <= correlation < 1")

    def lack(p2: float) -> float:
        return power - power_to_separate(num_episodes, p1, p2, alpha=alpha, correlation=correlation)

    ceiling = 1 / (1 + correlation**2 * (1 - p1) / p1) - 1e-9  # outcomes of higher rates cannot correlate so much
    return None if lack(ceiling) > 0 else float(optimize.brentq(lack, p1, ceiling)) - p1
