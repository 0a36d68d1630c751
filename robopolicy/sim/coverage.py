"""Do drawn worlds cover what was declared? Range, family, drift and correlation of every factor, with exact error rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from robopolicy.sim.distributions import TRUNCATION, Distribution, Value


@dataclass(frozen=True)
class Factor:
    """One randomised number of a world: parameter `name`, or `name[i]` of a vector.

    low, high: the declared range. least, most: drawn. outside: how many draws left the range. p_family: of the draws under the
    declared distribution (Kolmogorov-Smirnov, chi-square where it is discrete; None where its range is cut at a bound).
    p_drift: of the second half coming from the same distribution as the first (two-sample Kolmogorov-Smirnov).
    """

    name: str
    family: str
    operation: str
    nominal: float
    low: float
    high: float
    least: float
    most: float
    outside: int
    p_family: float | None
    p_drift: float


@dataclass(frozen=True)
class Coverage:
    """What coverage() found. rank_correlation: Spearman's [F, F] of the factors, in their order.

    problems: in words, every factor out of range or that never varies, every test that fails, every pair that correlates;
    were all as declared, the list would be empty with probability 1 - 3 alpha.
    """

    num_worlds: int
    alpha: float
    correlation_bound: float
    factors: list[Factor]
    rank_correlation: np.ndarray
    problems: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, with the largest correlation instead of the matrix."""
        largest = _largest(self.rank_correlation)
        pair = [self.factors[i].name for i in largest] if largest else []
        value = float(self.rank_correlation[largest]) if largest else 0.0
        return {
            "num_worlds": self.num_worlds,
            "alpha": self.alpha,
            "num_factors": len(self.factors),
            "largest_rank_correlation": {"pair": pair, "value": value, "bound": self.correlation_bound},
            "problems": self.problems,
            "factors": [asdict(factor) for factor in self.factors],
        }


def columns(worlds: Sequence[Mapping[str, Value]], distributions: Mapping[str, Distribution]) -> dict[str, np.ndarray]:
    """{factor: its values [N]}: one for every number that has a draw of its own."""
    out: dict[str, np.ndarray] = {}
    for name, distribution in distributions.items():
        values = np.array([np.atleast_1d(world[name]) for world in worlds], float)
        if values.shape[1] == 1 and not isinstance(worlds[0][name], list):
            out[name] = values[:, 0]
        else:
            count = 1 if distribution.shared else values.shape[1]
            out.update({f"{name}[{i}]": values[:, i] for i in range(count)})
    return out


def coverage(
    worlds: Sequence[Mapping[str, Value]],
    distributions: Mapping[str, Distribution],
    nominal: Mapping[str, Value],
    alpha: float = 1e-3,
) -> Coverage:
    """Compare drawn worlds, in the order in which they were drawn, with the distributions they should come from.

    alpha: probability of a false alarm among all factors (or pairs of them), for each of the three kinds of test (Bonferroni).
    A pair is said to correlate when Spearman's coefficient of N worlds is beyond the normal quantile of alpha over
    the square root of N - 1, its standard error under independence.
    """
    values = columns(worlds, distributions)
    matrix = np.stack([stats.rankdata(column) for column in values.values()])
    varied = matrix.std(axis=1) > 0
    correlation = np.eye(len(matrix))
    correlation[np.ix_(varied, varied)] = np.corrcoef(matrix[varied])
    factors = [_factor(name, column, distributions, nominal) for name, column in values.items()]
    pairs = max(len(factors) * (len(factors) - 1) // 2, 1)
    bound = float(stats.norm.isf(alpha / 2 / pairs) / np.sqrt(len(worlds) - 1))
    problems = []
    for f in factors:
        if f.outside:
            problems.append(f"{f.name}: {f.outside} of {len(worlds)} draws leave {f.low:g} .. {f.high:g}")
        if f.least == f.most and len(set(distributions[f.name.partition("[")[0]].arguments)) > 1:
            problems.append(f"{f.name} never varies from {f.least:g}")
        if f.p_family is not None and f.p_family < alpha / len(factors):
            problems.append(f"{f.name} is not distributed as {f.family} (p = {f.p_family:.1e})")
        if f.p_drift < alpha / len(factors):
            problems.append(f"{f.name} drifts (p = {f.p_drift:.1e})")
    for i, j in np.argwhere(np.triu(np.abs(correlation) > bound, 1)):
        problems.append(f"{factors[i].name} and {factors[j].name} correlate ({correlation[i, j]:+.2f})")
    return Coverage(len(worlds), alpha, bound, factors, correlation, problems)


def _largest(correlation: np.ndarray) -> tuple[int, int] | None:
    off = np.abs(np.triu(correlation, 1))
    i, j = np.unravel_index(int(off.argmax()), off.shape) if off.size > 1 else (0, 0)
    return (int(i), int(j)) if i != j else None


def _factor(name: str, values: np.ndarray, distributions: Mapping[str, Distribution], nominal: Mapping[str, Value]) -> Factor:
    parameter, _, entry = name.rstrip("]").partition("[")
    d, index = distributions[parameter], int(entry or 0)
    base = float(np.atleast_1d(nominal[parameter])[index])
    low, high = (float(end[index]) for end in d.support(nominal[parameter]))
    cut = low < d.low or high > d.high
    low, high = max(low, d.low), min(high, d.high)
    slack = 1e-9 * max(1.0, abs(low), abs(high))
    outside = int(((values < low - slack) | (values > high + slack)).sum())
    half = len(values) // 2
    drift = float(stats.ks_2samp(values[:half], values[half:]).pvalue)
    family = None if cut else _fits(values, d, base)
    return Factor(
        name, d.family, d.operation, base, low, high, float(values.min()), float(values.max()), outside, family, drift
    )


def _fits(values: np.ndarray, d: Distribution, base: float) -> float | None:
    """p of the values under the distribution; None where the nominal hides the draws (scaled zero)."""
    if d.operation == "scale" and base == 0:
        return None
    sample = values - base if d.operation == "add" else values / base if d.operation == "scale" else values
    if d.family == "choice" or d.family == "integers":
        options = np.arange(d.arguments[0], d.arguments[1] + 1) if d.family == "integers" else np.array(d.arguments)
        kinds, weight = np.unique(options, return_counts=True)
        if len(kinds) == 1:
            return None
        nearest = np.abs(sample[:, None] - kinds).argmin(axis=1)
        observed = np.bincount(nearest, minlength=len(kinds))
        return float(stats.chisquare(observed, len(sample) * weight / weight.sum()).pvalue)
    a, b = d.arguments
    if a == b or (d.family == "normal" and b == 0):
        return None
    if d.family == "normal":
        return float(stats.kstest(sample, stats.truncnorm(-TRUNCATION, TRUNCATION, loc=a, scale=b).cdf).pvalue)
    if d.family == "log_uniform":
        sample, a, b = np.log(sample), float(np.log(a)), float(np.log(b))
    return float(stats.kstest(sample, stats.uniform(a, b - a).cdf).pvalue)
