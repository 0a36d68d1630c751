"""From tables of episodes to what is claimed: paired differences with intervals, pooled over cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from robopolicy.ranking.statistics import holm, mcnemar, paired_comparison, percentile_interval, stream
from steering_bench.cells import Cell

NUM_BOOTSTRAP = 4000


def outcomes(base: pa.Table, other: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Success of both on the conditions that both have, bool [n] each."""
    tables = [dict(zip(t["condition"].to_pylist(), t["success"].to_pylist(), strict=True)) for t in (base, other)]
    common = [condition for condition in tables[0] if condition in tables[1]]
    first, second = (np.array([table[c] for c in common], bool) for table in tables)
    return first, second


def compared(cell: Cell, tables: Mapping[str, pa.Table], base: Cell) -> dict[str, Any] | None:
    """A cell beside its base on the same worlds: JSON-ready; None where there is nothing to compare."""
    if cell.key not in tables or base.key not in tables:
        return None
    mine = tables[cell.key]
    a, b = outcomes(tables[base.key], mine)
    if not len(a):
        return None
    found = paired_comparison(a.astype(int), b.astype(int), np.ones(len(a), int), stream(0, cell.key), NUM_BOOTSTRAP)
    decided = mine["decisions"].to_numpy()
    deviation = float(np.average(mine["deviation"].to_numpy(), weights=decided)) if decided.sum() else 0.0
    return {"key": cell.key, "method": cell.method.name, "split": cell.split, **found.to_dict(), "deviation": deviation}


def pooled(pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = 0) -> dict[str, Any] | None:
    """Mean of the cells' differences (each counts alike), the interval of a bootstrap within cells, McNemar over all."""
    if not pairs:
        return None
    generator = stream(seed, "pooled", len(pairs))
    differences = [b.astype(float) - a.astype(float) for a, b in pairs]
    draws = np.mean([d[generator.integers(len(d), size=(NUM_BOOTSTRAP, len(d)))].mean(1) for d in differences], axis=0)
    a, b = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    only_base, only_other, p = mcnemar(a, b)
    return {
        **{"gain": float(np.mean([d.mean() for d in differences])), "gain_ci": list(percentile_interval(draws))},
        **{"only_base": only_base, "only_other": only_other, "p_value": p, "pairs": len(a), "cells": len(pairs)},
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `compared` as text."""
    lines = [f"{'cell':58} {'n':>4} {'base':>6} {'this':>6} {'gain':>7}  {'95 % interval':18} {'p':>8} {'left':>6}"]
    for row in rows:
        low, high = row["difference_interval"]
        lines.append(
            f"{row['key']:58} {row['num_conditions']:4} {row['base']:6.3f} {row['other']:6.3f} {row['difference']:+7.3f}  "
            f"[{low:+.3f}, {high:+.3f}]   {row['p_value']:8.2g} {row['deviation']:6.1%}"
        )
    return "\n".join(lines)


def adjusted(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The rows' p-values after Holm."""
    return [float(p) for p in holm([row["p_value"] for row in rows])]
