"""How many episodes on the target it takes to find a policy that is nearly the best, by how they are spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from selection_bench import pools

from robopolicy.executor import map_units
from robopolicy.ranking.allocation import halving_plan, sequential_halving
from robopolicy.ranking.sequential import log_e_path
from robopolicy.ranking.statistics import stream
from vsdr_study.report import scores
from vsdr_study.tables import Tables

Array = np.ndarray
NEAR = 0.02  # of the best success rate
EACH = (1, 2, 3, 5, 10, 20, 50, 100, 200)  # episodes a policy, of those that share all equally
SHORTLIST = 8
SHARE = 0.2  # of the pool in a shortlist: what found T0's best soonest, of 8, 12, 16, 20, 27, 40 and all of 81
REPEATS = 300  # of the ways that decide by counting alone, which are quick
PAIRS, ALPHA = 50, 0.05  # of the anytime-valid test between the incumbent and a challenger: most of them, its level
NEXT_REAL = {
    "UCB, ties by simulation": pools.independent_ucb,
    "round robin, top 3 of simulation": pools.round_robin_top_3,
    "next-real": pools.cokriging(),
    "next-real with the distance": pools.cokriging(ood=True),
}


def spend(
    tables: Tables, target: str, chosen: Mapping[str, str], repeats: int, num_trials: int, seed: int, workers: int = 0
) -> dict[str, Any]:
    """{"curves": {strategy: [{"episodes", "regret", "error"}]}, ...}: mean true regret of what would be deployed.

    Outcomes of trials are drawn from the measured rates, so that no strategy is judged by the episodes it saw. Where nothing
    says which policy comes first, chance does.
    """
    real, every = tables.outcomes(target).mean(1), scores(tables, target)
    sim, vsdr, distance = every["sim"], every[chosen["vsdr"]], -every[chosen["ood"]]
    ordered = {name: np.argsort(-order, kind="stable") for name, order in (("simulation", sim), ("VSDR", vsdr))}
    sizes = sorted({SHORTLIST, max(round(SHARE * len(real)), 1)})
    found = {f"{name}'s first {n}, halving": _halved(real, best[:n], seed) for name, best in ordered.items() for n in sizes}
    every_policy, unrelated = np.arange(len(real)), np.zeros((len(real), len(real)))
    scaled = (distance - distance.mean()) / (distance.std() or 1.0) * sim.std()
    found["halving over all"] = _halved(real, every_policy, seed)
    found["uniform over all"] = _uniform(real, seed)
    told = pools.Pool(real, sim, scaled, unrelated, np.empty((len(real), 0), bool))
    units = [(name, repeat) for name in NEXT_REAL for repeat in range(repeats)]
    work = partial(_asked, told=told, num_trials=num_trials, seed=seed)
    answers = np.array(map_units(work, units, workers, f"trials on {target}")).reshape(len(NEXT_REAL), repeats, -1)
    for name, regrets in zip(NEXT_REAL, answers, strict=True):
        found[name] = [_row(t, regrets[:, t]) for t in range(num_trials + 1)]
    near = {name: {"episodes": _first(rows), "within": rows[-1]["episodes"]} for name, rows in found.items()}
    test = f"first {SHORTLIST}, the test"
    tested = {f"{name}'s {test}": _challenged(real, best[:SHORTLIST], seed) for name, best in ordered.items()}
    settings = {"near": NEAR, "repeats": repeats, "shortlist": SHORTLIST, "share": SHARE, "pairs": PAIRS, "alpha": ALPHA}
    return {"curves": found, "episodes_until_near": near, "tested": tested, **settings}


def _asked(unit: tuple[str, int], told: pools.Pool, num_trials: int, seed: int) -> Array:
    """Regret after 0, 1, ... trials [num_trials + 1] where a strategy of NEXT_REAL says whose turn it is; its repeat's luck."""
    name, repeat = unit
    outcomes = stream(seed, "trials", repeat).random((len(told.real), num_trials)) < told.real[:, None]
    return pools.regret_by_trial(NEXT_REAL[name], replace(told, outcomes=outcomes), num_trials)


def _row(episodes: int, regrets: Array) -> dict[str, float]:
    error = float(np.std(regrets, ddof=1) / np.sqrt(len(regrets))) if len(regrets) > 1 else float("nan")
    return {"episodes": float(episodes), "regret": float(np.mean(regrets)), "error": error}


def _first(rows: Sequence[Mapping[str, float]]) -> float | None:
    """Episodes from which on the mean regret stays within NEAR; None = never."""
    for at, row in enumerate(rows):
        if all(later["regret"] <= NEAR for later in rows[at:]):
            return row["episodes"]
    return None


def _player(rates: Array, generator: np.random.Generator) -> Callable[[Sequence[int], int, int], list[Array]]:
    outcomes = generator.random((len(rates), 4096)) < rates[:, None]
    return lambda policies, start, stop: [outcomes[p, start:stop] for p in policies]


def _halved(real: Array, among: Array, seed: int) -> list[dict[str, float]]:
    """Sequential halving among some, who come in their order, or among all, who come in any."""
    listed = len(among) < len(real)
    rows = [_row(0, np.full(2, real.max() - real[among[0]]))] if listed else []
    for each in EACH:
        budget, regrets = each * len(among), []
        for repeat in range(REPEATS):
            generator = stream(seed, "halving", each, repeat)
            order = among if listed else generator.permutation(among)
            plan = halving_plan(len(order), budget, num_conditions=4096)
            best = sequential_halving(_player(real[order], generator), plan).best[0]
            regrets.append(real.max() - real[order[best]])
        rows.append(_row(budget, np.array(regrets)))
    return rows


def _challenged(real: Array, shortlist: Array, seed: int) -> dict[str, float]:
    """Episodes and regret where the best scored stays unless the test shows a challenger to be better, one after the other."""
    spent, regrets = [], []
    for repeat in range(REPEATS):
        generator, incumbent, episodes = stream(seed, "test", repeat), int(shortlist[0]), 0
        for challenger in shortlist[1:]:
            ours, theirs = (generator.random(PAIRS) < real[p] for p in (incumbent, int(challenger)))
            crossed = np.flatnonzero(log_e_path(ours, theirs, "two-sided") >= -np.log(ALPHA))
            pairs = int(crossed[0]) + 1 if crossed.size else PAIRS
            episodes += 2 * pairs
            if crossed.size and theirs[:pairs].mean() > ours[:pairs].mean():
                incumbent = int(challenger)
        spent.append(episodes)
        regrets.append(real.max() - real[incumbent])
    return _row(float(np.mean(spent)), np.array(regrets))


def _uniform(real: Array, seed: int) -> list[dict[str, float]]:
    rows = []
    for each in EACH:
        regrets = []
        for repeat in range(REPEATS):
            generator = stream(seed, "uniform", each, repeat)
            won = generator.binomial(each, real) + generator.uniform(0, 0.5, len(real))  # ties by chance
            regrets.append(real.max() - real[int(np.argmax(won))])
        rows.append(_row(each * len(real), np.array(regrets)))
    return rows
