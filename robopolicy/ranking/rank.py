"""Score tables in, ranking out: simulated success (V), distance of the target's observations (O), and VSDR of the two.

After "Validate on Sim, Detect on Real" (Leibovich et al., ICRA 2022, arXiv 2111.00765). The paper's combination rule and
detectors could not be verified: this is a VSDR-style score with rules of our own, all of them reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from robopolicy.ranking.agreement import agreement
from robopolicy.ranking.combine import COMBINERS, combine
from robopolicy.ranking.detectors import DETECTORS, Detection, detect
from robopolicy.ranking.intervals import wilson
from robopolicy.ranking.result import SCHEMA, CheckpointScore, Ranking
from robopolicy.ranking.statistics import (
    Interval,
    PairedComparison,
    bootstrap_means,
    bootstrap_weights,
    holm,
    paired_comparison,
    percentile_interval,
    prob_top_k,
    ranks,
    stream,
)
from robopolicy.ranking.tables import Outcomes, RankingError, check_episodes, check_features
from robopolicy.spec import did_you_mean

Array = np.ndarray

MIN_POOL = 8


@dataclass(frozen=True)
class _Pool:
    """Everything known about the checkpoints. scores, places: {"vsdr", "sim", "ood": [1 + B, C]}, row 0 the estimate."""

    outcomes: Outcomes
    detections: Mapping[str, Detection]
    scores: Mapping[str, Array]
    places: Mapping[str, Array]

    def order(self, name: str) -> list[int]:
        """Checkpoints best first; ties by simulated success, then by id."""
        place, sim = self.places[name][0], self.places["sim"][0]
        return sorted(range(place.size), key=lambda c: (place[c], sim[c], self.outcomes.checkpoints[c]))


def _terms(outcomes: Outcomes, detections: Mapping[str, Detection], detector: str, seed: int, num: int) -> dict[str, Array]:
    """The terms to combine, larger = better, [1 + B, C]: row 0 is the estimate, the rest are its bootstrap replicates."""
    weights = bootstrap_weights(len(outcomes.conditions), num, stream(seed, "conditions", len(outcomes.conditions)))
    sim = np.vstack([outcomes.success, bootstrap_means(outcomes.successes, outcomes.counts, weights)])
    if not detections:
        return {"sim": sim}
    ood = np.full(sim.shape, np.nan)
    for c, name in enumerate(outcomes.checkpoints):
        if name in detections:
            size = detections[name].effect_sizes[detector]
            ood[0, c] = -size if np.isfinite(size) else -np.inf
            ood[1:, c] = detections[name].draws
    return {"sim": sim, "ood": ood}


def _warnings(pool: _Pool, num_fit: set[int]) -> tuple[str, ...]:
    num, seen, success = len(pool.outcomes.checkpoints), len(pool.detections), pool.outcomes.success
    checks = [
        (not seen, "no features of target observations: the order is simulated success alone"),
        (0 < seen < num, f"{num - seen} of {num} checkpoints have no features and are placed by simulated success alone"),
        (num < MIN_POOL, f"{num} checkpoints: the score is relative to its pool, which is coarse below {MIN_POOL}"),
        (len(num_fit) > 1, f"detectors were fitted on {sorted(num_fit)} rows: give every checkpoint equally many"),
        (num > 1 and bool((success == success[0]).all()), "simulated success is the same for all checkpoints"),
    ]
    return tuple(message for raised, message in checks if raised)


def _behind(outcomes: Outcomes, leader: int, seed: int, num_bootstrap: int) -> list[dict[str, Any] | None]:
    """Paired difference in simulated success of every checkpoint to the leader (None for the leader itself)."""
    entries: list[dict[str, Any] | None] = []
    for c in range(len(outcomes.checkpoints)):
        generator = stream(seed, "pairs", len(outcomes.conditions))  # the same conditions for every pair
        r = paired_comparison(outcomes.successes[leader], outcomes.successes[c], outcomes.counts, generator, num_bootstrap)
        entry = {"difference": r.difference, "interval": list(r.difference_interval), "p_value": r.p_value, "p_holm": None}
        entries.append(None if c == leader else entry)
    tested = [e for e in entries if e is not None and e["p_value"] is not None]
    for entry, adjusted in zip(tested, holm([e["p_value"] for e in tested]), strict=True):
        entry["p_holm"] = float(adjusted)
    return entries


def _obtained(target: Outcomes | None) -> dict[str, tuple[float, Interval]]:
    """{checkpoint: (success on the target, its interval)}."""
    if target is None:
        return {}
    low, high = wilson(target.successes.sum(axis=1), target.num_episodes)
    rows = zip(target.checkpoints, target.success, low, high, strict=True)
    return {name: (float(rate), (float(a), float(b))) for name, rate, a, b in rows}


def _detected(found: Detection | None, detector: str) -> dict[str, Any]:
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


def _lines(pool: _Pool, target: Outcomes | None, settings: Mapping[str, Any]) -> tuple[CheckpointScore, ...]:
    outcomes, places = pool.outcomes, pool.places
    low, high = wilson(outcomes.successes.sum(axis=1), outcomes.num_episodes)
    top = {k: prob_top_k(places["vsdr"][1:], k) for k in {1, *settings["k"]}}
    best_first = pool.order("vsdr")
    behind = _behind(outcomes, best_first[0], settings["seed"], settings["num_bootstrap"])
    obtained = _obtained(target)
    lines = []
    for c in best_first:
        name = outcomes.checkpoints[c]
        target_success, target_interval = obtained.get(name, (None, None))
        line = CheckpointScore(
            checkpoint=name,
            run=outcomes.runs[c],
            step=outcomes.steps[c],
            rank=1 + int((places["vsdr"][0] < places["vsdr"][0, c]).sum()),
            vsdr=float(pool.scores["vsdr"][0, c]),
            success=float(outcomes.success[c]),
            success_interval=(float(low[c]), float(high[c])),
            progress=float(outcomes.progress[c]),
            mean_return=float(outcomes.returns[c]),
            ranks={key: float(place[0, c]) for key, place in places.items()},
            rank_intervals={key: percentile_interval(place[1:, c]) for key, place in places.items()},
            prob_best=float(top[1][c]),
            prob_top={str(k): float(top[k][c]) for k in settings["k"]},
            behind_leader=behind[c],
            target_success=target_success,
            target_interval=target_interval,
            **_detected(pool.detections.get(name), settings["detector"]),
        )
        lines.append(line)
    return tuple(lines)


def _check_settings(detector: str, combiner: str, num_bootstrap: int, k: Sequence[int]) -> None:
    if detector not in DETECTORS:
        raise RankingError(f"no detector {detector!r}; {did_you_mean(detector, DETECTORS)}")
    if combiner not in COMBINERS:
        raise RankingError(f"no combiner {combiner!r}; {did_you_mean(combiner, COMBINERS)}")
    if num_bootstrap < 100:
        raise RankingError(f"num_bootstrap={num_bootstrap}: intervals need at least 100 replicates")
    if not k or min(k) < 1:
        raise RankingError(f"k={tuple(k)}: give the sizes of the shortlists, each at least 1, e.g. (1, 3)")


def rank(
    episodes: pa.Table,
    features: Mapping[str, Mapping[str, Any]] | None,
    *,
    target_outcomes: pa.Table | None = None,
    detector: str = "mahalanobis",
    combiner: str = "rank_product",
    seed: int = 0,
    num_bootstrap: int = 2000,
    k: Sequence[int] = (1, 3),
) -> Ranking:
    """Orders the checkpoints of `episodes` for the target.

    episodes: simulated episodes, one row each, `tables.COLUMNS`; the same conditions for every checkpoint.
    features: {checkpoint: {"fit", "calibration", "target": float [N, D]}} of encoders (`tables.FeatureSet`); None, or a
        checkpoint left out, means that simulated success alone places it.
    target_outcomes: episodes on the target (real or held-out simulator) of some or all checkpoints; they check the orders
        and never make them.
    k: sizes of shortlists for prob_top and regret@k; those above the size of the pool are dropped.

    The bootstrap resamples conditions (for V) and episodes of target and hold-out observations (for O) together, the same
    ones for every checkpoint; detectors are fitted once. Equal inputs give a byte-identical `to_json`, whatever the order
    of the rows.

    Raises:
        RankingError: inputs that cannot be ranked, naming what and the remedy.
    """
    _check_settings(detector, combiner, num_bootstrap, k)
    outcomes = check_episodes(episodes)
    names = outcomes.checkpoints
    sets = check_features(features or {}, names)
    target = None if target_outcomes is None else check_episodes(target_outcomes, "target_outcomes")
    at = [] if target is None else outcomes.indices(target.checkpoints)

    detections = {n: detect(s, detector=detector, seed=seed, num_bootstrap=num_bootstrap) for n, s in sets.items()}
    terms = _terms(outcomes, detections, detector, seed, num_bootstrap)
    scores = {"vsdr": combine(list(terms.values()), combiner), **terms}
    pool = _Pool(outcomes, detections, scores, {name: ranks(value) for name, value in scores.items()})
    shortlists = sorted({int(n) for n in k if n <= len(names)})
    settings = {"detector": detector, "combiner": combiner, "seed": seed, "num_bootstrap": num_bootstrap, "k": shortlists}
    check = None
    if target is not None and len(at) > 1:
        predicted = {name: value[0, at] for name, value in scores.items()}
        check = agreement(predicted, target, k=shortlists, seed=seed, num_bootstrap=num_bootstrap)
    return Ranking(
        schema=SCHEMA,
        settings=settings,
        num_conditions=len(outcomes.conditions),
        num_episodes=outcomes.num_episodes,
        num_target_observations=len(next(iter(sets.values())).target) if sets else 0,
        checkpoints=_lines(pool, target, settings),
        orders={name: [names[c] for c in pool.order(name)] for name in scores},
        check=check,
        warnings=_warnings(pool, {len(s.fit) for s in sets.values()}),
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
