"""Weights of scores fitted on domains where the order is known: Plackett-Luce (1959, 1975) over pools of policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from robopolicy.ranking.combine import mean_available, rank_fraction

Array = np.ndarray


@dataclass(frozen=True)
class PlackettLuce:
    """A combiner: weighted geometric mean of rank fractions; equal weights are the rank product. For `combine(terms, rule)`.

    weights: [T], none negative (a score's direction is known: larger = better), summing to 1.
    sharpness: sum of the fitted weights: how much the orders followed the scores at all; 0 = not at all.
    """

    weights: Array
    sharpness: float

    def __call__(self, terms: Array) -> Array:
        """Scores [..., C] of terms [T, ..., C], NaN = missing; the terms of the fit, in its order."""
        if len(terms) != len(self.weights):
            raise ValueError(f"{len(terms)} terms for weights of {len(self.weights)}: give the terms of the fit, in its order")
        return np.exp(mean_available(_log_fractions(terms), self.weights))


def fit_plackett_luce(domains: Sequence[tuple[Any, Any]], ridge: float = 1.0) -> PlackettLuce:
    """Fit weights of T terms on domains: pairs of terms [T, C] (larger = better) and of what was obtained, [C].

    Maximises the likelihood of each domain's order under P(i first of S) = exp(u_i) / sum_S exp(u_j), where u is the weighted
    sum of the log rank fractions, less ridge / 2 times the squared distance of the weights from those of the rank product
    with sharpness 1. Tied outcomes count against all of their tie (Breslow). Pools may differ in size; convex, so the same
    optimum from everywhere.

    Raises:
        ValueError: no domain, terms and outcomes that do not fit, missing or infinite outcomes, or ridge <= 0.
    """
    if not domains or ridge <= 0:
        raise ValueError(f"{len(domains)} domains, ridge={ridge}: needs at least one domain and ridge > 0")
    prepared = []
    for terms, truth in domains:
        x, r = np.asarray(terms, np.float64), np.asarray(truth, np.float64)
        if x.ndim != 2 or r.shape != x.shape[1:] or len(x) != len(np.asarray(domains[0][0])) or not np.isfinite(r).all():
            raise ValueError(
                f"terms {list(x.shape)} and outcomes {list(r.shape)}: needs [T, C] and finite [C], T the same everywhere"
            )
        logs = _log_fractions(x)
        logs = np.where(np.isnan(logs), np.nanmean(logs, axis=1, keepdims=True), logs)  # missing: neither for nor against
        prepared.append((np.nan_to_num(logs), r[:, None] >= r[None, :]))
    start = np.full(len(prepared[0][0]), 1 / len(prepared[0][0]))

    def loss(w: Array) -> tuple[float, Array]:
        value, gradient = ridge / 2 * float(np.square(w - start).sum()), ridge * (w - start)
        for x, beaten in prepared:
            u = w @ x
            weight = np.where(beaten, np.exp(u - u.max()), 0.0)  # [winner, those it was chosen from]
            total = weight.sum(axis=1)
            value -= float((u - u.max() - np.log(total)).sum())
            gradient = gradient - (x.sum(axis=1) - x @ (weight / total[:, None]).sum(axis=0))
        return value, gradient

    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start))
    sharpness = float(found.x.sum())
    return PlackettLuce(found.x / sharpness if sharpness > 0 else start, sharpness)


def _log_fractions(terms: Array) -> Array:
    return np.log(np.asarray([rank_fraction(t) for t in terms]))
