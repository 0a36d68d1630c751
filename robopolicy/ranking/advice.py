"""Which policy goes on the robot next, how much would that bring, and is it time to stop? On a co-kriging posterior."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from robopolicy.ranking.cokriging import CoKriging
from robopolicy.ranking.statistics import stream
from robopolicy.spec import did_you_mean

Array = np.ndarray

RULES = ("top_two", "ucb", "knowledge_gradient")


@dataclass(frozen=True)
class Advice:
    """policy: to try next. recommended: to deploy if one stopped now (the best posterior mean).

    expected_regret: how much worse than the best the recommended is, in expectation, in units of the real value. stop:
    whether that is below the tolerance or the budget is spent, and why. prob_best: [N]. index: value of the rule [N], per
    unit of cost, larger = sooner.
    """

    policy: str
    recommended: str
    expected_regret: float
    stop: bool
    reason: str
    prob_best: Array = field(repr=False)
    index: Array = field(repr=False)


def next_real(
    posterior: CoKriging,
    *,
    cost: Any = 1.0,
    rule: str = "top_two",
    kappa: float = 2.0,
    lookahead: int = 5,
    tolerance: float = 0.01,
    budget: float | None = None,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    seed: int = 0,
    num_draws: int = 4000,
) -> Advice:
    """The next policy to try on the robot, on the posterior so far.

    cost: of one real trial, scalar or [N] (setting up another policy may cost more). budget: what is left, in the same unit.
    rule: "top_two" (default): the recommended policy or its strongest rival, the one whose trial narrows their difference
        more for its cost. "ucb": largest mean + kappa sd above the recommended's mean, per cost. "knowledge_gradient":
        largest expected gain of the final choice from `lookahead` trials, per cost.
    tolerance: stop when the expected regret falls below it. bounds: range of the real value, None = unbounded.

    Raises:
        ValueError: unknown rule, or costs that are not positive, one or [N].
    """
    if rule not in RULES:
        raise ValueError(f"no rule {rule!r}; {did_you_mean(rule, RULES)}")
    size = len(posterior.policies)
    costs = np.asarray(cost, dtype=np.float64)
    if costs.shape not in ((), (size,)) or not (np.isfinite(costs).all() and (costs > 0).all()):
        raise ValueError(f"cost of shape {costs.shape}: give one positive number, or one for each of {size} policies")
    costs = np.broadcast_to(costs, (size,))
    draws = posterior_draws(posterior, stream(seed, "next_real", int(posterior.trials.sum())), num_draws, bounds)
    lead = int(np.argmax(posterior.mean))
    regret = float((draws.max(axis=1) - draws[:, lead]).mean())
    best = (draws == draws.max(axis=1, keepdims=True)).astype(np.float64)
    prob_best = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    if rule == "ucb":
        index = np.maximum(posterior.mean + kappa * posterior.sd - posterior.mean[lead], 0) / costs
    elif rule == "knowledge_gradient":
        index = _knowledge_gradient(posterior, lookahead) / costs
    else:
        index = _top_two(posterior, lead, costs)
    reason = ""
    if budget is not None and budget < costs.min():
        reason = f"budget: {budget:g} is left and a trial costs at least {costs.min():g}"
    elif regret < tolerance:
        reason = f"settled: expected regret {regret:.4f} is below {tolerance:g}"
    affordable = index if budget is None or reason else np.where(costs <= budget, index, -np.inf)
    names = posterior.policies
    return Advice(names[int(np.argmax(affordable))], names[lead], regret, bool(reason), reason, prob_best, index)


def posterior_draws(
    posterior: CoKriging, generator: np.random.Generator, num: int, bounds: tuple[float, float] | None = (0.0, 1.0)
) -> Array:
    """Joint draws [num, N] of the real values, clipped to `bounds`: for rank intervals, P(best), the shortlist's risk."""
    values, vectors = np.linalg.eigh(posterior.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    draws = posterior.mean + generator.standard_normal((num, len(root))) @ root.T
    return draws if bounds is None else np.clip(draws, *bounds)


def _shrinkage(posterior: CoKriging, trials: int) -> Array:
    """Change of the posterior means [N] per unit normal surprise of `trials` more trials of each policy: [N tried, N]."""
    spread = np.sqrt(np.diag(posterior.covariance) + posterior.noise / trials)
    return posterior.covariance / spread[:, None]


def _top_two(posterior: CoKriging, lead: int, costs: Array) -> Array:
    mean, covariance = posterior.mean, posterior.covariance
    variance = np.diag(covariance)
    spread = np.sqrt(np.maximum(variance + variance[lead] - 2 * covariance[lead], 1e-18))
    beats = stats.norm.logsf((mean[lead] - mean) / spread)
    beats[lead] = -np.inf
    index = np.full(len(mean), -np.inf)
    if len(mean) == 1:
        return np.zeros(1)
    rival = int(np.argmax(beats))
    change = _shrinkage(posterior, 1)
    for i in (lead, rival):
        index[i] = (change[i, lead] - change[i, rival]) ** 2 / costs[i]
    return index


def _knowledge_gradient(posterior: CoKriging, trials: int) -> Array:
    """E max(mean + change z) - max mean over z ~ N(0, 1), by Gauss and Hermite: [N]."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    change = _shrinkage(posterior, trials)
    best = np.stack([(posterior.mean + change * z).max(axis=1) for z in nodes], axis=1)
    return best @ (weights / weights.sum()) - posterior.mean.max()
