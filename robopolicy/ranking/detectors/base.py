"""What detectors share: checked features, live units in units of their spread, moments, all in blocks of bounded size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

Array = np.ndarray

DEAD_FRACTION = 0.01  # a unit that leaves its median in fewer of the fit rows says nothing about the simulator
BLOCK_BYTES = 32 << 20


def blocks(num_rows: int, row_bytes: int) -> Iterator[slice]:
    """Slices that cover `num_rows` rows, each of at most BLOCK_BYTES."""
    step = max(1, BLOCK_BYTES // max(row_bytes, 1))
    yield from (slice(start, start + step) for start in range(0, num_rows, step))


def check_features(features: Any, width: int | None = None) -> Array:
    """Features [N, D] as floats, in the precision given.

    Raises:
        ValueError: another shape, no rows, another width than that of the fit, or a value that is not finite.
    """
    array = np.asarray(features)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"features have shape {list(array.shape)}, expected [N, D] with at least one row")
    if width is not None and array.shape[1] != width:
        raise ValueError(f"features are {array.shape[1]} wide, the fit's {width}: both must come from the same layer")
    for rows in blocks(len(array), array.shape[1]):
        if not np.isfinite(array[rows]).all():
            row = rows.start + int(np.argwhere(~np.isfinite(array[rows]))[0, 0])
            raise ValueError(f"features are not finite in row {row}: drop that observation")
    return array


def dead_units(fit: Array, features: Array) -> Array:
    """Which units of `fit` [N, D] are (almost) constant, judged on `features` [M, D]: bool [D], whatever their scale."""
    dead = np.empty(fit.shape[1], bool)
    for unit in blocks(fit.shape[1], 8 * max(len(fit), len(features))):
        known, seen = np.asarray(fit[:, unit], np.float64), np.asarray(features[:, unit], np.float64)
        scale = np.maximum(np.abs(known).max(axis=0), np.finfo(np.float64).tiny)
        moves = np.abs(seen - np.median(known, axis=0)) > 1e-6 * scale
        dead[unit] = moves.mean(axis=0) < DEAD_FRACTION
    return dead


def effective_rank(covariance: Array) -> float:
    """exp of the entropy of the spectrum of a covariance [D, D] (Roy and Vetterli 2007); 1 = one direction, D = all."""
    power = np.maximum(np.linalg.eigvalsh(covariance), 0.0)
    if power.sum() <= 0:
        return 0.0
    p = power / power.sum()
    return float(np.exp(-np.sum(p * np.log(np.where(p > 0, p, 1.0)))))


@dataclass(frozen=True)
class Standard:
    """Live units of features, centred and in units of their standard deviation.

    mean, std: float64 [D]. alive: bool [D]; dead units are left out: a unit that is silent in simulation would let one
    frame, or a 0.01 on the target, decide.
    """

    mean: Array
    std: Array
    alive: Array

    @classmethod
    def of(cls, features: Array) -> Standard:
        """The standard of features [N, D]."""
        alive = ~dead_units(features, features)
        mean, square = np.zeros(features.shape[1]), np.zeros(features.shape[1])
        for rows in blocks(len(features), 8 * features.shape[1]):
            mean += features[rows].sum(axis=0, dtype=np.float64) / len(features)
        for rows in blocks(len(features), 8 * features.shape[1]):
            square += np.square(features[rows] - mean).sum(axis=0) / len(features)
        return cls(mean, np.where(alive, np.sqrt(square), 1.0), alive)

    @property
    def width(self) -> int:
        """Units that are alive."""
        return int(self.alive.sum())

    def __call__(self, features: Array) -> Array:
        """Features [N, D] -> float64 [N, width]."""
        return ((features - self.mean) / self.std)[:, self.alive]

    def blocks(self, features: Array) -> Iterator[Array]:
        """`features` block by block, standardised."""
        yield from (self(features[rows]) for rows in blocks(len(features), 8 * features.shape[1]))

    def covariance(self, features: Array) -> Array:
        """Covariance [width, width] of the rows that made this standard; its diagonal is 1."""
        total = np.zeros((self.width, self.width))
        for x in self.blocks(features):
            total += x.T @ x
        return total / len(features)


class Detector(ABC):
    """Fitted on simulator features, scores others: larger = further out.

    Features are standardised by those of the fit and its dead units left out, so scores do not depend on the scale of a unit.
    float32 or float64; work happens in blocks, in float64.
    """

    standard: Standard

    def fit(self, features: Any) -> Self:
        """Fit on simulator features [N, D].

        Raises:
            ValueError: not [N, D] of finite numbers, fewer than 2 rows, or all units constant.
        """
        array = check_features(features)
        if len(array) < 2:
            raise ValueError("one row of features says nothing about their spread: fit on at least 2")
        return self.fit_standardised(array, Standard.of(array))

    def fit_standardised(self, features: Array, standard: Standard) -> Self:
        """`fit` for features that are checked already, with their standard."""
        if not standard.width:
            raise ValueError(f"all {features.shape[1]} units are constant in the fit: a collapsed encoder detects nothing")
        self.standard = standard
        self._fit(features)
        return self

    def score(self, features: Any) -> Array:
        """Scores [M] of features [M, D].

        Raises:
            ValueError: not [M, D] of finite numbers as wide as the fit's.
            RuntimeError: not fitted yet.
        """
        if not hasattr(self, "standard"):
            raise RuntimeError(f"{type(self).__name__} scores after fit(simulator features)")
        array = check_features(features, len(self.standard.alive))
        return np.concatenate([self._score(x) for x in self.standard.blocks(array)])

    def pair(self, target: Array, calibration: Array, target_episode: Array) -> tuple[Array, Array]:
        """Scores [M] of the target and [N] of the simulator's hold-out. target_episode: int [M], the episode of each row."""
        return self.score(target), self.score(calibration)

    @abstractmethod
    def _fit(self, features: Array) -> None: ...

    @abstractmethod
    def _score(self, x: Array) -> Array:
        """Scores of standardised rows."""
