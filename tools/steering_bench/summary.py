"""From tables of episodes to what is claimed: paired differences with intervals, pooled over cells, and what they add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from robopolicy.ranking.statistics import bootstrap_weights, holm, paired_comparison, percentile_interval, stream
from steering_bench.cells import Cell

NUM_BOOTSTRAP = 4000


def outcomes(base: pa.Table, other: pa.Table) -> dict[str, tuple[bool, bool]]:
    """{condition: success of both}, of the conditions that both have."""
    first, second = (dict(zip(t["condition"].to_pylist(), t["success"].to_pylist(), strict=True)) for t in (base, other))
    return {condition: (first[condition], second[condition]) for condition in first if condition in second}


def compared(cell: Cell, tables: Mapping[str, pa.Table], base: Cell) -> dict[str, Any] | None:
    """A cell beside its base on the same worlds: JSON-ready; None where there is nothing to compare."""
    if cell.key not in tables or base.key not in tables:
        return None
    mine = tables[cell.key]
    pairs = outcomes(tables[base.key], mine)
    if not pairs:
        return None
    a, b = np.array(list(pairs.values())).T
    found = paired_comparison(a.astype(int), b.astype(int), np.ones(len(a), int), stream(0, cell.key), NUM_BOOTSTRAP)
    decided = mine["decisions"].to_numpy()
    deviation = float(np.average(mine["deviation"].to_numpy(), weights=decided)) if decided.sum() else 0.0
    return {"key": cell.key, "method": cell.method.name, "split": cell.split, **found.to_dict(), "deviation": deviation}


def pooled(cells: Sequence[Mapping[str, tuple[bool, bool]]], seed: int = 0) -> dict[str, Any] | None:
    """Mean of the cells' differences (each counts alike), the interval of a bootstrap over worlds.

    cells: see `outcomes`. They play the same conditions, so that a replicate draws these once for all of them.
    """
    if not cells:
        return None
    worlds = list(dict.fromkeys(condition for cell in cells for condition in cell))
    played = np.array([[condition in cell for condition in worlds] for cell in cells], float)
    gains = np.array([[np.subtract(*map(float, cell.get(c, (False, False))[::-1])) for c in worlds] for cell in cells])
    weights = bootstrap_weights(len(worlds), NUM_BOOTSTRAP, stream(seed, "pooled", len(cells))).astype(float)
    draws = (weights @ gains.T / np.maximum(weights @ played.T, 1.0)).mean(1)
    return {
        **{"gain": float((gains.sum(1) / played.sum(1)).mean()), "gain_ci": list(percentile_interval(draws))},
        **{"pairs": int(played.sum()), "worlds": len(worlds), "cells": len(cells)},
    }


def contrasts(successes: Mapping[str, Mapping[str, Mapping[str, bool]]]) -> dict[str, Any]:
    """What parts say together of each base, on the worlds that all who are asked played: {base: {name: figures}}.

    successes: {base: {method: {condition: success}}}. Where their methods were played: "captured", the share of the oracle's
    head-room that the default rule took, (default - base) / (oracle - base); "more_candidates", K = 64 less 16; "worst", the
    critic's worst candidate less a random one, which a critic that knows something makes negative.
    """
    asked = {
        "captured": ("base", "default", "oracle"),
        "more_candidates": ("k16", "k64"),
        "worst": ("random", "worst"),
    }
    found: dict[str, Any] = {}
    for base, methods in successes.items():
        for name, needed in asked.items():
            if all(method in methods for method in needed):
                common = [c for c in methods[needed[0]] if all(c in methods[method] for method in needed)]
                played = np.array([[methods[method][c] for c in common] for method in needed], float)
                if common:
                    found.setdefault(base, {})[name] = _contrast(played, stream(0, base, name))
    return found


def _contrast(played: np.ndarray, generator: np.random.Generator) -> dict[str, Any]:
    """Of successes [2, n] the difference; of [3, n] (base, default, oracle) the share. NaN without head-room."""

    def figure(means: np.ndarray) -> np.ndarray:
        if len(means) == 2:
            return means[1] - means[0]
        room = means[2] - means[0]
        return np.where(room > 0, (means[1] - means[0]) / np.where(room > 0, room, 1.0), np.nan)

    length = played.shape[1]
    draws = figure(played @ bootstrap_weights(length, NUM_BOOTSTRAP, generator).T / length)
    return {"value": float(figure(played.mean(1))), "interval": list(percentile_interval(draws)), "worlds": length}


def joined(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each base and method over several runs of the benchmark, of other training seeds: rows as those of `compared`.

    results: what the benchmark writes. The intervals are of a bootstrap that draws seeds and, within each, its worlds; with few
    seeds they are rather too narrow, so "by_seed" has each seed's base and method. Raises ValueError where two of them have the
    same base, method and seed.
    """
    found: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for result in results:
        inputs, seed = result["settings"].get("inputs", "state"), result["seed"]
        for base, methods in result["episodes"].items():
            for method in (name for name in methods if name != "base"):
                common = [c for c in methods["base"] if c in methods[method]]
                pairs = np.array([[methods["base"][c], methods[method][c]] for c in common], float)
                of = found.setdefault((f"{base}{'' if inputs == 'state' else f', {inputs}'}", method), {})
                if seed in of:
                    raise ValueError(f"{base}, {method}, inputs {inputs}: two results of seed {seed}; give each once")
                of[seed] = pairs
    return [_over_seeds(f"{base}/{method}", method, seeds) for (base, method), seeds in found.items()]


def _over_seeds(key: str, method: str, seeds: Mapping[int, np.ndarray]) -> dict[str, Any]:
    """seeds: {seed: successes [n, 2] of base and method on the same worlds}."""
    generator = stream(0, "joined", key)
    means = np.array([pairs.mean(0) for pairs in seeds.values()])
    drawn = [
        bootstrap_weights(len(pairs), NUM_BOOTSTRAP, stream(0, "joined", key, seed)) @ pairs / len(pairs)
        for seed, pairs in seeds.items()
    ]
    weights = bootstrap_weights(len(seeds), NUM_BOOTSTRAP, generator) / len(seeds)
    base, other = np.einsum("bs,sbm->mb", weights, np.array(drawn))
    return {
        **{"key": key, "method": method, "seeds": list(seeds), "num_conditions": sum(map(len, seeds.values()))},
        **{"base": float(means[:, 0].mean()), "base_interval": list(percentile_interval(base))},
        **{"other": float(means[:, 1].mean()), "other_interval": list(percentile_interval(other))},
        **{
            "difference": float((means[:, 1] - means[:, 0]).mean()),
            "difference_interval": list(percentile_interval(other - base)),
        },
        "by_seed": means.tolist(),
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
