"""Statistics as LeRobotDataset v3 keeps them: of every episode and of all, images per channel in [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from robopolicy.spec import Array

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Stats = dict[str, Array]


def vector_stats(values: Array) -> Stats:
    """Statistics over steps (and inner axes) of values [T] or [T, ..., D]: each [1] or [D]."""
    data = np.asarray(values, np.float64).reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
    return _stats(data, len(values))


def image_stats(frames: Array) -> Stats:
    """Statistics per channel of frames uint8 [T, H, W, 3], scaled to [0, 1]: each [3, 1, 1]. Exact, from a histogram."""
    stats: list[Stats] = []
    levels = np.arange(256) / 255.0
    for channel in np.moveaxis(frames, -1, 0):
        counts = np.bincount(channel.reshape(-1), minlength=256)
        present, total = np.flatnonzero(counts), counts.sum()
        mean = (counts * levels).sum() / total
        cumulative = np.cumsum(counts)
        quantiles = {name: levels[np.searchsorted(cumulative, q * total)] for name, q in QUANTILES.items()}
        std = np.sqrt((counts * (levels - mean) ** 2).sum() / total)
        ends = {"min": levels[present[0]], "max": levels[present[-1]]}
        stats.append({name: np.array(value) for name, value in {**ends, "mean": mean, "std": std, **quantiles}.items()})
    merged = {name: np.stack([s[name] for s in stats]).reshape(-1, 1, 1) for name in stats[0]}
    return {**merged, "count": np.array([len(frames)])}


def aggregate(stats: Sequence[Mapping[str, Array]]) -> Stats:
    """Statistics of all episodes from those of each; quantiles are averages weighted by steps, as LeRobot's are."""
    stacked = {name: np.stack([s[name] for s in stats]).astype(np.float64) for name in stats[0]}
    weights = stacked["count"].reshape(-1, *[1] * (stacked["mean"].ndim - 1)) / stacked["count"].sum()
    mean = (weights * stacked["mean"]).sum(axis=0)
    variance = (weights * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(axis=0)
    return {
        "min": stacked["min"].min(axis=0),
        "max": stacked["max"].max(axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": np.array([int(stacked["count"].sum())]),
        **{name: (weights * stacked[name]).sum(axis=0) for name in QUANTILES},
    }


def _stats(data: Array, count: int) -> Stats:
    quantiles = np.quantile(data, list(QUANTILES.values()), axis=0)
    return {
        "min": data.min(axis=0),
        "max": data.max(axis=0),
        "mean": data.mean(axis=0),
        "std": data.std(axis=0),
        "count": np.array([count]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }
