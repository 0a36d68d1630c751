"""Does the policy know what it sees? A detector as plain arrays, with a conformal band for whole episodes.

The server scores the features of each observation (they need the policy's encoder), the robot's side compares the scores with
the band and slows down or stops. Part of the robot-side island: numpy only.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

OK, WARN, SLOW, STOP = "ok", "warn", "slow", "stop"
LEVELS = (WARN, SLOW, STOP)
ALPHAS = {WARN: 0.2, SLOW: 0.1, STOP: 0.02}

_ARRAYS = {"mean": 1, "std": 1, "alive": 1, "whiten": 2, "calibration": 1, "patience": 0}


def episode_statistic(scores: np.ndarray, patience: int) -> float:
    """How far out an episode got: the largest score that was reached or passed `patience` decisions in a row (all of them, in a
    shorter episode). scores: [decisions].
    """
    window = min(patience, len(scores))
    return float(np.lib.stride_tricks.sliding_window_view(scores, window).min(axis=1).max())


@dataclass(frozen=True)
class Monitor:
    """The ranker's Mahalanobis detector of one checkpoint, fitted on what it was trained on, and its scores of other episodes.

    mean, std: float64 [D] of the features. alive: bool [D], units that vary. whiten: [K, K], inverse Cholesky factor of the
    covariance of the K live standardised units. calibration: [E] episode_statistic of E held-out episodes.
    patience: decisions in a row that count.
    """

    mean: np.ndarray
    std: np.ndarray
    alive: np.ndarray
    whiten: np.ndarray
    calibration: np.ndarray
    patience: int = 3

    def __post_init__(self) -> None:
        width, live = len(self.mean), int(np.sum(self.alive))
        shapes = {"std": (width,), "alive": (width,), "whiten": (live, live)}
        for name, shape in shapes.items():
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(f"{name} of a monitor has shape {np.shape(getattr(self, name))}, expected {shape}")
        arrays = (self.mean, self.std, self.whiten, self.calibration)
        if not all(np.isfinite(array).all() for array in arrays) or not np.all(self.std > 0) or not len(self.calibration):
            raise ValueError("a monitor needs finite arrays, positive std and at least one calibration episode")
        if self.patience < 1:
            raise ValueError(f"patience={self.patience} must be at least 1")

    def score(self, features: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance over K of features [B, D]: [B], about 1 where the policy was trained.

        Raises:
            ValueError: features of another width.
        """
        if np.ndim(features) != 2 or np.shape(features)[1] != len(self.mean):
            raise ValueError(f"features have shape {np.shape(features)}, the monitor was fitted on [B, {len(self.mean)}]")
        live = ((features - self.mean) / self.std)[:, self.alive]
        return np.square(live @ self.whiten.T).mean(axis=1)

    def band(self, alphas: Mapping[str, float] = ALPHAS) -> dict[str, float]:
        """{level: threshold}: an episode like the calibration ones reaches it with probability at most alpha (split conformal,
        marginal over calibration sets, episodes exchangeable).

        Raises:
            ValueError: too few calibration episodes for an alpha, or levels in the wrong order.
        """
        alpha = [alphas[level] for level in LEVELS if level in alphas]
        if set(alphas) - set(LEVELS) or sorted(alpha, reverse=True) != alpha or not all(0 < a < 1 for a in alpha):
            raise ValueError(f"alphas={dict(alphas)} must be of {', '.join(LEVELS)}, in (0, 1) and falling")
        known = np.sort(self.calibration)
        needed = int(np.ceil(1 / alpha[-1])) - 1 if alpha else 0
        if len(known) < needed:
            raise ValueError(f"{len(known)} calibration episodes: a false alarm rate of {alpha[-1]:g} needs {needed}")
        rank = {level: int(np.ceil((1 + len(known)) * (1 - alphas[level]))) for level in alphas}
        return {level: float(known[min(k, len(known)) - 1]) for level, k in rank.items()}

    def save(self, path: str | Path) -> None:
        """Write an npz of plain arrays."""
        arrays: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in _ARRAYS}
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Monitor:
        """Read what save() wrote; nothing is unpickled.

        Raises:
            ValueError: it is something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays: dict[str, Any] = {name: file[name] for name in _ARRAYS}
        except (KeyError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no monitor (an npz with {', '.join(_ARRAYS)}): {error}") from error
        for name, ndim in _ARRAYS.items():
            if arrays[name].ndim != ndim or arrays[name].dtype.kind not in "fbiu":
                raise ValueError(f"{path}: {name} is {arrays[name].dtype} {list(arrays[name].shape)}, expected {ndim} axes")
        arrays["alive"], arrays["patience"] = arrays["alive"].astype(bool), int(arrays["patience"])
        return cls(**arrays)


class Gate:
    """The level that the last scores reach: a threshold counts when `patience` scores in a row are above it.

    band: {level: threshold} of WARN, SLOW, STOP; a missing level is never reached. slow_speed: speed while SLOW.
    """

    def __init__(self, band: Mapping[str, float], patience: int = 3, slow_speed: float = 0.5) -> None:
        if set(band) - set(LEVELS) or patience < 1 or not 0 < slow_speed <= 1:
            raise ValueError(f"band={dict(band)}, patience={patience}, slow_speed={slow_speed}: levels are {', '.join(LEVELS)}")
        self.band, self.patience, self.slow_speed = dict(band), patience, slow_speed
        self.clear()

    def clear(self) -> None:
        """Forget the scores so far."""
        self._scores: list[float] = []

    def update(self, score: float) -> str:
        """Take the score of another decision; the level now. A score that is not finite counts as beyond everything."""
        self._scores = [*self._scores, score if np.isfinite(score) else np.inf][-self.patience :]
        return self.level

    @property
    def level(self) -> str:
        """OK, WARN, SLOW or STOP."""
        if len(self._scores) < self.patience:
            return OK
        reached = [level for level in LEVELS if level in self.band and min(self._scores) > self.band[level]]
        return reached[-1] if reached else OK

    @property
    def speed(self) -> float:
        """How fast the plan may go on."""
        return {OK: 1.0, WARN: 1.0, SLOW: self.slow_speed, STOP: 0.0}[self.level]
