"""What was drawn in the evaluation's worlds, and what of it goes with failure: the columns randomization.* of a score table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import norm, rankdata

from robopolicy.ranking.episode_table import conditions_of

PREFIX = "randomization."


@dataclass(frozen=True)
class DrawnParameter:
    """One number of the drawn worlds. low, high: its range over the conditions. A vector's entry i is called "name[i]".

    correlation: Spearman's, over conditions, of its value with the pool's mean success there; negative: high values go with
    failure. interval: its 95 % interval (Fisher's z, standard error 1.06 / sqrt(n - 3) for ranks). There are many parameters:
    some intervals exclude zero by chance.
    """

    name: str
    low: float
    high: float
    correlation: float
    interval: tuple[float, float]


def drawn_parameters(table: pa.Table) -> list[DrawnParameter]:
    """Every number that varied over the conditions of a score table, the strongest correlation first.

    None where the table has no such columns, fewer than 8 conditions, or nothing but successes or failures.
    """
    names = [name for name in table.column_names if name.startswith(PREFIX)]
    keys, first, inverse = np.unique(conditions_of(table), return_index=True, return_inverse=True)
    success = np.array(table["success"].to_pylist(), float)
    rate = np.bincount(inverse, success) / np.bincount(inverse)
    if not names or len(keys) < 8 or np.ptp(rate) == 0:
        return []
    columns: dict[str, np.ndarray] = {}
    for name in names:
        columns.update(numbers(name.removeprefix(PREFIX), [table[name][int(i)].as_py() for i in first]))
    found = [_parameter(name, values, rate) for name, values in columns.items() if np.ptp(values) > 0]
    return sorted(found, key=lambda p: (-abs(p.correlation), p.name))


def numbers(name: str, values: list[Any]) -> dict[str, np.ndarray]:
    """{name of a number: float64 [K]} of a parameter's values; nothing where they are no numbers of equal length."""
    try:
        array = np.array(values, float)
    except (TypeError, ValueError):
        return {}
    if not np.isfinite(array).all():
        return {}
    return {name: array} if array.ndim == 1 else {f"{name}[{i}]": column for i, column in enumerate(array.T)}


def _parameter(name: str, values: np.ndarray, rate: np.ndarray) -> DrawnParameter:
    a, b = (rankdata(x) - (len(x) + 1) / 2 for x in (values, rate))
    rho = float(a @ b / np.sqrt((a @ a) * (b @ b)))
    z, half = np.arctanh(np.clip(rho, -0.999999, 0.999999)), float(norm.ppf(0.975)) * 1.06 / np.sqrt(len(values) - 3)
    interval = (float(np.tanh(z - half)), float(np.tanh(z + half)))
    return DrawnParameter(name, float(values.min()), float(values.max()), rho, interval)
