"""Score tables in, ranking out: simulated success (V), distance of the target's observations (O), and VSDR of the two.

After "Validate on Sim, Detect on Real" (Leibovich et al., ICRA 2022, arXiv 2111.00765). The paper's combination rule and
detectors could not be verified: this is a VSDR-style score with rules of our own, all of them reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from robopolicy.ranking.agreement import agreement
from robopolicy.ranking.combine import COMBINERS, MIN_POOL, Rule
from robopolicy.ranking.detectors import DETECTORS, Detection, detect
from robopolicy.ranking.episode_table import check_episodes
from robopolicy.ranking.intervals import wilson
from robopolicy.ranking.lines import (
    behind_leader,
    behind_leader_given,
    detected_fields,
    finished,
    given_rates,
    obtained,
    shrunk_fields,
)
from robopolicy.ranking.ordering import Ordered, Scored, constant_draws, rate_draws, success_draws
from robopolicy.ranking.plackett_luce import PlackettLuce
from robopolicy.ranking.real_means import real_means
from robopolicy.ranking.result import Ranking
from robopolicy.ranking.score_table import ScoreTable
from robopolicy.ranking.seeds import training_seeds
from robopolicy.ranking.separation import fisher_matrix, mcnemar_matrix
from robopolicy.ranking.statistics import (
    PairedComparison,
    paired_comparison,
    stream,
)
from robopolicy.ranking.tables import FeatureSet, RankingError, check_features
from robopolicy.spec import did_you_mean

Array = np.ndarray

PLACKETT_LUCE = "plackett_luce"  # combiner of given weights
COMBINED = ("sim", "ood")  # the terms of VSDR; others enter where they are asked for
PARTIAL_REPLICATES = "intervals and P(best) are those of {known}; the error of {fixed} is not known"

ONE_TRAINING = (
    "several checkpoints of one run ({runs}): distance tells trainings apart, not how far one has come (an encoder trained "
    "less finds less strange), so among those of a run the order is weak: give one of each, its last or the best in simulation"
)


def _detection_terms(names: Sequence[str], detections: Mapping[str, Detection], detector: str, num: int) -> Array:
    """Minus the effect size [1 + B, C], larger = better; NaN where a checkpoint has no features."""
    ood = np.full((1 + num, len(names)), np.nan)
    for c, name in enumerate(names):
        if name in detections:
            size = detections[name].effect_sizes[detector]
            ood[0, c] = -size if np.isfinite(size) else -np.inf
            ood[1:, c] = detections[name].draws[:num]
    return ood


def _pool_warnings(scored: Scored, runs: Sequence[str]) -> list[str]:
    num, sim = len(scored.names), scored.terms["sim"][0]
    seen = int((~np.isnan(scored.terms["ood"][0])).sum()) if "ood" in scored.terms else 0
    fallback = ": simulated success alone orders them" if scored.combined == ("sim",) else ""
    several = [name for name, count in Counter(runs).items() if count > 1] if "ood" in scored.combined else []
    checks = [
        (not seen, "no features of target observations: the order is simulated success alone"),
        (0 < seen < num, f"{num - seen} of {num} checkpoints have no features and are placed by simulated success alone"),
        (
            seen and num < MIN_POOL,
            f"{num} checkpoints are too few for a score relative to its pool (below {MIN_POOL}){fallback}",
        ),
        (num > 1 and bool((sim == sim[0]).all()), "simulated success is the same for all checkpoints"),
        (bool(several), ONE_TRAINING.format(runs=", ".join(several))),
    ]
    return [message for raised, message in checks if raised]


def _check_detector(detector: str) -> None:
    if detector not in DETECTORS:
        raise RankingError(f"no detector {detector!r}; {did_you_mean(detector, DETECTORS)}")


def check_settings(detector: str, combiner: str, num_bootstrap: int, k: Sequence[int]) -> None:
    """Refuse settings of `rank` that cannot work, whatever is ranked."""
    _check_detector(detector)
    if combiner not in (*COMBINERS, PLACKETT_LUCE):
        raise RankingError(f"no combiner {combiner!r}; {did_you_mean(combiner, (*COMBINERS, PLACKETT_LUCE))}")
    if num_bootstrap < 100:
        raise RankingError(f"num_bootstrap={num_bootstrap}: intervals need at least 100 replicates")
    if not k or min(k) < 1:
        raise RankingError(f"k={tuple(k)}: give the sizes of the shortlists, each at least 1, e.g. (1, 3)")


def check_terms(
    combiner: str, wanted: Sequence[str] | None, weights: Mapping[str, float] | None, known: Collection[str]
) -> None:
    """Refuse a combination of scores other than those `known`, or one that does not fit its combiner."""
    if combiner != PLACKETT_LUCE and weights:
        raise RankingError(f"weights are for combiner={PLACKETT_LUCE}, and combiner={combiner}")
    if combiner == PLACKETT_LUCE and (wanted or not weights):
        raise RankingError(f"combiner={PLACKETT_LUCE} needs weights=backtest.json, which say what is combined: no combine=")
    for setting, names in (("combine", wanted), ("weights", weights)):
        for name in names or ():
            if name not in known:
                raise RankingError(f"{setting} has {name!r}, which no score has; {did_you_mean(name, known)}")


def _rule(
    combiner: str, wanted: Sequence[str] | None, weights: Mapping[str, float] | None, terms: Mapping[str, Array]
) -> tuple[tuple[str, ...], str | Rule]:
    """The terms that make the score, and how: those asked for, else those of VSDR that there are, in a large enough pool."""
    check_terms(combiner, wanted, weights, terms)
    if weights:
        names = tuple(name for name in terms if name in weights)
        return names, PlackettLuce(np.array([weights[name] for name in names]), 1.0)
    small = terms["sim"].shape[1] < MIN_POOL
    return tuple(wanted or (["sim"] if small else [name for name in COMBINED if name in terms])), combiner


def _combine(scored: Scored, rule: str | Rule) -> Ordered:
    """The places. Raises RankingError for a policy that has none of the combined scores."""
    nothing = np.all([np.isnan(scored.terms[name][0]) for name in scored.combined], axis=0)
    if nothing.any():
        raise RankingError(
            f"{scored.names[int(np.argmax(nothing))]!r} has no {' or '.join(scored.combined)}, so nothing places it: give it "
            "one, or combine sim too"
        )
    return scored.ordered(rule)


def detect_pool(
    features: Mapping[str, Mapping[str, Any]], names: Sequence[str], *, detector: str, seed: int, num_bootstrap: int
) -> dict[str, Detection]:
    """What the detectors say about every checkpoint that has features; no episode changes it, so `rank` may be given it.

    Raises:
        RankingError: an unknown detector, or features that do not fit.
    """
    _check_detector(detector)
    return _detect(check_features(features, names), detector, seed, num_bootstrap)


def _detect(sets: Mapping[str, FeatureSet], detector: str, seed: int, num_bootstrap: int) -> dict[str, Detection]:
    return {n: detect(s, detector=detector, seed=seed, num_bootstrap=num_bootstrap) for n, s in sets.items()}


def rank(
    episodes: pa.Table | str | Path,
    features: Mapping[str, Mapping[str, Any]] | None,
    *,
    target_outcomes: pa.Table | None = None,
    detector: str = "mahalanobis",
    combiner: str = "rank_product",
    seed: int = 0,
    num_bootstrap: int = 2000,
    k: Sequence[int] = (1, 3),
    further: Mapping[str, Mapping[str, float]] | None = None,
    combined: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    dropped: Mapping[str, int] | None = None,
    splits: Sequence[str] | None = None,
    detected: Mapping[str, Detection] | None = None,
) -> Ranking:
    """Orders the checkpoints of `episodes` for the target.

    episodes: simulated episodes, one row each, `tables.COLUMNS`, or the parquet file they are in; the same conditions for every
        checkpoint, but for those that were `dropped` early.
    features: {checkpoint: {"fit", "calibration", "target": float [N, D]}} of encoders (`tables.FeatureSet`); None, or a
        checkpoint left out, means that simulated success alone places it.
    target_outcomes: episodes on the target (real or held-out simulator) of some or all checkpoints; they check the orders
        and never make them.
    k: sizes of shortlists for prob_top and regret@k; those above the size of the pool are dropped.
    further: {score: {checkpoint: value}}, larger = better; shown, and part of the order where `combined` names it.
    combined: the terms that make the score; None = "sim" and, with features and 8 checkpoints or more, "ood".
    weights: {term: weight} of combiner "plackett_luce", as `backtest` fits them.
    dropped: {checkpoint: round} of sequential halving after which a checkpoint was evaluated no further.
    splits: rows of these splits only; None = all.
    detected: what `detect_pool` made of `features` with the same settings, where that is known already.

    The bootstrap resamples conditions (for V) and episodes of target and hold-out observations (for O) together, the same
    ones for every checkpoint; detectors are fitted once. Equal inputs give a byte-identical `to_json`, whatever the order
    of the rows.

    Raises:
        RankingError: inputs that cannot be ranked, naming what and the remedy.
    """
    check_settings(detector, combiner, num_bootstrap, k)
    dropped = dict(dropped or {})
    outcomes = check_episodes(episodes, nested=bool(dropped), splits=splits)
    names = outcomes.checkpoints
    outcomes.indices(dropped)
    sets = check_features(features or {}, names)
    target = None if target_outcomes is None else check_episodes(target_outcomes, "target_outcomes")
    at = [] if target is None else outcomes.indices(target.checkpoints)

    detections = _detect(sets, detector, seed, num_bootstrap) if detected is None else detected
    terms = {"sim": success_draws(outcomes, seed, num_bootstrap)}
    if detections:
        terms["ood"] = _detection_terms(names, detections, detector, num_bootstrap)
    for term, values in (further or {}).items():
        outcomes.indices(values)
        terms[term] = constant_draws([values.get(name, np.nan) for name in names], num_bootstrap)
    last = 1 + max(dropped.values(), default=0)
    parts, rule = _rule(combiner, combined, weights, terms)
    scored = Scored(names, terms, parts, np.array([last - dropped.get(n, last) for n in names]))
    ordered = _combine(scored, rule)
    shortlists = sorted({int(n) for n in k if n <= len(names)})
    settings = {"detector": detector, "combiner": combiner, "seed": seed, "num_bootstrap": num_bootstrap, "k": shortlists}
    check = None
    if target is not None and len(at) > 1:
        predicted = {name: value[0, at] for name, value in ordered.scores.items()}
        check = agreement(predicted, target, k=shortlists, seed=seed, num_bootstrap=num_bootstrap)
    warnings = _pool_warnings(scored, outcomes.runs)
    num_fit = {len(s.fit) for s in sets.values()}
    if len(num_fit) > 1:
        warnings.append(f"detectors were fitted on {sorted(num_fit)} rows: give every checkpoint equally many")
    low, high = wilson(outcomes.num_successes, outcomes.episodes)
    on_target, behind = obtained(target), behind_leader(outcomes, ordered.order("vsdr")[0], terms["sim"])
    statistics, shrunk = shrunk_fields(outcomes.num_successes, outcomes.episodes)
    statistics["training_seeds"] = (
        {"not_computed": "checkpoints were dropped early, so rates of different seeds are not of the same conditions"}
        if outcomes.nested
        else training_seeds(outcomes.success, outcomes.configs, outcomes.runs, outcomes.steps, outcomes)
    )
    statistics["real_means"] = (
        {"not_computed": "no outcomes on the target were given"} if target is None else real_means(outcomes, target)
    )
    details = []
    for c, name in enumerate(names):
        success, interval = on_target.get(name, (None, None))
        line = {
            "run": outcomes.runs[c],
            "step": outcomes.steps[c],
            "success": float(outcomes.success[c]),
            "success_interval": (float(low[c]), float(high[c])),
            "num_episodes": int(outcomes.episodes[c]),
            "dropped": dropped.get(name),
            "progress": float(outcomes.progress[c]),
            "mean_return": float(outcomes.returns[c]),
            "behind_leader": behind[c],
            "target_success": success,
            "target_interval": interval,
        }
        details.append(line | shrunk[c] | detected_fields(detections.get(name), detector))
    paired = scored.combined == ("sim",) and bool((outcomes.trials == 1).all())
    return finished(
        scored,
        ordered,
        settings,
        details,
        statistics,
        ("exact McNemar", mcnemar_matrix(outcomes.successes)) if paired else None,
        check=check,
        num_conditions=len(outcomes.conditions),
        num_episodes=outcomes.num_episodes,
        num_target_observations=len(next(iter(sets.values())).target) if sets else 0,
        warnings=tuple(warnings),
    )


def _check_given(table: ScoreTable, ordered: Ordered, k: Sequence[int], seed: int, num: int) -> dict[str, Any] | None:
    """Agreement of the orders with `real`, over the policies that have it."""
    at = np.flatnonzero(np.isfinite(table.real))
    if at.size < 2:
        return None
    predicted = {name: value[0, at] for name, value in ordered.scores.items()}
    return agreement(predicted, table.take(at.tolist()).obtained, k=k, seed=seed, num_bootstrap=num)


def rank_scores(
    table: ScoreTable,
    features: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    detector: str = "mahalanobis",
    combiner: str = "rank_product",
    seed: int = 0,
    num_bootstrap: int = 2000,
    k: Sequence[int] = (1, 3),
    combined: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    detected: Mapping[str, Detection] | None = None,
) -> Ranking:
    """Orders the policies of a score table; no checkpoint or episode is needed.

    features, detected: as in `rank`, in place of a column "ood". Intervals and P(best) exist where the table says how many
    episodes the simulated rates come from (column `episodes`): the rates are then drawn from their posteriors (Beta, of
    Jeffreys' prior), independently; given scores stay fixed. `real`, where it is known, checks the orders and never makes them.

    Raises:
        RankingError: settings that do not work, features beside a column "ood", or policies of several domains (they are for
            the back-test).
    """
    check_settings(detector, combiner, num_bootstrap, k)
    if len(set(table.domains)) > 1:
        raise RankingError(
            f"the scores are of {len(set(table.domains))} domains: `robopolicy rank backtest` judges scorers over domains; "
            "to rank, give the rows of one"
        )
    episodes = table.episodes.get("sim")
    known = episodes is not None and bool((episodes > 0).all())
    num = num_bootstrap if known else 0
    sim = table.scores["sim"]
    terms = {"sim": rate_draws(sim, episodes, seed, num) if known else constant_draws(sim, 0)}  # type: ignore[arg-type]
    given = {n: constant_draws(-v if n == "ood" else v, num) for n, v in table.scores.items() if n != "sim"}
    sets = check_features(features or {}, table.policies)
    if sets and "ood" in given:
        raise RankingError("the table has a column ood, and features= would make another: leave out one of the two")
    detections = _detect(sets, detector, seed, num_bootstrap) if detected is None else detected
    if detections:
        terms["ood"] = _detection_terms(table.policies, detections, detector, num)
    terms |= given
    parts, rule = _rule(combiner, combined, weights, terms)
    scored = Scored(table.policies, terms, parts, np.zeros(len(table), int))
    ordered = _combine(scored, rule)
    shortlists = sorted({int(n) for n in k if n <= len(table)})
    name = detector if detections else "given"
    settings = {"detector": name, "combiner": combiner, "seed": seed, "num_bootstrap": num_bootstrap, "k": shortlists}
    warnings = _pool_warnings(scored, table.runs)
    if known and given:
        drawn = "the simulated rate and the distance" if detections else "the simulated rate alone"
        warnings.append(PARTIAL_REPLICATES.format(known=drawn, fixed=", ".join(given)))
    rates = bool(((sim >= 0) & (sim <= 1)).all())
    real = given_rates(table.real, table.episodes.get("real"))
    simulated = given_rates(sim, episodes if known else None)
    leader = ordered.order("vsdr")[0]
    behind = behind_leader_given(sim, episodes if known else None, leader, terms["sim"])
    statistics: dict[str, Any] = {"shrinkage": {"not_computed": "the table does not say how many episodes a rate comes from"}}
    shrunk: list[dict[str, Any]] = [{} for _ in table.policies]
    if known and episodes is not None:
        statistics, shrunk = shrunk_fields(np.round(sim * episodes), episodes)
    statistics["training_seeds"] = training_seeds(sim, table.configs, table.runs, table.steps)
    details = []
    for c in range(len(table)):
        found = detected_fields(detections.get(table.policies[c]), detector)
        if "ood" in given and np.isfinite(table.scores["ood"][c]):
            found["ood"] = float(table.scores["ood"][c])
        line = {
            "run": table.runs[c],
            "step": table.steps[c],
            "success": float(sim[c]) if rates else None,
            "success_interval": simulated[c][1],
            "num_episodes": int(episodes[c]) if known else None,  # type: ignore[index]
            "dropped": None,
            "progress": None,
            "mean_return": None,
            "behind_leader": behind[c],
            "target_success": real[c][0],
            "target_interval": real[c][1],
        }
        details.append(line | shrunk[c] | found)
    tested = None
    if known and scored.combined == ("sim",):
        tested = "Fisher's exact", fisher_matrix(np.round(sim * episodes), episodes)
    return finished(
        scored,
        ordered,
        settings,
        details,
        statistics,
        tested,
        check=_check_given(table, ordered, shortlists, seed, num_bootstrap),
        num_conditions=0,
        num_episodes=int(episodes.max()) if known else 0,  # type: ignore[union-attr]
        num_target_observations=len(next(iter(sets.values())).target) if sets else 0,
        warnings=tuple(warnings),
    )


def compare(episodes: pa.Table, base: str, other: str, *, seed: int = 0, num_bootstrap: int = 2000) -> PairedComparison:
    """Two checkpoints of one episode table, paired by condition: e.g. a policy and the same policy steered.

    Raises:
        RankingError: an unknown checkpoint, or not the same conditions for both.
    """
    outcomes = check_episodes(episodes)
    a, b = outcomes.indices((base, other))
    generator = stream(seed, "compare", len(outcomes.conditions))
    return paired_comparison(outcomes.successes[a], outcomes.successes[b], outcomes.counts, generator, num_bootstrap)
