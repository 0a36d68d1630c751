"""The mean return in the worst world within a Kullback-Leibler radius of the simulator. Needs no target data."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import brentq

from robopolicy.ope.estimate import Estimate, clustered_mean


def kl_robust(returns: Any, radius: float, condition: Any = None) -> Estimate:
    """min E_p[R] over distributions p of the simulated episodes with KL(p || simulated) <= radius (nats).

    The dual, sup_b -b log E[exp(-R / b)] - b radius over one number (Hu and Hong 2013; Nilim and El Ghaoui 2005), attained at
    p ~ exp(-R / b) with KL = radius; from radius = -log(share of the worst return) on it is the worst return.

    returns: [N], larger = better. condition: int [N], the unit of sampling for the standard error (by the dual's influence
        function). n_eff: Kish's effective number of episodes under the worst distribution.

    It prefers policies whose returns vary little over the simulator's worlds. Not a bound on the real robot's mean: nothing
    says that reality lies within the radius.

    Raises:
        ValueError: not [N], not finite, or a negative radius.
    """
    r = np.asarray(returns, np.float64)
    if r.ndim != 1 or not r.size or not np.isfinite(r).all() or not radius >= 0:
        raise ValueError(f"returns of shape {r.shape}, radius={radius}: needs finite [N] and radius >= 0")
    worst, span = r.min(), float(np.ptp(r))
    gap = (r - worst) / span if span > 0 else np.zeros(len(r))
    floor = float(-np.log(np.mean(gap == 0)))
    if radius == 0 or span == 0:
        return Estimate(*clustered_mean(r, condition))
    if radius >= floor:
        unit = float("nan") if condition is None else float(len(np.unique(np.asarray(condition)[gap == 0])))
        num = float((gap == 0).sum()) if np.isnan(unit) else unit
        return Estimate(float(worst), float("nan"), num, True, f"radius={radius:g} reaches the worst return alone")

    def divergence(tilt: float) -> float:
        p = np.exp(-tilt * gap)
        p /= p.sum()
        return float(np.sum(p * (np.log(np.maximum(p, 1e-300)) + np.log(len(p))))) - radius

    high = 1.0
    while divergence(high) < 0:
        high *= 2
    tilt = brentq(divergence, 0.0, high, xtol=1e-12)
    weight = np.exp(-tilt * gap)
    value = float((weight * r).sum() / weight.sum())
    influence = -span / tilt * weight / weight.mean()
    _, sd, _ = clustered_mean(influence, condition)
    return Estimate(value, sd, float(weight.sum() ** 2 / np.square(weight).sum()))
