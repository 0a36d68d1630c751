"""The fields of a ranking's lines, and the ranking made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from robopolicy.ranking.detectors import Detection
from robopolicy.ranking.intervals import tango, wilson
from robopolicy.ranking.ordering import Ordered, Scored
from robopolicy.ranking.result import SCHEMA, CheckpointScore, Ranking
from robopolicy.ranking.statistics import Interval, holm, mcnemar, percentile_interval, prob_top_k
from robopolicy.ranking.tables import Array, Outcomes
from robopolicy.ranking.winners import shrink


def behind_leader(outcomes: Outcomes, leader: int, draws: Array) -> list[dict[str, Any] | None]:
    """Paired difference in simulated success of every checkpoint to the leader (None for the leader and the dropped).

    draws: success rates [1 + B, C] over the same resampled conditions for every checkpoint; they give the interval where a
    condition has several episodes.
    """
    paired = (outcomes.trials == outcomes.trials[leader]).all(axis=1)
    single = bool((outcomes.trials[leader] == 1).all())
    entries: list[dict[str, Any] | None] = []
    for c in range(len(outcomes.checkpoints)):
        if c == leader or not paired[c]:
            entries.append(None)
            continue
        difference = draws[:, c] - draws[:, leader]
        entry: dict[str, Any] = {"difference": float(difference[0]), "interval": None, "p_value": None, "p_holm": None}
        if single:
            lost, gained, entry["p_value"] = mcnemar(outcomes.successes[leader] > 0, outcomes.successes[c] > 0)
            entry["interval"] = [float(end) for end in tango(gained, lost, outcomes.episodes[c])]
        else:
            entry["interval"] = list(percentile_interval(difference[1:]))
        entries.append(entry)
    return _with_holm(entries)


def behind_leader_given(sim: Array, episodes: Array | None, leader: int, draws: Array) -> list[dict[str, Any] | None]:
    """The same for rates [C] of so many episodes each, not paired: Fisher's exact test; draws [1 + B, C] are independent."""
    entries: list[dict[str, Any] | None] = []
    for c in range(len(sim)):
        if c == leader:
            entries.append(None)
            continue
        entry: dict[str, Any] = {"difference": float(sim[c] - sim[leader]), "interval": None, "p_value": None, "p_holm": None}
        if episodes is not None:
            won = [round(sim[i] * episodes[i]) for i in (leader, c)]
            lost = [int(episodes[i]) - n for i, n in zip((leader, c), won, strict=True)]
            entry["interval"] = list(percentile_interval(draws[1:, c] - draws[1:, leader]))
            entry["p_value"] = float(stats.fisher_exact([won, lost]).pvalue)
        entries.append(entry)
    return _with_holm(entries)


def _with_holm(entries: list[dict[str, Any] | None]) -> list[dict[str, Any] | None]:
    tested = [e for e in entries if e is not None and e["p_value"] is not None]
    for entry, adjusted in zip(tested, holm([e["p_value"] for e in tested]), strict=True):
        entry["p_holm"] = float(adjusted)
    return entries


def obtained(target: Outcomes | None) -> dict[str, tuple[float, Interval]]:
    """{checkpoint: (success on the target, its interval)}."""
    if target is None:
        return {}
    low, high = wilson(target.num_successes, target.episodes)
    rows = zip(target.checkpoints, target.success, low, high, strict=True)
    return {name: (float(rate), (float(a), float(b))) for name, rate, a, b in rows}


def given_rates(real: Array, episodes: Array | None) -> list[tuple[float | None, Interval | None]]:
    """(what was obtained, its interval where the number of episodes is known) of every policy."""
    found: list[tuple[float | None, Interval | None]] = []
    for c, value in enumerate(real):
        trials = 0 if episodes is None or not np.isfinite(value) else int(episodes[c])
        interval = wilson(round(value * trials), trials) if trials else None
        rate = float(value) if np.isfinite(value) else None
        found.append((rate, (float(interval[0]), float(interval[1])) if interval else None))
    return found


def detected_fields(found: Detection | None, detector: str) -> dict[str, Any]:
    """The fields of a line that come from the detectors; undefined effect sizes are None."""
    if found is None:
        return {"ood": None, "ood_interval": None, "effect_sizes": {}, "conformal": None, "encoder": {}, "flags": ()}
    sizes = {name: size if np.isfinite(size) else None for name, size in found.effect_sizes.items()}
    return {
        "ood": sizes[detector],
        "ood_interval": None if sizes[detector] is None else found.interval,
        "effect_sizes": sizes,
        "conformal": found.conformal if np.isfinite(found.conformal) else None,
        "encoder": {n: getattr(found, n) for n in ("num_features", "num_dead", "num_leaking", "effective_rank")},
        "flags": found.flags,
    }


def _placed(ordered: Ordered, c: int, k: Sequence[int], top: Mapping[int, Array], groups: list[int] | None) -> dict[str, Any]:
    """The fields of a line that follow from the places."""
    known = bool(ordered.num_draws)
    raw = {name: value[0, c] for name, value in ordered.scores.items() if name != "vsdr"}
    return {
        "rank": 1 + int((ordered.places["vsdr"][0] < ordered.places["vsdr"][0, c]).sum()),
        "group": None if groups is None else groups[c],
        "vsdr": float(ordered.scores["vsdr"][0, c]),
        "scores": {name: float(value) if np.isfinite(value) else None for name, value in raw.items()},
        "ranks": {key: float(place[0, c]) for key, place in ordered.places.items()},
        "rank_intervals": {key: percentile_interval(v[1:, c]) for key, v in ordered.places.items()} if known else {},
        "prob_best": float(top[1][c]) if known else None,
        "prob_top": {str(n): float(top[n][c]) for n in k} if known else {},
    }


def shrunk_fields(successes: Array, trials: Array) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(statistics, fields of the lines [C]) of empirical Bayes over the pool."""
    if len(successes) < 2:
        return {"shrinkage": {"not_computed": "one policy is no pool"}}, [{} for _ in successes]
    found = shrink(successes, trials)
    rows = zip(found.mean, found.low, found.high, strict=True)
    lines = [{"shrunk": float(mean), "shrunk_interval": (float(low), float(high))} for mean, low, high in rows]
    return {"shrinkage": {"alpha": found.alpha, "beta": found.beta}}, lines


def finished(
    scored: Scored,
    ordered: Ordered,
    settings: dict[str, Any],
    details: Sequence[Mapping[str, Any]],
    statistics: Mapping[str, Any],
    exact: tuple[str, Array] | None = None,
    **facts: Any,
) -> Ranking:
    """The ranking. details: the remaining fields of the line of each policy [C]; exact: an exact test of the final score, its
    name and the p-values of all pairs [C, C], where there is one."""
    test, p_values = exact or ("of the replicates", None)
    k, groups = settings["k"], ordered.groups(p_values)
    draws = ordered.places["vsdr"][1:]
    top = {n: prob_top_k(draws, n) for n in {1, *k}} if ordered.num_draws else {}
    lines = [
        CheckpointScore(checkpoint=scored.names[c], **_placed(ordered, c, k, top, groups), **details[c])
        for c in ordered.order("vsdr")
    ]
    separation = {"not_computed": "no replicates"} if groups is None else {"num_groups": 1 + max(groups), "test": test}
    return Ranking(
        schema=SCHEMA,
        settings={**settings, "combined": list(scored.combined)},
        num_draws=ordered.num_draws,
        checkpoints=tuple(lines),
        orders={name: [scored.names[c] for c in ordered.order(name)] for name in ordered.scores},
        statistics={"separation": separation, **statistics},
        **facts,
    )
