"""How one checkpoint's detector sees each observation: distributions of its scores, and which target frames lie nearest."""

from __future__ import annotations

from typing import Any

import numpy as np

from robopolicy.ranking.detectors import Detection
from robopolicy.ranking.tables import Array

NUM_BINS = 28


def log_scores(found: Detection) -> tuple[Array, Array] | None:
    """Of the target [M] and of the simulator hold-out [N], larger = further out; None where there are none that spread."""
    if found.scores is None:
        return None
    tiny = np.finfo(np.float64).tiny
    target, calibration = (np.log(np.maximum(scores, tiny)) for scores in found.scores)
    return (target, calibration) if np.isfinite(target).all() and np.ptp(calibration) > 0 else None


def histogram(name: str, found: Detection) -> dict[str, Any] | None:
    """{"checkpoint", "edges" [K + 1], "simulation", "target": shares [K]} of the log-scores, JSON-ready; None without any."""
    scores = log_scores(found)
    if scores is None:
        return None
    target, calibration = scores
    low, high = np.quantile(np.concatenate(scores), [0.002, 0.998])
    edges = np.linspace(low, max(high, low + 1e-6), NUM_BINS + 1)
    shares = [np.histogram(np.clip(x, edges[0], edges[-1]), edges)[0] / len(x) for x in (calibration, target)]
    return {
        "checkpoint": name,
        "edges": edges.round(6).tolist(),
        "simulation": shares[0].round(6).tolist(),
        "target": shares[1].round(6).tolist(),
    }


def extremes(found: Detection, count: int = 6) -> tuple[list[int], list[int]]:
    """Rows of the target observations nearest to simulation and farthest from it, each from the extreme inwards; no rows of a
    collapsed encoder, to which no observation is nearer than another.
    """
    scores = log_scores(found)
    if scores is None:
        return [], []
    order = np.argsort(scores[0], kind="stable")
    count = min(count, len(order) // 2)
    return order[:count].tolist(), order[::-1][:count].tolist()
