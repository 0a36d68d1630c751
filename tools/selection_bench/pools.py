"""Pools of policies with a known truth, and the strategies that spend real trials on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from robopolicy.ranking.advice import next_real
from robopolicy.ranking.cokriging import fit_cokriging

Array = np.ndarray


@dataclass(frozen=True)
class Scenario:
    """How simulation relates to reality. sim: Beta parameters of the simulated rate. shared, own: deviations of real minus
    simulated that policies acting alike have in common, and of each alone; offset: mean of that. ood_noise: of a second
    score, minus the deviation, plus this.
    """

    sim: tuple[float, float]
    offset: float = -0.15
    shared: float = 0.15
    own: float = 0.08
    ood_noise: float = 0.15


SCENARIOS = {
    "mixed pool": Scenario(sim=(3, 2)),
    "converged pool": Scenario(sim=(30, 6)),
    "misleading simulator": Scenario(sim=(3, 2), shared=0.3, own=0.15),
}


@dataclass(frozen=True)
class Pool:
    """real, sim, ood: [N]. distances: [N, N]. outcomes: bool [N, T], the t-th real trial of each, whatever the strategy."""

    real: Array
    sim: Array
    ood: Array
    distances: Array
    outcomes: Array


def draw_pool(scenario: Scenario, num_policies: int, num_trials: int, rng: np.random.Generator) -> Pool:
    """Policies in families that act alike (training runs); simulated rates are measured in 200 episodes."""
    families = rng.normal(size=(max(num_policies // 4, 1), 2)) * 1.5
    position = families[np.arange(num_policies) % len(families)] + 0.3 * rng.normal(size=(num_policies, 2))
    distances = np.linalg.norm(position[:, None] - position, axis=2)
    kernel = np.exp(-(distances**2) / 2) + 1e-9 * np.eye(num_policies)
    deviation = scenario.shared * np.linalg.cholesky(kernel) @ rng.normal(size=num_policies)
    deviation += scenario.own * rng.normal(size=num_policies)
    rate = rng.beta(*scenario.sim, num_policies)
    real = np.clip(rate + scenario.offset + deviation, 0.02, 0.98)
    sim = rng.binomial(200, rate) / 200
    ood = -deviation + scenario.ood_noise * rng.normal(size=num_policies)
    return Pool(real, sim, ood, distances, rng.random((num_policies, num_trials)) < real[:, None])


Strategy = Callable[[Pool, Array, Array], tuple[int, int]]


def _posterior_rate(successes: Array, trials: Array) -> Array:
    return (successes + 1) / (trials + 2)


def _best(value: Array, pool: Pool) -> int:
    """Ties go to the better simulated one."""
    return int(np.lexsort((pool.sim, value))[-1])


def uniform(pool: Pool, successes: Array, trials: Array) -> tuple[int, int]:
    """Every policy in turn, the better simulated first; deploys the best so far."""
    return _best(-trials, pool), _best(_posterior_rate(successes, trials), pool)


def round_robin_top_3(pool: Pool, successes: Array, trials: Array) -> tuple[int, int]:
    """The three best simulated in turn."""
    top = np.argsort(-pool.sim, kind="stable")[:3]
    turn = top[np.argmin(trials[top])]
    rates = _posterior_rate(successes, trials)[top]
    return int(turn), int(top[np.argmax(rates)])


def independent_ucb(pool: Pool, successes: Array, trials: Array) -> tuple[int, int]:
    """UCB on real outcomes alone (UCB1, exploration 0.5): knows nothing of simulation but the order of its ties."""
    total = max(trials.sum(), 1)
    bonus = np.where(trials > 0, 0.5 * np.sqrt(2 * np.log(total + 1) / np.maximum(trials, 1)), np.inf)
    mean = np.where(trials > 0, successes / np.maximum(trials, 1), 0.0)
    return _best(mean + bonus, pool), _best(_posterior_rate(successes, trials), pool)


def sim_only(pool: Pool, successes: Array, trials: Array) -> tuple[int, int]:
    """The best simulated, whatever happens."""
    return int(np.argmax(pool.sim)), int(np.argmax(pool.sim))


def cokriging(rule: str = "top_two", ood: bool = False, kernel: bool = False) -> Strategy:
    """`rank next-real` by `rule`, with the second score or with distances between policies."""

    def strategy(pool: Pool, successes: Array, trials: Array) -> tuple[int, int]:
        names = [str(i) for i in range(len(pool.sim))]
        outcomes = {names[i]: pool.outcomes[i, : int(trials[i])].astype(float) for i in np.flatnonzero(trials)}
        scores = np.column_stack([pool.sim, -pool.ood]) if ood else pool.sim
        posterior = fit_cokriging(names, scores, outcomes, distances=pool.distances if kernel else None)
        found = next_real(posterior, rule=rule, num_draws=200)
        return int(found.policy), int(found.recommended)

    return strategy


STRATEGIES: Mapping[str, Strategy] = {
    "simulation only": sim_only,
    "uniform": uniform,
    "round robin, top 3": round_robin_top_3,
    "UCB, real only": independent_ucb,
    "next-real (top two)": cokriging(),
    "next-real (UCB)": cokriging("ucb"),
    "next-real (knowledge gradient)": cokriging("knowledge_gradient"),
    "next-real + OOD score": cokriging(ood=True),
    "next-real + action distances": cokriging(kernel=True),
    "next-real + both": cokriging(ood=True, kernel=True),
}


def regret_by_trial(strategy: Strategy, pool: Pool, num_trials: int) -> Array:
    """Real regret [num_trials + 1] of what would be deployed after 0, 1, ... real trials in all."""
    size = len(pool.real)
    successes, trials, regret = np.zeros(size), np.zeros(size), np.empty(num_trials + 1)
    for t in range(num_trials + 1):
        turn, deployed = strategy(pool, successes, trials)
        regret[t] = pool.real.max() - pool.real[deployed]
        successes[turn] += pool.outcomes[turn, int(trials[turn])]
        trials[turn] += 1
    return regret
