"""Is policy `other` better than policy `base`? A test that may be looked at after every pair of episodes.

The e-variables of Turner, Ly and Grunwald for 2 x 2 tables ("Generic E-variables for exact sequential k-sample tests", 2021;
Turner and Grunwald 2023). Per pair, multiply

    Bern(x_base; q_base) Bern(x_other; q_other) / (Bern(x_base; c_base) Bern(x_other; c_other)),

q = running posterior means, c = the point of the null nearest to q: their middle, or q itself when it lies in the null.
Under the null the product is a supermartingale, so it exceeds 1 / alpha with probability at most alpha, at any time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robopolicy.ranking import checks
from robopolicy.spec import did_you_mean

Array = np.ndarray

ALTERNATIVES = ("two-sided", "greater", "less")
OPTIMISTIC, PESSIMISTIC = (2.0, 1.0), (1.0, 2.0)  # Beta priors of the policy claimed to be better and of the other


def _log_factor(base: Any, other: Any, q_base: Any, q_other: Any) -> Array:
    """log of the factor of one pair in favour of other > base; 0 where the estimates q lie in the null."""
    c = (q_base + q_other) / 2
    ratio = np.where(base, q_base / c, (1 - q_base) / (1 - c)) * np.where(other, q_other / c, (1 - q_other) / (1 - c))
    return np.where(q_other > q_base, np.log(ratio), 0.0)


def _means_before(outcomes: Array, prior: tuple[float, float]) -> Array:
    """Posterior mean [..., T] of the rate from the outcomes before each."""
    before = np.cumsum(outcomes, axis=-1) - outcomes
    return (prior[0] + before) / (sum(prior) + np.arange(outcomes.shape[-1]))


def log_e_path(base: Array, other: Array, alternative: str = "greater") -> Array:
    """log e-value after every pair [..., T], from outcomes 0 or 1 [..., T] of each; leading axes are separate tests."""
    if alternative not in ALTERNATIVES:
        raise ValueError(f"no alternative {alternative!r}; {did_you_mean(alternative, ALTERNATIVES)}")
    if alternative == "two-sided":
        return np.logaddexp(log_e_path(base, other, "greater"), log_e_path(base, other, "less")) - np.log(2)
    worse, better = (base, other) if alternative == "greater" else (other, base)
    factors = _log_factor(worse, better, _means_before(worse, PESSIMISTIC), _means_before(better, OPTIMISTIC))
    return np.cumsum(factors, axis=-1)


class _OneSided:
    """Evidence that the second rate exceeds the first, pair by pair."""

    def __init__(self) -> None:
        self.log_e = 0.0
        self._counts = [list(PESSIMISTIC), list(OPTIMISTIC)]  # [policy, (successes, failures)]

    def update(self, worse: bool, better: bool) -> None:
        q = [np.float64(s / (s + f)) for s, f in self._counts]
        self.log_e += float(_log_factor(np.bool_(worse), np.bool_(better), q[0], q[1]))
        for count, success in zip(self._counts, (worse, better), strict=True):
            count[0 if success else 1] += 1


class ETest2x2:
    """Anytime-valid comparison of two success rates, one pair of episodes at a time.

    alternative: "greater": other is better than base; "less": worse; "two-sided": the mean of the two e-values, so that either
    direction is found. The null of a one-sided test includes all rates in the wrong direction.

    The pairs need not be independent in time: it suffices that, given the past, the two outcomes of a pair are independent
    with rates that obey the null. Outcomes on the same condition are, given the condition, unless noise is shared too.

    Raises:
        ValueError: unknown alternative.
    """

    def __init__(self, alternative: str = "greater") -> None:
        if alternative not in ALTERNATIVES:
            raise ValueError(f"no alternative {alternative!r}; {did_you_mean(alternative, ALTERNATIVES)}")
        self.alternative = alternative
        self.num_pairs = 0
        self._greater, self._less = _OneSided(), _OneSided()
        self._peak = 0.0

    @property
    def log_e_value(self) -> float:
        """Natural logarithm of the e-value now."""
        if self.alternative == "two-sided":
            return float(np.logaddexp(self._greater.log_e, self._less.log_e) - np.log(2))
        return self._greater.log_e if self.alternative == "greater" else self._less.log_e

    @property
    def e_value(self) -> float:
        """Evidence against the null now; its mean under the null is at most 1 at any stopping time."""
        return float(np.exp(self.log_e_value))

    @property
    def p_value(self) -> float:
        """1 / the largest e-value so far: at most alpha with probability at most alpha under the null, at any time."""
        return float(np.exp(-self._peak))

    def update(self, base: bool, other: bool) -> float:
        """One more pair of outcomes; returns the e-value. Raises ValueError for outcomes other than 0 and 1."""
        x, y = checks.outcomes([base, other], "outcomes").astype(bool)
        self._greater.update(x, y)
        self._less.update(y, x)
        self.num_pairs += 1
        self._peak = max(self._peak, self.log_e_value)
        return self.e_value

    def rejects(self, alpha: float = 0.05) -> bool:
        """Whether the null has been rejected at level alpha by now."""
        return self.p_value <= checks.fraction(alpha, "alpha")


@dataclass(frozen=True)
class ETestResult:
    """e_value: after all pairs. p_value: anytime-valid. stopped_at: pairs after which the null fell, None if it stands."""

    e_value: float
    p_value: float
    rejected: bool
    stopped_at: int | None
    num_pairs: int
    log_e_path: Array = field(repr=False)


def e_test_2x2(base: Any, other: Any, *, alternative: str = "greater", alpha: float = 0.05) -> ETestResult:
    """`ETest2x2` over outcomes 0 or 1 [T] of two policies, paired in order of arrival.

    Raises:
        ValueError: different lengths, outcomes other than 0 and 1, unknown alternative, or alpha outside (0, 1).
    """
    x, y = checks.outcomes(base, "outcomes of base"), checks.outcomes(other, "outcomes of other")
    if x.size != y.size:
        raise ValueError(f"{x.size} outcomes of base and {y.size} of other: give pairs, the same number of each")
    path = log_e_path(x, y, alternative)
    peak = float(max(path.max(initial=0.0), 0.0))
    crossed = np.flatnonzero(path >= -np.log(checks.fraction(alpha, "alpha")))
    return ETestResult(
        e_value=float(np.exp(path[-1])) if path.size else 1.0,
        p_value=float(np.exp(-peak)),
        rejected=bool(crossed.size),
        stopped_at=int(crossed[0]) + 1 if crossed.size else None,
        num_pairs=x.size,
        log_e_path=path,
    )
