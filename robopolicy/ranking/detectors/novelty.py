"""Random network distillation: what a network cannot predict of a frozen random one was not in its training data."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from robopolicy.ranking.detectors.base import Array, Detector
from robopolicy.ranking.statistics import stream


class RandomNetworkDistillation(Detector):
    """Mean squared error in predicting a frozen random network's outputs (Burda et al., arXiv 1810.12894).

    The predictor is a network of one hidden layer whose last layer alone is trained, to its optimum, by ridge regression:
    no step size, no stopping rule, the same result every time. Errors in distribution are about 1 in units of the fit's.

    Args:
        num_outputs: of the random network.
        hidden: units of the frozen network's hidden layer.
        predictor_hidden: units of the predictor's.
        ridge: weight of the penalty, relative to the mean square of the predictor's units.
        seed: of both networks.
    """

    def __init__(
        self, num_outputs: int = 32, hidden: int = 64, predictor_hidden: int = 256, ridge: float = 1e-3, seed: int = 0
    ) -> None:
        if min(num_outputs, hidden, predictor_hidden) < 1 or ridge <= 0:
            raise ValueError("num_outputs, hidden and predictor_hidden must be at least 1 and ridge above 0")
        self.num_outputs, self.hidden, self.predictor_hidden = num_outputs, hidden, predictor_hidden
        self.ridge, self.seed = ridge, seed

    def _fit(self, features: Array) -> None:
        generator, width = stream(self.seed, "random network", self.standard.width), self.standard.width
        self.target = [_layer(generator, *shape) for shape in ((width, self.hidden), (self.hidden, self.num_outputs))]
        self.predictor = _layer(generator, width, self.predictor_hidden)
        gram = np.zeros((self.predictor_hidden + 1, self.predictor_hidden + 1))
        product = np.zeros((self.predictor_hidden + 1, self.num_outputs))
        for x in self.standard.blocks(features):
            units = self._units(x)
            gram += units.T @ units
            product += units.T @ self._target(x)
        penalty = self.ridge * np.trace(gram) / len(gram)
        self.weights = cho_solve(cho_factor(gram + penalty * np.eye(len(gram))), product)
        errors = [self._errors(x) for x in self.standard.blocks(features)]
        self.level = max(float(np.mean(np.concatenate(errors))), np.finfo(np.float64).tiny)

    def _score(self, x: Array) -> Array:
        return self._errors(x) / self.level

    def _errors(self, x: Array) -> Array:
        return np.square(self._units(x) @ self.weights - self._target(x)).mean(axis=1)

    def _target(self, x: Array) -> Array:
        first, second = self.target
        return _apply(np.maximum(_apply(x, first), 0.0), second)

    def _units(self, x: Array) -> Array:
        return np.column_stack([np.maximum(_apply(x, self.predictor), 0.0), np.ones(len(x))])


def _layer(generator: np.random.Generator, width_in: int, width_out: int) -> Array:
    """Weights [width_in + 1, width_out]; the last row is the bias."""
    return np.vstack([generator.normal(size=(width_in, width_out)) * np.sqrt(2 / width_in), generator.normal(size=width_out)])


def _apply(x: Array, layer: Array) -> Array:
    return x @ layer[:-1] + layer[-1]
