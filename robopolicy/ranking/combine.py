"""VSDR = combine(V, -O): several scores of the same checkpoints into one, relative to the pool. Pure functions.

Every term is [..., C] with larger = better; leading axes (bootstrap replicates) broadcast. The published combination
rule of VSDR (Leibovich et al., ICRA 2022) could not be verified, so the rules here are ours, in the spirit of its abstract.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from robopolicy.spec import did_you_mean

Array = np.ndarray


def _rank_fraction(term: Array) -> Array:
    """Mid-rank over the number of available entries: 1 = best, 1/n = worst, NaN where missing."""
    missing = np.isnan(term)
    ascending = stats.rankdata(np.where(missing, np.inf, term), axis=-1)
    available = np.maximum((~missing).sum(axis=-1, keepdims=True), 1)
    return np.where(missing, np.nan, ascending / available)


def _finite(term: Array) -> Array:
    """`term` with -inf (disqualified) moved to the smallest finite value of the pool."""
    finite = np.where(np.isfinite(term), term, np.inf).min(axis=-1, keepdims=True)
    return np.where(np.isneginf(term), np.where(np.isfinite(finite), finite, 0.0), term)


def _scaled(term: Array, centre: Array, scale: Array) -> Array:
    return (term - centre) / np.where(scale > 1e-12, scale, 1.0)


def _z(term: Array) -> Array:
    term = _finite(term)
    return _scaled(term, np.nanmean(term, axis=-1, keepdims=True), np.nanstd(term, axis=-1, keepdims=True))


def _robust_z(term: Array) -> Array:
    term = _finite(term)
    centre = np.nanmedian(term, axis=-1, keepdims=True)
    mad = 1.4826 * np.nanmedian(np.abs(term - centre), axis=-1, keepdims=True)
    return _scaled(term, centre, np.where(mad > 1e-12, mad, np.nanstd(term, axis=-1, keepdims=True)))


def _mean(terms: Array) -> Array:
    """Mean over the first axis of what is available; NaN where nothing is."""
    available = (~np.isnan(terms)).sum(axis=0)
    return np.where(available > 0, np.nansum(terms, axis=0) / np.maximum(available, 1), np.nan)


COMBINERS: dict[str, Callable[[Array], Array]] = {
    "rank_product": lambda terms: np.exp(_mean(np.log([_rank_fraction(t) for t in terms]))),
    "rank_average": lambda terms: _mean(np.asarray([_rank_fraction(t) for t in terms])),
    "robust_z": lambda terms: _mean(np.asarray([_robust_z(t) for t in terms])),
    "z_sum": lambda terms: _mean(np.asarray([_z(t) for t in terms])),
}


def combine(terms: Sequence[Array], rule: str = "rank_product") -> Array:
    """One score [..., C], larger = better, from terms [..., C] each. Relative to the pool: it changes with its members.

    rank_product: geometric mean of rank fractions in (0, 1]; 1 = best in every term. Conjunctive: a checkpoint that is bad
        at one thing is not saved by another. rank_average: their arithmetic mean.
    robust_z: mean of (x - median) / MAD. z_sum: mean of (x - mean) / std; one exploded score flattens all others.

    NaN = missing: combined over the terms that are there (NaN when none is). -inf = disqualified in that term: it shares
    the worst place. With the two rank rules, raising one checkpoint's term never worsens its place; the z rules do not
    promise that, because the pool's spread moves with it.

    Raises:
        ValueError: unknown rule, no terms, or +inf in a term.
    """
    if rule not in COMBINERS:
        raise ValueError(f"no combiner {rule!r}; {did_you_mean(rule, COMBINERS)}")
    if not len(terms):
        raise ValueError("nothing to combine: give at least one term [..., C]")
    stacked = np.stack(np.broadcast_arrays(*[np.asarray(t, dtype=np.float64) for t in terms]))
    if np.isposinf(stacked).any():
        raise ValueError("a term is +inf: only finite values, NaN (missing) and -inf (disqualified) are defined")
    known = stacked[~np.isnan(stacked).reshape(len(stacked), -1).all(axis=1)]
    return COMBINERS[rule](known) if len(known) else np.full(stacked.shape[1:], np.nan)
