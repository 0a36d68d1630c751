"""Disagreement of an ensemble's members, or of passes with dropout: where training data left them free, they differ."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

Array = np.ndarray


class Disagreement:
    """Mean variance over members of their outputs, each output in units of its spread in simulation (Lakshminarayanan et al.,
    arXiv 1612.01474; with dropout: Gal and Ghahramani, arXiv 1506.02142).

    Eats outputs [E, N, A] of E members on N observations (actions of policies, values of a critic's heads), made elsewhere.
    """

    scale: Array

    def fit(self, outputs: Any) -> Self:
        """Learn the spread [A] of the members' mean output on simulator observations, outputs [E, N, A].

        Raises:
            ValueError: not [E, N, A] with at least 2 members and 2 observations, not finite, or constant outputs.
        """
        array = _check(outputs)
        if array.shape[1] < 2:
            raise ValueError("one observation says nothing about the spread of outputs: fit on at least 2")
        scale = array.mean(axis=0).std(axis=0)
        if not scale.any():
            raise ValueError("all outputs are constant on the fit: nothing tells what difference between members is large")
        self.scale = scale
        return self

    def score(self, outputs: Any) -> Array:
        """Scores [M] of outputs [E, M, A]; an output that is constant in simulation is left out.

        Raises:
            ValueError: not [E, M, A] as wide as the fit's.
            RuntimeError: not fitted yet.
        """
        if not hasattr(self, "scale"):
            raise RuntimeError("Disagreement scores after fit(outputs on simulator observations)")
        array = _check(outputs, len(self.scale))
        moves = self.scale > 1e-9 * self.scale.max()
        return (array[..., moves] / self.scale[moves]).var(axis=0, ddof=1).mean(axis=-1)


def _check(outputs: Any, width: int | None = None) -> Array:
    array = np.asarray(outputs, np.float64)
    if array.ndim != 3 or len(array) < 2 or not array.size or (width is not None and array.shape[2] != width):
        wanted = "A" if width is None else width
        raise ValueError(f"outputs have shape {list(array.shape)}, expected [E, N, {wanted}] of at least E=2 members")
    if not np.isfinite(array).all():
        raise ValueError("outputs are not finite: drop those observations")
    return array
