"""Distributions around a nominal value: families, operations, and how a level shrinks a draw towards the nominal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Value = float | list[float]
TRUNCATION = 3.0  # std: a normal draw lies within this of its mean


def _uniform(rng: np.random.Generator, size: int, low: float, high: float) -> np.ndarray:
    return rng.uniform(low, high, size)


def _log_uniform(rng: np.random.Generator, size: int, low: float, high: float) -> np.ndarray:
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


def _normal(rng: np.random.Generator, size: int, mean: float, std: float) -> np.ndarray:
    sample = rng.normal(mean, std, size)
    while (far := np.abs(sample - mean) > TRUNCATION * std).any():
        sample[far] = rng.normal(mean, std, far.sum())
    return sample


def _integers(rng: np.random.Generator, size: int, low: float, high: float) -> np.ndarray:
    return rng.integers(int(low), int(high), size, endpoint=True).astype(float)


def _choice(rng: np.random.Generator, size: int, *options: float) -> np.ndarray:
    return rng.choice(np.asarray(options, float), size)


FAMILIES: dict[str, Callable[..., np.ndarray]] = {
    "uniform": _uniform,
    "log_uniform": _log_uniform,
    "normal": _normal,
    "integers": _integers,
    "choice": _choice,
}
OPERATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "set": lambda nominal, sample: sample * np.ones_like(nominal),
    "add": lambda nominal, sample: nominal + sample,
    "scale": lambda nominal, sample: nominal * sample,
}


@dataclass(frozen=True)
class Level:
    """How far a parameter is randomised, in [0, 1]: 0 is the nominal, 1 the whole distribution.

    below, above: the level of draws below and above the nominal. edge: "low" or "high" puts the parameter (one entry of a
    vector, at random) at that end of its shrunk range; a discrete parameter is then randomised for certain (adaptive.py).
    """

    below: float = 1.0
    above: float = 1.0
    edge: str | None = None


@dataclass(frozen=True)
class Distribution:
    """`operation`(nominal, sample of `family`(*arguments)), clipped to [low, high].

    shared: one sample for all entries of a vector. Families: uniform (low, high), log_uniform (low, high), normal (mean, std;
    truncated at 3 std), integers (lowest, highest, both included), choice (the options).
    """

    family: str
    arguments: tuple[float, ...]
    operation: str = "set"
    shared: bool = False
    low: float = -np.inf
    high: float = np.inf

    @property
    def discrete(self) -> bool:
        """Whether there is nothing between two draws."""
        return self.family in ("integers", "choice")

    def support(self, nominal: Value, level: Level | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest draw [n], [n] for a nominal of n entries, at a level, before they are clipped."""
        base = np.atleast_1d(np.asarray(nominal, float))
        ends = self.arguments
        if self.family == "normal":
            mean, std = self.arguments
            ends = (mean - TRUNCATION * std, mean + TRUNCATION * std)
        a, b = (OPERATIONS[self.operation](base, np.full(1, end)) for end in (min(ends), max(ends)))
        if level is not None and not self.discrete:
            a, b = self._moved(base, a, level), self._moved(base, b, level)
        return np.minimum(a, b), np.maximum(a, b)

    def draw(self, nominal: Value, rng: np.random.Generator, level: Level | None = None) -> Value:
        """A value of the nominal's size, clipped to the bounds."""
        base = np.atleast_1d(np.asarray(nominal, float))
        sample = FAMILIES[self.family](rng, 1 if self.shared else base.size, *self.arguments)
        out = OPERATIONS[self.operation](base, sample)
        if level is not None:
            out = self._randomized(base, out, rng, level) if self.discrete else self._edged(base, out, rng, level)
        out = np.minimum(np.maximum(out, self.low), self.high)
        return out.tolist() if isinstance(nominal, list) else float(out[0])

    def _randomized(self, base: np.ndarray, out: np.ndarray, rng: np.random.Generator, level: Level) -> np.ndarray:
        """Discrete draws, each kept with the probability that the level says, else nominal; all kept at an edge."""
        coin = rng.random(1 if self.shared else base.size)
        share = np.where(out < base, level.below, level.above)
        return out if level.edge is not None else np.where(coin < share, out, base)

    def _edged(self, base: np.ndarray, out: np.ndarray, rng: np.random.Generator, level: Level) -> np.ndarray:
        """Continuous draws moved towards the nominal; at an edge one entry lies at that end of its range."""
        if level.edge is not None:
            end = self.support(base.tolist())[0 if level.edge == "low" else 1]
            out = end if self.shared else np.where(np.arange(out.size) == rng.integers(out.size), end, out)
        return self._moved(base, out, level)

    def _moved(self, base: np.ndarray, out: np.ndarray, level: Level) -> np.ndarray:
        """The share of the way from the nominal to `out` that the level says; ratios move in log space."""
        share = np.where(out < base, level.below, level.above)
        if (self.family == "log_uniform" or self.operation == "scale") and (base * out > 0).all():
            moved = base * (out / base) ** share
        else:
            moved = base + share * (out - base)
        return np.where(share == 1, out, moved)
