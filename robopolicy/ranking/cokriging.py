"""What is known about every policy's real value: cheap scores of all, a few real outcomes of some (AR(1) co-kriging).

    R_i = s + c + rho_1 (S_i1 - s) + sum_l rho_l z_il + delta_i,   delta ~ N(0, K),  K_ij = v exp(-d_ij^2 / 2 l^2) + w 1[i = j]

S_i1: simulated value in the units of the real one (s its pool mean). z_il: further scores, standardised over the pool. d_ij:
how differently two policies act, e.g. the rms distance of their actions on the same real observations. With c ~ N(0, .),
rho_1 ~ N(1, 1), rho_l ~ N(u / (L - 1), u^2) this is one Gaussian prior of all R, which real outcomes condition exactly
(Kennedy and O'Hagan 2000; for policies as in Active Offline Policy Selection, Konyushkova et al., NeurIPS 2021). u: how far
real values may stray from simulated ones (_unit). v, l, w are fitted once three policies have been tried; without real outcomes
the expected real value is the simulated one, moved by u for every standard deviation of the mean of the further scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import linalg, optimize

from robopolicy.ranking import checks
from robopolicy.spec import did_you_mean

Array = np.ndarray

SCHEMA = 1
MIN_TRIED = 3  # policies with real outcomes before the kernel is fitted
SD_OFFSET, SD_RHO = 3.0, 1.0  # prior: of c in units, of rho_1
MIN_RATE_UNIT = 0.15
PRIOR = {"v": (0.5, 1.5), "l": (1.0, 1.0), "w": (0.25, 1.0)}  # log-normal: median (x unit^2, x median d), log sd


@dataclass(frozen=True)
class Kernel:
    """v: variance shared by policies that act alike. l: distance over which it is. w: variance of each policy alone."""

    v: float
    l: float
    w: float

    def __call__(self, distances: Array | None, size: int) -> Array:
        """Covariance [N, N] of delta."""
        own = self.w * np.eye(size)
        return (
            (self.v + self.w) * np.eye(size) if distances is None else own + self.v * np.exp(-((distances / self.l) ** 2) / 2)
        )


@dataclass(frozen=True)
class CoKriging:
    """Posterior of the real value of N policies: mean [N], covariance [N, N], in the units of the real outcomes.

    outcomes: {policy: its real outcomes so far}. noise: variance of one outcome of each policy [N].
    """

    policies: tuple[str, ...]
    scores: Array = field(repr=False)
    distances: Array | None = field(repr=False)
    outcomes: Mapping[str, tuple[float, ...]]
    noise_variance: float | None
    regularization: float
    kernel: Kernel
    noise: Array = field(repr=False)
    mean: Array = field(repr=False)
    covariance: Array = field(repr=False)

    @property
    def sd(self) -> Array:
        """Posterior standard deviation [N]."""
        return np.sqrt(np.diag(self.covariance))

    @property
    def trials(self) -> Array:
        """Real trials of each policy so far, int [N]."""
        return np.array([len(self.outcomes.get(name, ())) for name in self.policies])

    def ingest(self, outcomes: Mapping[str, Sequence[float]]) -> CoKriging:
        """The posterior after further real outcomes. Raises ValueError for unknown policies or NaN."""
        merged = {name: [*self.outcomes.get(name, ()), *outcomes.get(name, ())] for name in {**self.outcomes, **outcomes}}
        settings: dict[str, Any] = {"noise_variance": self.noise_variance, "regularization": self.regularization}
        return fit_cokriging(self.policies, self.scores, merged, distances=self.distances, **settings)

    def to_json(self) -> str:
        """Plain JSON: what was given and, for readers, the posterior's mean and sd and the kernel."""
        content = {
            "schema": SCHEMA,
            "policies": list(self.policies),
            "scores": self.scores.tolist(),
            "distances": None if self.distances is None else self.distances.tolist(),
            "outcomes": {name: list(self.outcomes[name]) for name in self.policies if name in self.outcomes},
            "noise_variance": self.noise_variance,
            "regularization": self.regularization,
            "posterior": {"mean": self.mean.tolist(), "sd": self.sd.tolist(), "kernel": vars(self.kernel)},
        }
        return json.dumps(content, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> CoKriging:
        """Reads `to_json` and recomputes the posterior. Raises ValueError for another schema or missing fields."""
        try:
            content = json.loads(text)
            if content["schema"] != SCHEMA:
                raise ValueError(f"posterior has schema {content['schema']}, this version reads {SCHEMA}: fit it again")
            given = [content[key] for key in ("policies", "scores", "outcomes")]
            settings = {key: content[key] for key in ("distances", "noise_variance", "regularization")}
        except (TypeError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"not a posterior written by to_json: {error!r}") from error
        return fit_cokriging(*given, **settings)


def fit_cokriging(
    policies: Sequence[str],
    scores: Any,
    outcomes: Mapping[str, Sequence[float]],
    *,
    distances: Any = None,
    noise_variance: float | None = None,
    regularization: float = 1.0,
) -> CoKriging:
    """The posterior from cheap scores [N] or [N, L] (larger = better, the first in real units) and real outcomes.

    distances: [N, N] between policies, optional; NaN scores are then filled in from policies that act alike.
    noise_variance: of one real outcome; by default p (1 - p) with p = (k + 1) / (n + 2) where all outcomes are 0 or 1, else
        the pooled variance within policies.
    regularization: how strongly the priors of v, l and w hold. 1 (default) suits a few noisy trials; towards 0 it becomes
        maximum likelihood, for outcomes that are almost exact.

    Raises:
        ValueError: repeated or no policies, regularization below 0, shapes that do not match, NaN outcomes or distances,
            outcomes of an unknown policy, or NaN scores without distances.
    """
    if not regularization >= 0:
        raise ValueError(f"regularization={regularization}: needs a number of at least 0")
    names, table, gaps = _checked(policies, scores, distances)
    tried, means, counts, noise = _summaries(names, outcomes, noise_variance, table)
    prior_mean, linear, unit = _prior(table)
    kernel = _medians(unit, gaps)
    variance = noise[tried] / counts
    residual = means - prior_mean[tried]
    if len(tried) >= MIN_TRIED:
        near = None if gaps is None else gaps[np.ix_(tried, tried)]
        kernel = _fitted(kernel, residual, linear[np.ix_(tried, tried)], near, variance, regularization)
    prior = linear + kernel(gaps, len(names))
    mean, covariance = _condition(prior_mean, prior, tried, residual, variance)
    kept = {name: tuple(float(x) for x in outcomes[name]) for name in names if len(outcomes.get(name, ()))}
    return CoKriging(names, table, gaps, kept, noise_variance, regularization, kernel, noise, mean, covariance)


def _checked(policies: Sequence[str], scores: Any, distances: Any) -> tuple[tuple[str, ...], Array, Array | None]:
    names = tuple(str(p) for p in policies)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"{len(names)} policies, {len(set(names))} of them different: give each once, at least one")
    table = np.asarray(scores, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.shape[0] != len(names) or not table.shape[1]:
        raise ValueError(f"scores of shape {table.shape} for {len(names)} policies: give [N] or [N, L]")
    if np.isinf(table).any():
        raise ValueError("scores hold infinite values: leave a disqualified policy out")
    gaps = None
    if distances is not None:
        gaps = np.asarray(distances, dtype=np.float64)
        if gaps.shape != (len(names),) * 2 or not np.isfinite(gaps).all() or (gaps < 0).any() or not np.allclose(gaps, gaps.T):
            raise ValueError(f"distances of shape {gaps.shape}: give [N, N], N = {len(names)}, symmetric, finite, not negative")
    missing = np.isnan(table)
    if missing.any():
        row, column = np.argwhere(missing)[0]
        if gaps is None or missing.all(axis=0).any():
            raise ValueError(f"score {column} of policy {names[row]!r} is NaN: simulate it, or give distances to fill it in")
        table = np.stack([_interpolated(values, gaps) for values in table.T], axis=1)
    return names, table, gaps


def _summaries(
    names: tuple[str, ...], outcomes: Mapping[str, Sequence[float]], noise_variance: float | None, table: Array
) -> tuple[Array, Array, Array, Array]:
    """Tried policies [n], their means and numbers of outcomes [n], variance of one outcome for all [N]."""
    for name in outcomes:
        if name not in names:
            raise ValueError(f"real outcomes of unknown policy {name!r}; {did_you_mean(str(name), names)}")
    rows = {names.index(p): checks.vector(x, f"outcomes of {p}") for p, x in outcomes.items() if len(x)}
    tried = np.array(sorted(rows), dtype=np.int64)
    means, counts = np.array([rows[i].mean() for i in tried]), np.array([rows[i].size for i in tried], dtype=np.float64)
    if noise_variance is not None:
        if not noise_variance > 0:
            raise ValueError(f"noise_variance={noise_variance}: needs a number above 0")
        return tried, means, counts, np.full(len(names), float(noise_variance))
    if all(np.isin(x, (0, 1)).all() for x in rows.values()):
        rate = np.full(len(names), 0.5)
        rate[tried] = (means * counts + 1) / (counts + 2)
        return tried, means, counts, rate * (1 - rate)
    within = sum(float(np.square(x - x.mean()).sum()) for x in rows.values())
    pooled = (_unit(table) ** 2 + within) / (1 + counts.sum() - counts.size)
    return tried, means, counts, np.full(len(names), pooled)


def _unit(table: Array) -> float:
    """How far real values may stray, before anything is tried: the deviation of the simulated ones over the pool.

    For rates at least MIN_RATE_UNIT: policies that simulation finds equal (converged ones) may well differ in reality.
    """
    sim = table[:, 0]
    rates = sim.min() >= 0 and sim.max() <= 1
    least = MIN_RATE_UNIT if rates else 0.1 * float(np.abs(sim).max())
    return max(float(sim.std()), least)


def _prior(table: Array) -> tuple[Array, Array, float]:
    """Mean [N], covariance [N, N] of the part linear in the scores, and the unit of all prior deviations."""
    unit = _unit(table)
    centred = table - table.mean(axis=0)
    others = centred[:, 1:] / np.maximum(centred[:, 1:].std(axis=0), 1e-12)
    basis = np.column_stack([np.full(len(table), SD_OFFSET * unit), SD_RHO * centred[:, 0], unit * others])
    expected = table[:, 0] + (unit * others.mean(axis=1) if others.size else 0.0)
    return expected, basis @ basis.T, unit


def _medians(unit: float, gaps: Array | None) -> Kernel:
    distance = 1.0
    if gaps is not None and len(gaps) > 1:
        apart = gaps[np.triu_indices(len(gaps), 1)]
        distance = float(np.median(apart[apart > 0])) if (apart > 0).any() else 1.0
    return Kernel(PRIOR["v"][0] * unit**2, PRIOR["l"][0] * distance, PRIOR["w"][0] * unit**2)


def _fitted(
    start: Kernel, residual: Array, linear: Array, gaps: Array | None, variance: Array, regularization: float
) -> Kernel:
    """The most probable kernel given real outcomes, under the log-normal priors."""
    centre = np.log([start.v, start.l, start.w])
    width = np.array([PRIOR[name][1] for name in "vlw"])

    def loss(x: Array) -> float:
        covariance = linear + Kernel(*np.exp(centre + width * x))(gaps, len(residual)) + np.diag(variance)
        try:
            factor = linalg.cholesky(covariance, lower=True)
        except linalg.LinAlgError:
            return 1e10
        whitened = linalg.solve_triangular(factor, residual, lower=True)
        return float(whitened @ whitened / 2 + np.log(np.diag(factor)).sum() + regularization * x @ x / 2)

    starts = [np.zeros(3), np.array([1.0, 1.0, -1.0]), np.array([-1.0, 0.0, 1.0])]
    found = [optimize.minimize(loss, x, method="L-BFGS-B", bounds=[(-8, 8)] * 3) for x in starts]
    best = min(found, key=lambda result: result.fun)
    return Kernel(*(float(value) for value in np.exp(centre + width * best.x)))


def _condition(mean: Array, prior: Array, tried: Array, residual: Array, variance: Array) -> tuple[Array, Array]:
    """Gaussian prior (mean [N], prior [N, N]) given residuals from the mean at `tried` with noise `variance`."""
    if not tried.size:
        return mean, prior
    factor = linalg.cho_factor(prior[np.ix_(tried, tried)] + np.diag(variance), lower=True)
    cross = prior[:, tried]
    posterior = prior - cross @ linalg.cho_solve(factor, cross.T)
    return mean + cross @ linalg.cho_solve(factor, residual), (posterior + posterior.T) / 2


def _interpolated(values: Array, gaps: Array) -> Array:
    """NaN entries of `values` [N] from a Gaussian process over the distances; the others as they are."""
    known = np.flatnonzero(np.isfinite(values))
    if known.size == values.size:
        return values
    level, unit = values[known].mean(), max(float(values[known].std()), 1e-9)
    start = replace(_medians(unit, gaps), v=unit**2, w=1e-6 * unit**2)
    offset = np.full((known.size, known.size), (SD_OFFSET * unit) ** 2)
    near, noise = gaps[np.ix_(known, known)], np.full(known.size, 1e-8 * unit**2)
    kernel = _fitted(start, values[known] - level, offset, near, noise, 0.01)
    prior = (SD_OFFSET * unit) ** 2 + kernel(gaps, values.size)
    filled, _ = _condition(np.full(values.size, level), prior, known, values[known] - level, noise)
    return np.where(np.isfinite(values), values, filled)
