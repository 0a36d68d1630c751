"""VSDR = combine(V, -O): several scores of the same checkpoints into one, relative to the pool. Pure functions.

Every term is [..., C] with larger = better; leading axes (bootstrap replicates) broadcast. The published combination
rule of VSDR (Leibovich et al., ICRA 2022) could not be verified, so the rules here are ours, in the spirit of its abstract.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from robopolicy.spec import did_you_mean

Array = np.ndarray
Rule = Callable[[Array], Array]  # terms [T, ..., C], larger = better, at most some of them missing -> scores [..., C]

MIN_POOL = 8  # policies below which places in a pool say little


def rank_fraction(term: Array) -> Array:
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


def _unit(term: Array) -> Array:
    """In [0, 1] between the pool's worst and best; 1 for all where the term is constant."""
    term = _finite(term)
    low, high = np.nanmin(term, axis=-1, keepdims=True), np.nanmax(term, axis=-1, keepdims=True)
    constant = high - low <= 1e-12
    return np.where(constant, np.where(np.isnan(term), np.nan, 1.0), (term - low) / np.where(constant, 1.0, high - low))


def mean_available(terms: Array, weights: Array | None = None) -> Array:
    """Mean over the first axis, weighted by [T], of what is available; NaN where nothing is."""
    known = ~np.isnan(terms)
    weight = np.ones(len(terms)) if weights is None else weights
    weight = np.where(known, weight.reshape(-1, *[1] * (terms.ndim - 1)), 0.0)
    total = weight.sum(axis=0)
    mean = (np.where(known, terms, 0.0) * weight).sum(axis=0) / np.where(total > 0, total, 1.0)
    return np.where(known.any(axis=0), mean, np.nan)


def _geometric(terms: Array) -> Array:
    """Geometric mean of what is available of terms >= 0; 0 where one is 0."""
    zero = (terms == 0).any(axis=0)
    return np.where(zero, 0.0, np.exp(mean_available(np.log(np.where(terms == 0, 1.0, terms)))))


COMBINERS: dict[str, Rule] = {
    "rank_product": lambda terms: _geometric(np.asarray([rank_fraction(t) for t in terms])),
    "rank_average": lambda terms: mean_available(np.asarray([rank_fraction(t) for t in terms])),
    "robust_z": lambda terms: mean_available(np.asarray([_robust_z(t) for t in terms])),
    "z_sum": lambda terms: mean_available(np.asarray([_z(t) for t in terms])),
    "minmax_product": lambda terms: _geometric(np.asarray([_unit(t) for t in terms])),
}


def combine(terms: Sequence[Any], rule: str | Rule = "rank_product") -> Array:
    """One score [..., C], larger = better, from terms [..., C] each. Relative to the pool: it changes with its members.

    rank_product: geometric mean of rank fractions in (0, 1]; 1 = best in every term. Conjunctive: a checkpoint that is bad
        at one thing is not saved by another. rank_average: their arithmetic mean.
    robust_z: mean of (x - median) / MAD. z_sum: mean of (x - mean) / std; one exploded score flattens all others.
    minmax_product: geometric mean of terms scaled to [0, 1]; the worst in any term gets 0, and one exploded score brings all
        others together.
    A function: terms [T, ..., C] -> [..., C], e.g. a fitted `plackett_luce.PlackettLuce`.

    NaN = missing: combined over the terms that are there (NaN when none is). -inf = disqualified in that term: it shares
    the worst place. A constant term moves nobody. With the two rank rules, raising one checkpoint's term never worsens its
    place; the others do not promise that, because the pool's spread moves with it.

    Raises:
        ValueError: unknown rule, no terms, or +inf in a term.
    """
    if isinstance(rule, str) and rule not in COMBINERS:
        raise ValueError(f"no combiner {rule!r}; {did_you_mean(rule, COMBINERS)}")
    if not len(terms):
        raise ValueError("nothing to combine: give at least one term [..., C]")
    stacked = np.stack(np.broadcast_arrays(*[np.asarray(t, dtype=np.float64) for t in terms]))
    if np.isposinf(stacked).any():
        raise ValueError("a term is +inf: only finite values, NaN (missing) and -inf (disqualified) are defined")
    if not isinstance(rule, str):
        return rule(stacked)
    known = stacked[~np.isnan(stacked).reshape(len(stacked), -1).all(axis=1)]
    return COMBINERS[rule](known) if len(known) else np.full(stacked.shape[1:], np.nan)


def vsdr(sim: Any, ood: Any, combine: str | Rule = "rank_product") -> Array:
    """VSDR-style score [C], larger = better, of C policies from simulated scores and distances of the target (after
    Leibovich et al., ICRA 2022, arXiv 2111.00765, whose own rule could not be verified).

    sim: [C], larger = better, e.g. success on one common validation suite. ood: [C], larger = worse, e.g. effect sizes of a
        detector; +inf for a policy that the detector disqualifies (a collapsed encoder), NaN for one that it did not see,
        which is then placed by its simulated score alone, with a warning.
    combine: see `combine`.

    Fewer than 8 policies: a place in so small a pool says little, so there is a warning and the simulated scores themselves
    are returned; use the detectors' effect sizes, which do not depend on the pool, to veto.

    Raises:
        ValueError: not two [C], a simulated score that is not finite, -inf in `ood`, or an unknown rule.
    """
    v, o = np.asarray(sim, np.float64), np.asarray(ood, np.float64)
    if v.ndim != 1 or v.shape != o.shape or not v.size:
        raise ValueError(f"sim of shape {list(v.shape)} and ood of {list(o.shape)}: give one of each per policy, both [C]")
    if not np.isfinite(v).all():
        at = int(np.flatnonzero(~np.isfinite(v))[0])
        raise ValueError(f"sim[{at}]={v[at]}: a policy without a simulated score cannot be ranked; evaluate it or leave it out")
    if np.isneginf(o).any():
        raise ValueError(
            "ood is -inf: larger = worse, so only finite values, NaN (not seen) and +inf (disqualified) are defined"
        )
    score = _combine([v, -o], combine)
    if v.size < MIN_POOL:
        warnings.warn(
            f"{v.size} policies: a score relative to its pool needs at least {MIN_POOL}; simulated scores alone decide",
            stacklevel=2,
        )
        return v
    if np.isnan(o).any():
        warnings.warn(
            f"{int(np.isnan(o).sum())} of {v.size} policies have no ood score: simulation alone places them", stacklevel=2
        )
    return score


_combine = combine
