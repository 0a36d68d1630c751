"""What scores of the target mean against a hold-out of the simulator: effect size, conformal p-values, AUROC."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robopolicy.ope.estimate import auroc
from robopolicy.ranking.detectors.base import Array, blocks

MIN_SPREAD = 1e-9


@dataclass(frozen=True)
class Evidence:
    """How far out the target's scores lie, in forms that compare between checkpoints.

    effect_size: shift of the log score in robust standard deviations of the hold-out's; about 0 in distribution, does not
        saturate. NaN where the hold-out's scores do not spread.
    conformal: mean -log p over the target; about 1 in distribution, at most log(N + 1), where it saturates.
    p_value: of the target set as a whole, twice the mean p: valid however its rows depend on each other (Vovk and Wang,
        Biometrika 2020), and conservative.
    auroc: probability that a target row lies further out than a hold-out row; saturates at 1.
    """

    effect_size: float
    conformal: float
    p_value: float
    auroc: float


def evidence(target: Array, calibration: Array) -> Evidence:
    """The evidence in detector scores of the target [M] and of the simulator's hold-out [N].

    Raises:
        ValueError: an empty or a negative score.
    """
    t, c = np.asarray(target, np.float64), np.asarray(calibration, np.float64)
    if t.ndim != 1 or c.ndim != 1 or not t.size or not c.size or min(t.min(), c.min()) < 0:
        raise ValueError(f"scores of shape {t.shape} and {c.shape}: needs [M] and [N], none empty, all >= 0")
    if not (np.isfinite(t).all() and np.isfinite(c).all()):
        return Evidence(*[float("nan")] * 4)
    p = conformal_p(t, c)
    size = effect_size(t, c, np.ones((1, len(t)), np.int32), np.ones((1, len(c)), np.int32))[0]
    return Evidence(float(size), conformal_score(t, c), float(min(1.0, 2 * p.mean())), auroc(t, c))


def conformal_p(target: Array, calibration: Array) -> Array:
    """p_j = (1 + #{calibration >= s_j}) / (1 + N): [M], uniform when the target is in distribution."""
    above = len(calibration) - np.searchsorted(np.sort(calibration), target, side="left")
    return (1 + above) / (1 + len(calibration))


def conformal_score(target: Array, calibration: Array) -> float:
    """Mean -log p: about 1 in distribution, at most log(N + 1), where it saturates."""
    return float(-np.log(conformal_p(target, calibration)).mean())


def effect_size(target: Array, calibration: Array, target_weights: Array, calibration_weights: Array) -> Array:
    """d = (med log s(target) - med log s(calibration)) / (1.4826 MAD log s(calibration)): [B].

    target, calibration: detector scores [M], [N]. Weights [B, M], [B, N]: how often each row counts; ones for the plain
    value. Free of the detector's scale, so it compares between checkpoints: about 0 in distribution, no saturation. NaN
    where the calibration scores do not spread.
    """
    tiny = np.finfo(np.float64).tiny
    t, c = np.log(np.maximum(target, tiny)), np.log(np.maximum(calibration, tiny))
    t_order, c_order = np.argsort(t, kind="stable"), np.argsort(c, kind="stable")
    sizes = np.empty(len(target_weights))
    for rows in blocks(len(sizes), 8 * (len(t) + len(c))):
        t_cumulative = np.cumsum(target_weights[rows][:, t_order], axis=1)
        c_cumulative = np.cumsum(calibration_weights[rows][:, c_order], axis=1)
        centre = _weighted_median(c[c_order], c_cumulative)
        spread = 1.4826 * _weighted_mad(c[c_order], c_cumulative, centre)
        shift = _weighted_median(t[t_order], t_cumulative) - centre
        sizes[rows] = np.where(spread > MIN_SPREAD, shift / np.maximum(spread, MIN_SPREAD), np.nan)
    return sizes


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
