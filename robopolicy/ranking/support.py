"""The action side of distance: how far from what was demonstrated, there or anywhere, a policy acts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances_chunked

from robopolicy.ope.estimate import Estimate, clustered_mean
from robopolicy.ranking.detectors.base import Standard, check_features

Array = np.ndarray

MAX_DIMENSIONS = 16  # of observations and of actions each; distances in more tell little
EXTRAPOLATION = 1.5  # ratio from which a policy is said to extrapolate
WORKING_MEMORY = 64  # MiB
NEGLIGIBLE = 1e-6  # spread of an entry beside the largest, below which it is rounding
MIN_LEVEL = 1e-6  # distance between demonstrators, in standard deviations, below which it is rounding


@dataclass(frozen=True)
class Support:
    """Support of a policy's actions: the ratio [M] of each row, and their median as a score, smaller = better.

    1 = as near as demonstrators are to each other; above 1.5 the policy is said to extrapolate.
    """

    score: Estimate
    ratio: Array


class ActionSupport:
    """Distance of (observation, action) to its nearest in demonstrations, in units of the demonstrators' own.

    d(z, a) = min over rows of other episodes of || beta (z - z') , (a - a') ||, both standardised (entries of actions over all
    steps of the chunks), on at most 16 principal components each (PRDC: Ran et al., arXiv 2306.06569). beta large:
    "the same action in the same place"; beta small: "an action that someone did somewhere". Entries that do not move, or by
    rounding only, are left out.

    Args:
        beta: weight of observations against actions.
    """

    def __init__(self, beta: float = 1.0) -> None:
        if beta <= 0:
            raise ValueError(f"beta={beta}: a weight above 0")
        self.beta = beta

    def fit(self, features: Any, actions: Any, episode: Any) -> ActionSupport:
        """Remember demonstrations: features [N, D], actions [N, A] or chunks [N, H, A], episode int [N].

        Raises:
            ValueError: shapes that differ, fewer than 2 episodes, nothing that varies, or episodes that repeat each other.
        """
        z, a, unit = check_features(features), check_features(_flat(actions)), np.asarray(episode)
        if not len(z) == len(a) == len(unit) or len(np.unique(unit)) < 2:
            raise ValueError(
                f"{len(z)} features, {len(a)} actions, {len(np.unique(unit))} episodes: needs one a row, of at least 2"
            )
        self.parts = [_Part.of(z, z.shape[1]), _Part.of(a, np.shape(actions)[-1])]
        self.rows, self.episode = self._place(z, a), unit
        self.own = self._nearest(self.rows, unit)
        self.level = float(np.median(self.own))
        if self.level < MIN_LEVEL:
            raise ValueError(
                "demonstrators of different episodes act alike in like places to the last bit: no distance to compare with"
            )
        return self

    def score(self, features: Any, actions: Any, episode: Any = None) -> Support:
        """Support of actions [M, A] or chunks [M, H, A] of a policy at features [M, D].

        episode: int [M] where the rows are demonstrated observations (their own episode is left out of the search); None where
            they are of elsewhere.

        Raises:
            ValueError: shapes that do not fit those of the fit.
        """
        z = check_features(features, self.parts[0].width)
        a = check_features(_flat(actions), self.parts[1].width)
        if len(z) != len(a):
            raise ValueError(f"{len(z)} features, {len(a)} actions: needs one action a row")
        ratio = self._nearest(self._place(z, a), None if episode is None else np.asarray(episode)) / self.level
        _, sd, n_eff = clustered_mean(np.log(np.maximum(ratio, 1e-12)), episode)
        middle = float(np.median(ratio))
        reason = (
            f"{middle:.2f} times as far as demonstrators from each other: it extrapolates" if middle > EXTRAPOLATION else ""
        )
        return Support(Estimate(middle, middle * sd, n_eff, True, reason), ratio)

    def _place(self, z: Array, a: Array) -> Array:
        place, act = (part(x) for part, x in zip(self.parts, (z, a), strict=True))
        return np.column_stack([self.beta * place, act])

    def _nearest(self, rows: Array, episode: Array | None) -> Array:
        def reduce(distances: Array, start: int) -> Array:
            if episode is not None:
                distances[episode[start : start + len(distances), None] == self.episode[None]] = np.inf
            return distances.min(axis=1)

        chunks = pairwise_distances_chunked(rows, self.rows, reduce_func=reduce, working_memory=WORKING_MEMORY)
        return np.concatenate(list(chunks))


@dataclass(frozen=True)
class _Part:
    """Standardised rows of x [N, width] on their leading principal components, so that the mean squared norm of a row is 1.

    standard: of the entries, which a row may hold several times, one after the other (the steps of a chunk).
    """

    width: int
    standard: Standard
    pca: PCA | None

    @classmethod
    def of(cls, x: Array, num_entries: int) -> _Part:
        every = Standard.of(x.reshape(-1, num_entries))
        moves = every.alive & (every.std > NEGLIGIBLE * np.max(every.std, where=every.alive, initial=0.0))
        if not moves.any():
            raise ValueError(f"all {num_entries} entries are constant in the demonstrations: no distance to measure in them")
        part = cls(x.shape[1], Standard(every.mean, every.std, moves), None)
        rows, num = part._rows(x), min(MAX_DIMENSIONS, len(x))
        return part if rows.shape[1] <= num else replace(part, pca=PCA(num, svd_solver="covariance_eigh").fit(rows))

    def _rows(self, x: Array) -> Array:
        return self.standard(x.reshape(-1, len(self.standard.alive))).reshape(len(x), -1)

    def __call__(self, x: Array) -> Array:
        rows = self._rows(x)
        return (rows if self.pca is None else self.pca.transform(rows)) / np.sqrt(rows.shape[1])


def _flat(actions: Any) -> Array:
    array = np.asarray(actions)
    return array.reshape(len(array), -1) if array.ndim > 2 else array
