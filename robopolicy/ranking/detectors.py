"""How far the target's observations lie from the simulator's, seen through one checkpoint's encoder.

A detector is `fit(features [N, D]) -> score`, and `score(features [M, D]) -> [M]` with larger = further out. Raw scores live
in the feature space of their own checkpoint; only `effect_size` and `conformal_score` compare between checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import NearestNeighbors

from robopolicy.ranking.statistics import Interval, bootstrap_weights, percentile_interval, stream
from robopolicy.ranking.tables import FeatureSet

Array = np.ndarray
Score = Callable[[Array], Array]

DEAD_FRACTION = 0.01  # a unit that leaves its median in fewer of the fit rows says nothing about the simulator
MIN_EFFECTIVE_RANK = 1.5
MIN_CALIBRATION, MIN_TARGET = 50, 20
NUM_NEIGHBOURS = 5
EXPLAINED_VARIANCE = 0.95
MIN_SPREAD = 1e-9


def fit_mahalanobis(fit: Array) -> Score:
    """Squared Mahalanobis distance over D, covariance shrunk after Ledoit and Wolf (2004): about 1 in distribution."""
    mean = fit.mean(axis=0)
    factor = cho_factor(ledoit_wolf(fit - mean, assume_centered=True)[0])

    def score(features: Array) -> Array:
        centred = features - mean
        return np.einsum("nd,dn->n", centred, cho_solve(factor, centred.T)) / fit.shape[1]

    return score


def fit_knn(fit: Array) -> Score:
    """Mean Euclidean distance to the nearest fit rows. Not L2-normalised: the norm of a feature is evidence too."""
    index = NearestNeighbors(n_neighbors=min(NUM_NEIGHBOURS, len(fit)), algorithm="brute").fit(fit)

    def score(features: Array) -> Array:
        return index.kneighbors(features)[0].mean(axis=1)

    return score


def fit_pca_residual(fit: Array) -> Score:
    """Mean squared residual outside the principal subspace that explains 95 % of the variance of `fit`."""
    mean = fit.mean(axis=0)
    _, singular, rows = np.linalg.svd(fit - mean, full_matrices=False)
    explained = np.cumsum(singular**2) / np.sum(singular**2)
    basis = rows[: min(int(np.searchsorted(explained, EXPLAINED_VARIANCE)) + 1, fit.shape[1] - 1)]

    def score(features: Array) -> Array:
        centred = features - mean
        residual = centred - centred @ basis.T @ basis
        return np.square(residual).sum(axis=1) / (fit.shape[1] - len(basis))

    return score


DETECTORS: dict[str, Callable[[Array], Score]] = {
    "mahalanobis": fit_mahalanobis,
    "knn": fit_knn,
    "pca_residual": fit_pca_residual,
}


def dead_units(fit: Array, features: Array) -> Array:
    """Which units of `fit` [N, D] are (almost) constant, judged on `features` [M, D]: bool [D], whatever their scale."""
    scale = np.maximum(np.abs(fit).max(axis=0), np.finfo(np.float64).tiny)
    moves = np.abs(features - np.median(fit, axis=0)) > 1e-6 * scale
    return moves.mean(axis=0) < DEAD_FRACTION


def effective_rank(fit: Array) -> float:
    """exp of the entropy of the spectrum of the correlation matrix (Roy and Vetterli 2007); 1 = one direction, D = all."""
    power = np.linalg.svd(fit - fit.mean(axis=0), compute_uv=False) ** 2
    p = power / power.sum()
    return float(np.exp(-np.sum(p * np.log(np.where(p > 0, p, 1.0)))))


def _weighted_median(values: Array, cumulative: Array) -> Array:
    """Lower median [B] of sorted values [N] under weights with running sums [B, N]."""
    return values[(cumulative < cumulative[:, -1:] / 2).sum(axis=1)]


def _weighted_mad(values: Array, cumulative: Array, median: Array) -> Array:
    """Median absolute deviation [B] from `median` [B], by bisection on the sorted values."""
    running = np.pad(cumulative, ((0, 0), (1, 0)))
    row = np.arange(len(running))
    low, high = np.zeros(len(running)), np.full(len(running), values[-1] - values[0])
    for _ in range(50):
        middle = (low + high) / 2
        right = np.searchsorted(values, median + middle, side="right")
        left = np.searchsorted(values, median - middle, side="left")
        enough = running[row, right] - running[row, left] >= running[:, -1] / 2
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high


def effect_size(target: Array, calibration: Array, target_weights: Array, calibration_weights: Array) -> Array:
    """d = (med log s(target) - med log s(calibration)) / (1.4826 MAD log s(calibration)): [B].

    target, calibration: detector scores [M], [N]. Weights [B, M], [B, N]: how often each row counts; ones for the plain
    value. Free of the detector's scale, so it compares between checkpoints: about 0 in distribution, no saturation. NaN
    where the calibration scores do not spread.
    """
    tiny = np.finfo(np.float64).tiny
    t, c = np.log(np.maximum(target, tiny)), np.log(np.maximum(calibration, tiny))
    t_order, c_order = np.argsort(t, kind="stable"), np.argsort(c, kind="stable")
    t_cumulative = np.cumsum(target_weights[:, t_order], axis=1)
    c_cumulative = np.cumsum(calibration_weights[:, c_order], axis=1)
    centre = _weighted_median(c[c_order], c_cumulative)
    spread = 1.4826 * _weighted_mad(c[c_order], c_cumulative, centre)
    shift = _weighted_median(t[t_order], t_cumulative) - centre
    return np.where(spread > MIN_SPREAD, shift / np.maximum(spread, MIN_SPREAD), np.nan)


def conformal_p(target: Array, calibration: Array) -> Array:
    """p_j = (1 + #{calibration >= s_j}) / (1 + N): [M], uniform when the target is in distribution."""
    above = len(calibration) - np.searchsorted(np.sort(calibration), target, side="left")
    return (1 + above) / (1 + len(calibration))


def conformal_score(target: Array, calibration: Array) -> float:
    """Mean -log p: about 1 in distribution, at most log(N + 1), where it saturates."""
    return float(-np.log(conformal_p(target, calibration)).mean())


@dataclass(frozen=True)
class Detection:
    """What the detectors say about one checkpoint.

    effect_sizes: {detector: d}. conformal, interval: of the chosen detector. draws: bootstrap of -d [B], larger = better,
    -inf where d is undefined. flags: "code: sentence". A collapsed encoder carries no evidence: NaN, and -inf in draws.
    """

    effect_sizes: dict[str, float]
    conformal: float
    interval: Interval
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
    return Detection(
        effect_sizes={name: float("nan") for name in DETECTORS},
        conformal=float("nan"),
        interval=(float("nan"), float("nan")),
        draws=np.full(num_bootstrap, -np.inf),
        num_features=num_features,
        num_dead=num_dead,
        num_leaking=0,
        effective_rank=rank,
        flags=(flag,),
    )


def _flags(features: FeatureSet, num_alive: int, num_leaking: int, p: Array, d: float) -> tuple[str, ...]:
    fit, calibration, target = features.fit, features.calibration, features.target
    rows = {row.tobytes() for row in fit}
    repeated = float(np.mean([row.tobytes() in rows for row in calibration]))
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


def detect(features: FeatureSet, *, detector: str, seed: int, num_bootstrap: int) -> Detection:
    """Effect sizes of all detectors and the bootstrap of the chosen one, rows resampled by episode.

    Replicate b resamples the same observations for every checkpoint, so that differences between checkpoints are paired.
    """
    dead = dead_units(features.fit, features.fit)
    alive = ~dead
    mean, std = features.fit.mean(axis=0), np.where(alive, features.fit.std(axis=0), 1.0)
    fit, calibration, target = (((x - mean) / std)[:, alive] for x in (features.fit, features.calibration, features.target))
    num_features, num_dead = len(alive), int(dead.sum())
    rank = effective_rank(fit) if alive.any() and len(fit) > 1 else 0.0
    if not alive.any() or (num_features > 1 and rank < MIN_EFFECTIVE_RANK):
        return _collapsed(num_features, num_dead, rank, num_bootstrap)

    scores = {name: fitter(fit) for name, fitter in DETECTORS.items()}
    pairs = {name: (score(target), score(calibration)) for name, score in scores.items()}
    ones = np.ones((1, len(target)), np.int32), np.ones((1, len(calibration)), np.int32)
    sizes = {name: float(effect_size(*pair, *ones)[0]) for name, pair in pairs.items()}
    weights = []
    for purpose, episode in (("target", features.target_episode), ("calibration", features.calibration_episode)):
        units = int(episode.max()) + 1
        weights.append(bootstrap_weights(units, num_bootstrap, stream(seed, purpose, units))[:, episode])
    draws = effect_size(*pairs[detector], *weights)
    p = conformal_p(*pairs[detector])
    num_leaking = int((dead & ~dead_units(features.fit, features.target)).sum())
    return Detection(
        effect_sizes=sizes,
        conformal=conformal_score(*pairs[detector]),
        interval=percentile_interval(draws),
        draws=np.where(np.isfinite(draws), -draws, -np.inf),
        num_features=num_features,
        num_dead=num_dead,
        num_leaking=num_leaking,
        effective_rank=rank,
        flags=_flags(features, int(alive.sum()), num_leaking, p, sizes[detector]),
    )
