"""What noise on observations certifies: a lower bound on success while an adversary may move every observation.

Policy smoothing (Kumar et al., ICLR 2022, arXiv 2106.11420): episodes are played with fresh N(0, sigma^2 I) noise added to
every observation, before frames are stacked. Against an adversary, adaptive or not, whose perturbations of an episode have a
total l2 norm of at most B, an event of clean probability p keeps a probability of at least Phi(Phi^-1(p) - B / sigma). The
bound is tight. It speaks of the simulator's episodes under attack on what was noised (a certificate in feature space covers
shifts of features only); it does not speak of transfer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm

Array = np.ndarray


@dataclass(frozen=True)
class Certificate:
    """Certified lower bounds, all holding together with probability 1 - alpha.

    budgets: [K] total l2 norms, in units of the observation. certified: [K] bound on success or on the mean return.
    clean: what the noisy episodes obtained. sigma: the noise. n_eff: episodes.
    """

    budgets: Array
    certified: Array
    clean: float
    sigma: float
    n_eff: int
    lower: Array
    steps: Array

    def largest_budget(self, level: float) -> float:
        """The largest budget that keeps the bound at `level`; 0 where even the clean bound is below it.

        Not limited to `budgets`; inf where no budget breaks it.
        """
        low, high = 0.0, 40.0 * self.sigma
        if self._at(0.0) < level:
            return 0.0
        if self._at(high) >= level:
            return float("inf")
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if self._at(middle) >= level else (low, middle)
        return low

    def _at(self, budget: float) -> float:
        return float(_bound(self.lower, self.steps, self.sigma, np.array([budget]))[0])


def certify_success(
    successes: int, episodes: int, sigma: float, budgets: Any = None, alpha: float = 0.05, num_policies: int = 1
) -> Certificate:
    """Certified success of `episodes` noisy episodes, by the one-sided Clopper-Pearson bound; 0 where none succeeded.

    budgets: default 0 to 2 sigma in 41 steps. num_policies: out of how many the certified one will be picked (Bonferroni).
        A bound of e per step over T steps is a budget of e sqrt(T).

    Raises:
        ValueError: counts that do not fit, sigma <= 0, alpha outside (0, 1), or a negative budget.
    """
    budgets = _check(sigma, budgets, alpha, num_policies)
    if not 0 <= successes <= episodes or episodes < 1:
        raise ValueError(f"{successes} successes in {episodes} episodes: needs 0 <= successes <= episodes and at least one")
    test = binomtest(int(successes), int(episodes), alternative="greater")
    lower = np.array([test.proportion_ci(1 - alpha / num_policies, method="exact").low])
    steps = np.array([0.0, 1.0])
    return Certificate(budgets, _bound(lower, steps, sigma, budgets), successes / episodes, sigma, int(episodes), lower, steps)


def certify_return(
    returns: Any, low: float, sigma: float, budgets: Any = None, alpha: float = 0.05, num_policies: int = 1
) -> Certificate:
    """Certified mean of the returns [N] of noisy episodes, none of which can be below `low`.

    Integrates the certified survival function, bounded from below by the one-sided Dvoretzky-Kiefer-Wolfowitz inequality
    (Massart 1990), so returns need no upper limit.

    Raises:
        ValueError: a return below `low` or not finite, or as for `certify_success`.
    """
    budgets = _check(sigma, budgets, alpha, num_policies)
    r = np.sort(np.asarray(returns, np.float64))
    if r.ndim != 1 or not r.size or not np.isfinite(r).all() or r[0] < low:
        raise ValueError(f"returns of shape {r.shape}: needs finite [N], none below low={low}")
    survival = np.arange(len(r), 0, -1) / len(r)  # share of returns >= r_i
    lower = np.maximum(survival - np.sqrt(np.log(num_policies / alpha) / (2 * len(r))), 0.0)
    steps = np.concatenate([[low], r])
    return Certificate(budgets, _bound(lower, steps, sigma, budgets), float(r.mean()), sigma, len(r), lower, steps)


def _check(sigma: float, budgets: Any, alpha: float, num_policies: int) -> Array:
    array = np.linspace(0, 2 * sigma, 41) if budgets is None else np.atleast_1d(np.asarray(budgets, np.float64))
    if sigma <= 0 or not 0 < alpha < 1 or num_policies < 1 or (array < 0).any():
        raise ValueError(
            f"sigma={sigma}, alpha={alpha}, num_policies={num_policies}: needs > 0, in (0, 1), >= 1, and budgets >= 0"
        )
    return array


def _bound(lower: Array, steps: Array, sigma: float, budgets: Array) -> Array:
    """steps[0] + sum_i Phi(Phi^-1(lower_i) - B / sigma) (steps_i+1 - steps_i): [K]."""
    kept = norm.cdf(norm.ppf(lower)[None] - (budgets / sigma)[:, None])
    return steps[0] + kept @ np.diff(steps)
