"""Where a checkpoint fails: its episodes parted by what was drawn for their worlds (columns randomization.* and task)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from robopolicy.ranking.episode_table import conditions_of
from robopolicy.ranking.intervals import wilson
from robopolicy.ranking.tables import Array, RankingError
from robopolicy.ranking.worlds import PREFIX, numbers
from robopolicy.spec import did_you_mean

LEVELS = ("low", "middle", "high")
MIN_CONDITIONS = 9  # fewer make no thirds worth looking at


@dataclass(frozen=True)
class Slice:
    """The conditions whose parameter lies in a third of what was drawn. low, high: its ends. rows: bool [N] of the table."""

    parameter: str
    level: str
    low: float
    high: float
    rows: Array

    @property
    def name(self) -> str:
        """How a gate names it: "parameter:level"."""
        return f"{self.parameter}:{self.level}"


def slices(table: pa.Table) -> dict[str, Slice]:
    """{name: slice}: thirds of every number that varied, and every value of `task` if there are several."""
    found: dict[str, Slice] = {}
    conditions, first, inverse = np.unique(conditions_of(table), return_index=True, return_inverse=True)
    if len(conditions) >= MIN_CONDITIONS:
        for column in table.column_names:
            if not column.startswith(PREFIX):
                continue
            drawn = numbers(column.removeprefix(PREFIX), [table[column][int(i)].as_py() for i in first])
            for parameter, values in drawn.items():
                found |= {s.name: s for s in _thirds(parameter, values, inverse)}
    tasks = np.array(table["task"].to_pylist(), str) if "task" in table.column_names else np.zeros(0, str)
    for task in np.unique(tasks) if len(np.unique(tasks)) > 1 else ():
        found[f"task:{task}"] = Slice("task", str(task), np.nan, np.nan, tasks == task)
    return found


def _thirds(parameter: str, values: Array, inverse: Array) -> list[Slice]:
    if np.ptp(values) == 0:
        return []
    edges = np.quantile(values, [0, 1 / 3, 2 / 3, 1])
    third = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, 2)
    return [
        Slice(parameter, level, float(edges[i]), float(edges[i + 1]), (third == i)[inverse])
        for i, level in enumerate(LEVELS)
        if (third == i).any()
    ]


def find_slice(known: dict[str, Slice], name: str) -> Slice:
    """A slice by name. Raises RankingError naming the closest."""
    if name not in known:
        given = did_you_mean(name, known) if known else "the table has no columns randomization.* with 9 conditions or more"
        raise RankingError(f"no slice {name!r}; {given}")
    return known[name]


def weakest(table: pa.Table, checkpoints: Sequence[str], most: int = 8) -> list[dict[str, Any]]:
    """The parameters whose thirds differ most in the success of the first of `checkpoints`, with the rates of all of them.

    [{"parameter", "cells": [{"level", "low", "high", "rates": [{"success", "interval", "n"}]}]}], widest spread first.
    """
    known = slices(table)
    owner, success = np.array(table["checkpoint"].to_pylist(), str), np.array(table["success"].to_pylist(), float)
    found: dict[str, dict[str, Any]] = {}
    for part in known.values():
        rates: list[dict[str, Any] | None] = []
        for name in checkpoints:
            hit = success[part.rows & (owner == name)]
            if not hit.size:
                rates.append(None)
                continue
            low, high = wilson(hit.sum(), hit.size)
            rates.append({"success": float(hit.mean()), "interval": [float(low), float(high)], "n": int(hit.size)})
        cell = {"level": part.level, "low": part.low, "high": part.high, "rates": rates}
        found.setdefault(part.parameter, {"parameter": part.parameter, "cells": []})["cells"].append(cell)

    def spread(entry: dict[str, Any]) -> float:
        rates = [cell["rates"][0]["success"] for cell in entry["cells"] if cell["rates"][0]]
        return float(np.ptp(rates)) if rates else 0.0

    return sorted(found.values(), key=lambda e: (-spread(e), e["parameter"]))[:most]
