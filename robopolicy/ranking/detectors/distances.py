"""Distances to the simulator's features: Mahalanobis, nearest neighbours, distance from their principal subspace."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from sklearn.neighbors import NearestNeighbors

from robopolicy.ranking.detectors.base import Array, Detector

METRICS = ("euclidean", "cosine")


def shrinkage(covariance: Array, fourth_moment: float, num_rows: int) -> float:
    """Ledoit and Wolf's (2004) weight of the scaled identity, in [0, 1].

    covariance: [D, D] of N centred rows. fourth_moment: mean of ||x||^4 over them.
    """
    width = len(covariance)
    size, level = float(np.square(covariance).sum()), float(np.trace(covariance)) / width
    noise = (fourth_moment - size) / (width * num_rows)
    distance = size / width - level**2
    return min(noise, distance) / distance if distance > 0 else 0.0


class Mahalanobis(Detector):
    """Squared Mahalanobis distance over D, float64, covariance shrunk after Ledoit and Wolf (2004): about 1 in distribution."""

    def _fit(self, features: Array) -> None:
        covariance = self.standard.covariance(features)
        fourth = sum(float(np.square(np.square(x).sum(axis=1)).sum()) for x in self.standard.blocks(features)) / len(features)
        weight = shrinkage(covariance, fourth, len(features))
        level = np.trace(covariance) / len(covariance)
        shrunk = (1 - weight) * covariance + weight * level * np.eye(len(covariance))
        shrunk += 1e-12 * level * np.eye(len(covariance))  # units that copy each other, in numbers without noise
        self.factor = cholesky(shrunk, lower=True)

    def _score(self, x: Array) -> Array:
        return np.square(solve_triangular(self.factor, x.T, lower=True)).mean(axis=0)


class KNN(Detector):
    """Mean distance to the nearest simulator rows. Euclidean by default: the norm of a feature is evidence too.

    Args:
        num_neighbours: how many.
        metric: "euclidean", or "cosine" (1 - cosine of the angle seen from the simulator's mean).

    Raises:
        ValueError: another metric, or num_neighbours < 1.
    """

    def __init__(self, num_neighbours: int = 5, metric: str = "euclidean") -> None:
        if metric not in METRICS or num_neighbours < 1:
            raise ValueError(
                f"metric={metric!r}, num_neighbours={num_neighbours}: a metric is one of {METRICS}, neighbours >= 1"
            )
        self.num_neighbours, self.metric = num_neighbours, metric

    def _fit(self, features: Array) -> None:
        self.dtype = features.dtype
        rows, start = np.empty((len(features), self.standard.width), self.dtype), 0
        for x in self.standard.blocks(features):
            rows[start : start + len(x)] = self._place(x)
            start += len(x)
        self.index = NearestNeighbors(n_neighbors=min(self.num_neighbours, len(rows)), algorithm="brute").fit(rows)

    def _place(self, x: Array) -> Array:
        if self.metric == "cosine":
            x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        return x.astype(self.dtype, copy=False)

    def _score(self, x: Array) -> Array:
        distance = self.index.kneighbors(self._place(x))[0].astype(np.float64)
        return (distance if self.metric == "euclidean" else np.square(distance) / 2).mean(axis=1)


class PCAResidual(Detector):
    """Mean squared residual outside the principal subspace that explains `explained` of the simulator's variance.

    ViM's residual without its logits (Wang et al., arXiv 2203.10807). At least one direction is left to the residual.
    """

    def __init__(self, explained: float = 0.95) -> None:
        if not 0 < explained < 1:
            raise ValueError(f"explained={explained} is a share of the variance: between 0 and 1")
        self.explained = explained

    def _fit(self, features: Array) -> None:
        power, vectors = np.linalg.eigh(self.standard.covariance(features))
        share = np.cumsum(power[::-1]) / power.sum()
        kept = min(int(np.searchsorted(share, self.explained)) + 1, len(power) - 1)
        self.basis = vectors[:, : len(power) - kept]  # of the residual

    def _score(self, x: Array) -> Array:
        return np.square(x @ self.basis).mean(axis=1)
