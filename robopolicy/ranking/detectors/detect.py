"""All detectors on the features of one checkpoint, with the guards that say when not to believe them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from robopolicy.ranking.detectors.base import Array, Detector, Standard, blocks, dead_units, effective_rank
from robopolicy.ranking.detectors.distances import KNN, Mahalanobis, PCAResidual
from robopolicy.ranking.detectors.domain import DomainClassifier
from robopolicy.ranking.detectors.evidence import Evidence, conformal_p, effect_size, evidence
from robopolicy.ranking.detectors.novelty import RandomNetworkDistillation
from robopolicy.ranking.statistics import Interval, bootstrap_weights, percentile_interval, stream
from robopolicy.ranking.tables import FeatureSet

MIN_EFFECTIVE_RANK = 1.5
MIN_CALIBRATION, MIN_TARGET = 50, 20

DETECTORS: dict[str, Callable[[], Detector]] = {
    "mahalanobis": Mahalanobis,
    "knn": KNN,
    "knn_cosine": partial(KNN, metric="cosine"),
    "pca_residual": PCAResidual,
    "rnd": RandomNetworkDistillation,
    "domain": DomainClassifier,
}


@dataclass(frozen=True)
class Detection:
    """What the detectors say about one checkpoint.

    effect_sizes, evidence: {detector: d}, {detector: all that its scores say}. conformal, interval: of the chosen detector.
    scores: of the chosen detector, of target [M] and hold-out [N]. draws: bootstrap of its -d [B], larger = better, -inf where
    d is undefined. flags: "code: sentence". A collapsed encoder carries no evidence: NaN, no scores, and -inf in draws.
    """

    effect_sizes: dict[str, float]
    evidence: dict[str, Evidence]
    conformal: float
    interval: Interval
    scores: tuple[Array, Array] | None = field(repr=False)
    draws: Array = field(repr=False)
    num_features: int
    num_dead: int
    num_leaking: int
    effective_rank: float
    flags: tuple[str, ...]


def _collapsed(num_features: int, num_dead: int, rank: float, num_bootstrap: int) -> Detection:
    flag = (
        f"collapsed: {num_dead} of {num_features} units are constant in simulation and the rest span {rank:.1f} directions; "
        "a constant encoder is never out of distribution, so it takes the last place of this term"
    )
    nothing = float("nan")
    return Detection(
        effect_sizes=dict.fromkeys(DETECTORS, nothing),
        evidence=dict.fromkeys(DETECTORS, Evidence(nothing, nothing, nothing, nothing)),
        conformal=nothing,
        interval=(nothing, nothing),
        scores=None,
        draws=np.full(num_bootstrap, -np.inf),
        num_features=num_features,
        num_dead=num_dead,
        num_leaking=0,
        effective_rank=rank,
        flags=(flag,),
    )


def _flags(features: FeatureSet, num_alive: int, num_leaking: int, p: Array, d: float) -> tuple[str, ...]:
    fit, calibration, target = features.fit, features.calibration, features.target
    rows = {hash(row.tobytes()) for row in fit}
    repeated = float(np.mean([hash(row.tobytes()) in rows for row in calibration]))
    saturated = float(np.mean(p <= 1 / (1 + len(calibration))))
    checks = [
        (len(fit) < 2 * num_alive, f"few_fit: {len(fit)} simulator rows for {num_alive} live units; collect {2 * num_alive}"),
        (len(calibration) < MIN_CALIBRATION, f"few_calibration: {len(calibration)} hold-out rows; collect {MIN_CALIBRATION}"),
        (len(target) < MIN_TARGET, f"few_target: {len(target)} target observations; record at least {MIN_TARGET}"),
        (repeated > 0.1, f"overlap: {repeated:.0%} of the hold-out rows are fit rows too; hold out whole episodes"),
        (num_leaking > 0, f"leaking: units silent in simulation but not on the target: {num_leaking}; left out of the score"),
        (saturated > 0.9, f"saturated: {saturated:.0%} of the target lies beyond the hold-out; conformal scores cannot order"),
        (not np.isfinite(d), "no_spread: all hold-out scores are equal, the effect size is undefined; collect varied rows"),
        (d < -1, "central: the target sits closer to the centre than the hold-out; its features may have collapsed"),
    ]
    return tuple(message for raised, message in checks if raised)


def _draws(pair: tuple[Array, Array], features: FeatureSet, seed: int, num_bootstrap: int) -> Array:
    """Bootstrap of the effect size [B], rows resampled by episode, the same episodes for every checkpoint."""
    weights = []
    for purpose, episode in (("target", features.target_episode), ("calibration", features.calibration_episode)):
        units = int(episode.max()) + 1
        weights.append((bootstrap_weights(units, num_bootstrap, stream(seed, purpose, units)), episode))
    (target, of_target), (calibration, of_calibration) = weights
    draws = np.empty(num_bootstrap)
    for rows in blocks(num_bootstrap, 8 * (len(of_target) + len(of_calibration))):
        draws[rows] = effect_size(*pair, target[rows][:, of_target], calibration[rows][:, of_calibration])
    return draws


def detect(features: FeatureSet, *, detector: str, seed: int, num_bootstrap: int) -> Detection:
    """Evidence of all detectors and the bootstrap of the chosen one, rows resampled by episode.

    Replicate b resamples the same observations for every checkpoint, so that differences between checkpoints are paired.
    Detectors are fitted once; the domain classifier's draws resample its held-out odds.
    """
    standard = Standard.of(features.fit)
    num_features, num_dead = len(standard.alive), int((~standard.alive).sum())
    rank = effective_rank(standard.covariance(features.fit)) if standard.width and len(features.fit) > 1 else 0.0
    if not standard.width or (num_features > 1 and rank < MIN_EFFECTIVE_RANK):
        return _collapsed(num_features, num_dead, rank, num_bootstrap)

    pairs = {
        name: make()
        .fit_standardised(features.fit, standard)
        .pair(features.target, features.calibration, features.target_episode)
        for name, make in DETECTORS.items()
    }
    found = {name: evidence(*pair) for name, pair in pairs.items()}
    draws = _draws(pairs[detector], features, seed, num_bootstrap)
    num_leaking = int((~standard.alive & ~dead_units(features.fit, features.target)).sum())
    p = conformal_p(*pairs[detector])
    return Detection(
        effect_sizes={name: e.effect_size for name, e in found.items()},
        evidence=found,
        conformal=found[detector].conformal,
        interval=percentile_interval(draws),
        scores=pairs[detector],
        draws=np.where(np.isfinite(draws), -draws, -np.inf),
        num_features=num_features,
        num_dead=num_dead,
        num_leaking=num_leaking,
        effective_rank=rank,
        flags=_flags(features, standard.width, num_leaking, p, found[detector].effect_size),
    )
