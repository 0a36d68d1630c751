"""Off-policy classification: how well a policy's own Q-function tells the actions of successes from all others."""

from __future__ import annotations

from typing import Any

import numpy as np

from robopolicy.ope.estimate import Estimate

Array = np.ndarray

NUM_REPLICATES = 200


def soft_opc(values: Any, success: Any, episode: Any = None, prior: float = 1.0, seed: int = 0) -> Estimate:
    """SoftOPC = p(y=1) E[Q | successful episodes] - E[Q | all] (Irpan et al., NeurIPS 2019, arXiv 1906.01624).

    values: Q(s, a) [N] of recorded steps by the policy's own critic. success: bool [N], whether the step's episode succeeded.
    episode: int [N] (default: one each). prior: p(y=1), the probability that a recorded action can still lead to success, which
        the data cannot tell: failures are unlabelled, not negative. 1 is what d3rlpy computes: the mean Q of successes less
        that of all. A smaller prior also counts a high level of Q against a critic.

    Compares critics on one scale only (success probabilities, say). Not applicable without both kinds of episodes.
    sd: bootstrap over episodes, stratified by outcome.

    Raises:
        ValueError: shapes that differ, values that are not finite, or a prior outside (0, 1].
    """
    return _classified(values, success, episode, prior, seed, _soft)


def opc(values: Any, success: Any, episode: Any = None, prior: float = 1.0, seed: int = 0) -> Estimate:
    """OPC = max_b p(y=1) P(Q > b | successful episodes) - P(Q > b | all): SoftOPC of the best threshold. See `soft_opc`.

    Free of the critic's scale; in [0, 1], 0 = no threshold tells successes.
    """
    return _classified(values, success, episode, prior, seed, _hard)


def _soft(q: Array, y: Array, weight: Array, prior: float) -> float:
    return float(prior * np.average(q[y], weights=weight[y]) - np.average(q, weights=weight))


def _hard(q: Array, y: Array, weight: Array, prior: float) -> float:
    order = np.argsort(-q, kind="stable")
    positive = np.cumsum((weight * y)[order]) / (weight * y).sum()
    every = np.cumsum(weight[order]) / weight.sum()
    last = np.append(np.diff(q[order]) != 0, True)  # a threshold lies below all equal values or above them
    return float(max(0.0, (prior * positive - every)[last].max()))


def _classified(values: Any, success: Any, episode: Any, prior: float, seed: int, statistic: Any) -> Estimate:
    q, y = np.asarray(values, np.float64), np.asarray(success, bool)
    unit = np.arange(len(q)) if episode is None else np.unique(np.asarray(episode), return_inverse=True)[1]
    if q.ndim != 1 or q.shape != y.shape or q.shape != unit.shape or not np.isfinite(q).all():
        raise ValueError(f"values {q.shape}, success {y.shape}, episode {unit.shape}: needs finite [N] and one of each a row")
    if not 0 < prior <= 1:
        raise ValueError(f"prior={prior}: a probability in (0, 1]")
    won = np.bincount(unit[y], minlength=unit.max() + 1 if len(unit) else 0) > 0
    if won.sum() < 2 or (~won).sum() < 2:
        return Estimate.refuse(f"{int(won.sum())} successes in {len(won)} episodes: needs at least 2 of each outcome")
    generator = np.random.Generator(np.random.Philox(key=seed))
    draws = []
    for _ in range(NUM_REPLICATES):
        weight = np.zeros(len(won))
        for kind in (np.flatnonzero(won), np.flatnonzero(~won)):  # stratified: every replicate has both
            weight[kind] = generator.multinomial(len(kind), np.full(len(kind), 1 / len(kind)))
        draws.append(statistic(q, y, weight[unit], prior))
    return Estimate(statistic(q, y, np.ones(len(q)), prior), float(np.std(draws, ddof=1)), float(len(won)))
