"""Which score should one have trusted? Every score against what policies really obtained, over pseudo-real domains.

A domain is a target with known outcomes: a held-out randomisation, another simulator, a past campaign on the robot. Choosing
the best score on the domain that judges it flatters it, so the choice is also made on all other domains (leave one out).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robopolicy.ranking import metrics
from robopolicy.ranking.combine import COMBINERS, MIN_POOL, combine
from robopolicy.ranking.plackett_luce import fit_plackett_luce
from robopolicy.ranking.score_table import ScoreTable
from robopolicy.ranking.statistics import cluster_bootstrap, percentile_interval, stream
from robopolicy.ranking.tables import Array, RankingError
from robopolicy.spec import did_you_mean

LOWER_IS_BETTER = ("mmrv", "regret", "std")
CONVENTIONS = {
    "pearson": "linear correlation of score and real value",
    "spearman": "Pearson of mid-ranks",
    "kendall": "tau-b",
    "mmrv": "SIMPLER (2405.05941), real first, in units of the real value; ties of really different policies count",
    "regret@k": "DOPE: max real - max real of the k best scored, not rescaled; ties broken against the score",
    "regret_sum@k": "SCOPE-RL: sum of the k best real - sum of the k best scored",
    "best/worst/mean/std@k": "of the real values of the k best scored; population standard deviation",
    "sharpe@k": "paper (2311.18207): (best@k - baseline) / std@k, population std, not clipped; empty where std@k is 0",
    "sharpe_scope_rl@k": "SCOPE-RL's code: ddof 1, numerator clipped at 0; undefined at k = 1",
    "plackett_luce": "weights of all scores fitted on the other domains (Plackett-Luce likelihood of their real orders)",
    "missing scores": "policies without a score are left out of its line; num_policies says how many are in it",
}


def measure(real: Array, predicted: Array, k: Sequence[int], baseline: float) -> dict[str, float]:
    """Every metric of one score; NaN where it is undefined."""
    found = {
        "pearson": metrics.pearson(real, predicted),
        "spearman": metrics.spearman(real, predicted),
        "kendall": metrics.kendall(real, predicted),
        "mmrv": metrics.mmrv(real, predicted, ties="count"),
    }
    for n in k:
        held = metrics.portfolio_at_k(real, predicted, n, baseline)
        found |= {f"regret@{n}": metrics.regret_at_k(real, predicted, n)}
        found |= {f"regret_sum@{n}": metrics.regret_at_k(real, predicted, n, convention="scope_rl")}
        found |= {f"{name}@{n}": getattr(held, name) for name in ("best", "worst", "mean", "std")}
        found[f"sharpe@{n}"] = float("nan") if held.sharpe is None else held.sharpe
        found[f"sharpe_scope_rl@{n}"] = metrics.sharpe_ratio_at_k(real, predicted, n, baseline, convention="scope_rl")
    return found


def scorers(table: ScoreTable, combiners: Sequence[str]) -> dict[str, Array]:
    """Every score of a table, larger = better [C]: those given, and the combinations of sim and ood."""
    found = {name: -values if name == "ood" else values for name, values in table.scores.items()}
    for rule in combiners:
        if rule not in COMBINERS:
            raise RankingError(f"no combiner {rule!r}; {did_you_mean(rule, COMBINERS)}")
        if "ood" in found:
            found[f"vsdr:{rule}"] = combine([found["sim"], found["ood"]], rule)
    return found


def backtest(
    table: ScoreTable,
    *,
    k: Sequence[int] = (1, 3),
    baseline: str | None = None,
    combiners: Sequence[str] = ("rank_product", "robust_z"),
    choose_by: str = "regret@1",
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge every score on every domain, and the choice of a score by leaving one domain out; plain data.

    baseline: policy whose real value SharpeRatio@k is measured from; None = the mean of the pool. choose_by: metric by which
    the other domains choose. Intervals resample training configurations (column config, else run) with replacement, where there
    are several.

    {"domains": {domain: {"num_policies", "num_runs", "baseline", "scores": {score: {metric: {"value", "interval"}}}}},
    "mean": {score: {metric: mean over domains}}, "leave_one_out": {domain: {"chosen", metric: value}}, "plackett_luce":
    {"weights": {score: fitted on all domains}, "sharpness"} or {"not_computed": why}, "conventions", "notes"}. The line
    "plackett_luce" of a domain is of weights fitted on all others.

    Raises:
        RankingError: no real values, fewer than 3 policies in a domain, k beyond the pool, or an unknown baseline or metric.
    """
    domains = sorted(set(table.domains))
    sizes = [int(np.isfinite(table.real[[d == name for d in table.domains]]).sum()) for name in domains]
    if not any(sizes):
        raise RankingError("no policy has a value in the column 'real': a back-test needs what was really obtained")
    if min(sizes) < 3:
        small = domains[int(np.argmin(sizes))] or "the table"
        raise RankingError(f"{small} has {min(sizes)} policies with a real value: a back-test needs at least 3")
    k = sorted({int(n) for n in k})
    if not k or k[0] < 1 or k[-1] > min(sizes):
        raise RankingError(f"k={k}: give sizes of shortlists from 1 to {min(sizes)}, the policies of the smallest domain")
    parts = {name: table.take([i for i, d in enumerate(table.domains) if d == name]) for name in domains}
    parts = {name: part.take(np.flatnonzero(np.isfinite(part.real)).tolist()) for name, part in parts.items()}
    found = {name: _domain(part, k, baseline, combiners, num_bootstrap, seed) for name, part in parts.items()}
    names = list(next(iter(found.values()))["scores"])
    fitted = _fitted(parts, found, k, num_bootstrap, seed)
    keys = list(next(iter(next(iter(found.values()))["scores"].values())))
    if choose_by not in keys:
        raise RankingError(f"choose_by={choose_by!r}; {did_you_mean(choose_by, keys)}")
    mean = {name: {key: _mean([found[d]["scores"][name][key]["value"] for d in domains]) for key in keys} for name in names}
    notes = [
        f"{d or 'the table'}: {n} policies, below {MIN_POOL}: metrics of so few are coarse"
        for d, n in zip(domains, sizes, strict=True)
        if n < MIN_POOL
    ]
    if len(domains) == 1:
        notes.append("one domain: no score can be chosen on other domains; the best of its lines is flattered by the choice")
    return {
        "domains": found,
        "mean": mean,
        "leave_one_out": _leave_one_out(found, names, choose_by) if len(domains) > 1 else {},
        "plackett_luce": fitted,
        "choose_by": choose_by,
        "k": k,
        "conventions": CONVENTIONS,
        "notes": notes,
    }


def _fitted(
    parts: Mapping[str, ScoreTable], found: Mapping[str, Any], k: Sequence[int], num_bootstrap: int, seed: int
) -> dict[str, Any]:
    """Plackett-Luce weights of the scores that all policies have; adds the line of the weights of all other domains to each."""
    if len(parts) < 2:
        return {"not_computed": "one domain: weights fitted on it would judge themselves"}
    each = {domain: scorers(part, ()) for domain, part in parts.items()}
    names = [name for name in next(iter(each.values())) if all(np.isfinite(scores[name]).all() for scores in each.values())]
    if len(names) < 2:
        return {"not_computed": "fewer than two scores that every policy has: nothing to weigh"}
    pools = {domain: (np.stack([scores[name] for name in names]), parts[domain].real) for domain, scores in each.items()}
    for domain, (terms, real) in pools.items():
        rule = fit_plackett_luce([pool for other, pool in pools.items() if other != domain])
        start, configs = found[domain]["baseline"], parts[domain].configs
        found[domain]["scores"]["plackett_luce"] = _line(
            real, combine(list(terms), rule), configs, k, start, num_bootstrap, seed
        )
    whole = fit_plackett_luce(list(pools.values()))
    return {"weights": dict(zip(names, map(float, whole.weights), strict=True)), "sharpness": whole.sharpness}


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if np.isfinite(v)]
    return float(np.mean(known)) if known else float("nan")


def _domain(
    table: ScoreTable, k: Sequence[int], baseline: str | None, combiners: Sequence[str], num_bootstrap: int, seed: int
) -> dict[str, Any]:
    if baseline is not None and baseline not in table.policies:
        raise RankingError(f"baseline={baseline!r} has no real value; {did_you_mean(baseline, table.policies)}")
    start = float(table.real.mean()) if baseline is None else float(table.real[table.policies.index(baseline)])
    lines: dict[str, Any] = {}
    for name, predicted in scorers(table, combiners).items():
        at = np.flatnonzero(np.isfinite(predicted))
        if at.size < max(3, k[-1]):
            lines[name] = {key: {"value": float("nan"), "interval": None} for key in measure(table.real, table.real, k, start)}
            lines[name]["num_policies"] = {"value": float(at.size), "interval": None}
            continue
        lines[name] = _line(table.real[at], predicted[at], [table.configs[i] for i in at], k, start, num_bootstrap, seed)
    return {"num_policies": len(table), "num_runs": len(set(table.runs)), "baseline": start, "scores": lines}


def _line(
    real: Array, predicted: Array, configs: Sequence[str], k: Sequence[int], baseline: float, num_bootstrap: int, seed: int
) -> dict[str, Any]:
    point = measure(real, predicted, k, baseline)
    draws = None
    if len(set(configs)) > 2 and num_bootstrap:
        generator = stream(seed, "backtest", len(real))
        draws = cluster_bootstrap(
            lambda at: (
                list(measure(real[at], predicted[at], [min(n, len(at)) for n in k], baseline).values())
                if len(k) == len({min(n, len(at)) for n in k})
                else [np.nan] * len(point)
            ),
            configs,
            generator,
            num_bootstrap,
        )
    intervals = [None if draws is None else list(percentile_interval(draws[:, m])) for m in range(len(point))]
    line: dict[str, Any] = {key: {"value": v, "interval": i} for (key, v), i in zip(point.items(), intervals, strict=True)}
    return {**line, "num_policies": {"value": float(len(real)), "interval": None}}


def _leave_one_out(found: Mapping[str, Any], names: Sequence[str], choose_by: str) -> dict[str, Any]:
    """What the score that was best on all other domains is worth on each."""
    sign = 1.0 if choose_by.startswith(LOWER_IS_BETTER) else -1.0
    result = {}
    for domain in found:
        others = [found[d]["scores"] for d in found if d != domain]
        value = {name: sign * _mean([scores[name][choose_by]["value"] for scores in others]) for name in names}
        chosen = min(names, key=lambda name: (np.nan_to_num(value[name], nan=np.inf), name))
        values = {key: cell["value"] for key, cell in found[domain]["scores"][chosen].items()}
        result[domain] = {"chosen": chosen, **values}
    return result
