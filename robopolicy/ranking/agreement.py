"""Does a predicted order hold on the target? Rank metrics of each order against obtained outcomes, resampled by run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from robopolicy.ranking import metrics
from robopolicy.ranking.statistics import bootstrap_means, cluster_bootstrap, percentile_interval, ranks, stream
from robopolicy.ranking.tables import Outcomes

Array = np.ndarray
MIN_RUNS = 3
NUM_HALVES = 200


def _as_ranks(scores: Array) -> Array:
    """Larger = better, finite: minus the mid-rank, missing scores last."""
    return -ranks(scores)


def split_half_reliability(successes: Array, counts: Array, generator: np.random.Generator) -> float:
    """How well the outcomes rank the same checkpoints again: mean Spearman between random halves of the conditions.

    Stepped up to the full length after Spearman and Brown, 2r / (1 + r); no score can be expected to agree with the
    outcomes better than its root. NaN with fewer than 2 conditions or constant outcomes.

    successes: per condition [C, K]. counts: episodes of each condition [K].
    """
    num = len(counts)
    halves = np.zeros((NUM_HALVES, num), dtype=np.int32)
    for row in halves:
        row[generator.permutation(num)[: num // 2]] = 1
    if num < 2:
        return float("nan")
    first, second = bootstrap_means(successes, counts, halves), bootstrap_means(successes, counts, 1 - halves)
    values = np.asarray([metrics.spearman(a, b) for a, b in zip(first, second, strict=True)])
    values = values[np.isfinite(values)]
    mean = float(values.mean()) if values.size else float("nan")
    return max(2 * mean / (1 + mean), -1.0) if mean > -1 else float("nan")


def _measure(real: Array, scores: Array, k: Sequence[int]) -> dict[str, float]:
    measured = {"spearman": metrics.spearman(real, scores), "mmrv": metrics.mmrv(real, scores, ties="count")}
    return measured | {f"regret@{n}": metrics.regret_at_k(real, scores, min(n, real.size)) for n in k}


def _note(num_checkpoints: int, num_runs: int) -> str:
    if num_runs < 2:
        return f"{num_checkpoints} checkpoints of one training run: no interval can be given"
    if num_runs < MIN_RUNS:
        return f"{num_checkpoints} checkpoints of {num_runs} training runs: intervals show the mechanics only"
    return f"{num_checkpoints} checkpoints of {num_runs} training runs; intervals resample whole runs"


def agreement(
    orders: Mapping[str, Array], outcomes: Outcomes, *, k: Sequence[int], seed: int, num_bootstrap: int
) -> dict[str, Any]:
    """Each order {name: scores [C], larger = better} against the success obtained on the target: JSON-ready.

    "orders": {name: {metric: {"value", "interval"}, "kendall", "portfolio": [...], "minus_sim": {...}}}. "minus_sim" is the
    paired difference to the order named "sim". "random" is the expectation of a blind pick. Intervals resample training
    runs with replacement; None with a single run. k: sizes of shortlists; 1 is always among them.
    """
    truth, runs = outcomes.success, outcomes.runs
    k = sorted({1, *(n for n in k if n <= truth.size)})
    table = {name: _as_ranks(np.asarray(scores, dtype=np.float64)) for name, scores in orders.items()}
    num_runs = len(set(runs))
    names = list(_measure(truth, truth, k))

    def measure_all(at: Array) -> list[list[float]]:
        return [list(_measure(truth[at], scores[at], k).values()) for scores in table.values()]

    draws = cluster_bootstrap(measure_all, runs, stream(seed, "agreement", truth.size), num_bootstrap) if num_runs > 1 else None

    def interval(values: Array | None) -> list[float] | None:
        return None if values is None else list(percentile_interval(values))

    sim = list(table).index("sim") if "sim" in table else None
    points = np.asarray(measure_all(np.arange(truth.size)))
    result: dict[str, Any] = {}
    for row, (name, scores) in enumerate(table.items()):
        entry: dict[str, Any] = {
            metric: {"value": float(points[row, m]), "interval": interval(None if draws is None else draws[:, row, m])}
            for m, metric in enumerate(names)
        }
        entry["kendall"] = metrics.kendall(truth, scores)
        entry["portfolio"] = [asdict(metrics.portfolio_at_k(truth, scores, n, float(truth.mean()))) for n in k]
        if sim is not None and row != sim:
            entry["minus_sim"] = {
                metric: {
                    "value": float(points[row, m] - points[sim, m]),
                    "interval": interval(None if draws is None else draws[:, row, m] - draws[:, sim, m]),
                }
                for m, metric in enumerate(names)
            }
        result[name] = entry
    return {
        "orders": result,
        "random": {"spearman": 0.0, "regret@1": float(truth.max() - truth.mean())},
        "convention": "SharpeRatio@k: population std, baseline = mean of the pool; regret@k: max - max among the k (DOPE, not "
        "rescaled); MMRV counts a tie in a score as a violation; ties in a score are broken against it",
        "reliability": split_half_reliability(outcomes.successes, outcomes.counts, stream(seed, "reliability", truth.size)),
        "num_checkpoints": int(truth.size),
        "num_runs": num_runs,
        "num_conditions": len(outcomes.conditions),
        "num_episodes": outcomes.num_episodes,
        "note": _note(int(truth.size), num_runs),
    }
