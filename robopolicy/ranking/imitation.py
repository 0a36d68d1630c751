"""Validation error of a policy's chunks on recorded ones: the cheapest score, and a poor one."""

from __future__ import annotations

from typing import Any

import numpy as np

from robopolicy.ope.estimate import Estimate, clustered_mean


def action_error(
    predicted: Any, recorded: Any, scale: Any, *, is_pad: Any = None, episode: Any = None, weights: Any = None
) -> Estimate:
    """Mean squared error of a policy's chunks against the recorded ones, smaller = better. A baseline that often misleads.

    predicted, recorded: [N, H, A] in the same units. scale: [A], what counts as one in each entry (the recorded standard
        deviation). is_pad: bool [N, H], steps past the end of an episode, left out. episode: int [N]. weights: [N], to count
        the steps that matter (the segments around contacts, as CI-MSE does, arXiv 2606.29898).

    On SIMPLER's policies it orders poorly: mean MMRV .375 and r .308 on the Google robot, negative r on WidowX (arXiv
    2405.05941).

    Raises:
        ValueError: shapes that differ, a scale that is not above 0, or values that are not finite.
    """
    p, r, s = np.asarray(predicted, np.float64), np.asarray(recorded, np.float64), np.asarray(scale, np.float64)
    if p.ndim != 3 or p.shape != r.shape or s.shape != p.shape[2:] or not (s > 0).all():
        raise ValueError(f"predicted {p.shape}, recorded {r.shape}, scale {s.shape}: needs [N, H, A] twice and [A] above 0")
    if not (np.isfinite(p).all() and np.isfinite(r).all()):
        raise ValueError("actions are not finite: drop those rows")
    inside = np.ones(p.shape[:2]) if is_pad is None else (~np.asarray(is_pad, bool)).astype(np.float64)
    steps = inside.sum(axis=1)
    error = (np.square((p - r) / s).mean(axis=2) * inside).sum(axis=1) / np.maximum(steps, 1)
    return Estimate(*clustered_mean(error, episode, steps if weights is None else steps * np.asarray(weights, np.float64)))
