"""What the statistics accept, said once: finite vectors, outcomes, counts and fractions."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray


def vector(values: Any, name: str, *, min_size: int = 1) -> Array:
    """`values` as finite float64 [N], N >= min_size. Raises ValueError naming what is wrong with `name`."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} are not numbers: {error}") from error
    if array.ndim != 1:
        raise ValueError(f"{name} have shape {array.shape}: give a flat list, one number each")
    if array.size < min_size:
        raise ValueError(f"{name}: {array.size} values given, needs at least {min_size}")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(f"{name}[{bad[0]}] is {array[bad[0]]}: only finite numbers are defined, leave out what is missing")
    return array


def pair(first: Any, second: Any, names: tuple[str, str], *, min_size: int = 1) -> tuple[Array, Array]:
    """Two finite vectors of the same length. Raises ValueError."""
    a, b = vector(first, names[0], min_size=min_size), vector(second, names[1], min_size=min_size)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} {names[0]} and {b.size} {names[1]}: give one of each, in the same order")
    return a, b


def outcomes(values: Any, name: str) -> Array:
    """`values` as outcomes float64 [N], each 0 or 1. Raises ValueError."""
    array = vector(values, name, min_size=0)
    wrong = np.flatnonzero((array != 0) & (array != 1))
    if wrong.size:
        raise ValueError(f"{name}[{wrong[0]}] is {array[wrong[0]]:g}: outcomes are 0 or 1")
    return array


def counts(successes: Any, trials: Any) -> tuple[Array, Array]:
    """Whole numbers 0 <= successes <= trials, trials >= 1, broadcast to one shape. Raises ValueError."""
    k, n = np.broadcast_arrays(np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64))
    if not (np.isfinite(k).all() and np.isfinite(n).all()) or (n < 1).any() or (k < 0).any() or (k > n).any():
        raise ValueError(f"successes={successes} of trials={trials}: needs 0 <= successes <= trials and trials >= 1")
    if (k % 1 != 0).any() or (n % 1 != 0).any():
        raise ValueError(f"successes={successes} of trials={trials} are not whole numbers: for progress use betting_ci")
    return k, n


def fraction(value: float, name: str) -> float:
    """A number strictly between 0 and 1. Raises ValueError."""
    if not 0 < value < 1:
        raise ValueError(f"{name}={value}: needs a number strictly between 0 and 1")
    return float(value)
