"""How much of a difference is luck of the training seed, and does a score still rise with training?

After "Quantifying Variance in Evaluation Benchmarks" (Madaan et al., arXiv 2406.10229), with its open points settled: the seed
deviation is pooled over the last checkpoints, and chance is taken off before the signal-to-noise ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from robopolicy.ranking import checks
from robopolicy.ranking.metrics import kendall

Array = np.ndarray


@dataclass(frozen=True)
class SeedVariance:
    """Of one training configuration, M seeds, T checkpoints.

    mean: over seeds and the last checkpoints. seed_sd: between seeds at equal step, ddof 1, pooled over the last checkpoints;
    None with one seed. snr: (mean - chance) / seed_sd; None where seed_sd is None or 0. monotonicity: Kendall's tau of score
    and step, mean over seeds; None with one checkpoint or constant scores. smallest_difference: 2 sqrt(2) seed_sd, below
    which two configurations must not be called different on one seed each. warning: "" or what cannot be concluded.
    """

    mean: float
    seed_sd: float | None
    snr: float | None
    monotonicity: float | None
    smallest_difference: float | None
    num_seeds: int
    num_checkpoints: int
    warning: str


def _table(scores: Any, name: str, ndim: int) -> Array:
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != ndim or not table.size:
        raise ValueError(f"{name} of shape {table.shape}: give {ndim} axes, none empty")
    if not np.isfinite(table).all():
        raise ValueError(f"{name} hold NaN or infinite values: give the checkpoints that all seeds have")
    return table


def seed_variance(scores: Any, *, last: int = 3, chance: float = 0.0) -> SeedVariance:
    """From scores [M, T] of M training seeds at T steps in order; the last `last` checkpoints make mean and deviation.

    Raises:
        ValueError: not [M, T], NaN, or last < 1.
    """
    table = _table(scores, "scores", 2)
    if last < 1:
        raise ValueError(f"last={last}: use at least one checkpoint")
    num_seeds, num_steps = table.shape
    end = table[:, -last:]
    sd = float(np.sqrt(end.var(axis=0, ddof=1).mean())) if num_seeds > 1 else None
    taus = [kendall(np.arange(num_steps), row) for row in table] if num_steps > 1 else []
    known = [tau for tau in taus if np.isfinite(tau)]
    warning = ""
    if num_seeds == 1:
        warning = "1 training seed: a difference cannot be attributed to the configuration; train at least 3 seeds"
    elif num_seeds < 3:
        warning = f"{num_seeds} training seeds: the deviation between seeds is hardly known; train at least 3"
    return SeedVariance(
        mean=float(end.mean()),
        seed_sd=sd,
        snr=float((end.mean() - chance) / sd) if sd else None,
        monotonicity=float(np.mean(known)) if known else None,
        smallest_difference=None if sd is None else float(2 * np.sqrt(2) * sd),
        num_seeds=num_seeds,
        num_checkpoints=num_steps,
        warning=warning,
    )


@dataclass(frozen=True)
class VarianceComponents:
    """Variances of one outcome: between training seeds, between conditions, of their interaction, between repeats.

    interaction and repeat are one (in `repeat`, interaction None) with a single repeat. Estimates below 0 are set to 0.
    """

    seed: float
    condition: float
    interaction: float | None
    repeat: float

    def variance_of_mean(self, num_seeds: int, num_conditions: int, num_repeats: int) -> float:
        """Variance of the mean over a design: says whether to buy more seeds, conditions or repeats."""
        cells = num_seeds * num_conditions
        crossed = (self.interaction or 0.0) / cells + self.repeat / (cells * num_repeats)
        return self.seed / num_seeds + self.condition / num_conditions + crossed


def variance_components(outcomes: Any) -> VarianceComponents:
    """Crossed random effects of outcomes [M seeds, K conditions, R repeats], by the analysis of variance.

    Raises:
        ValueError: not [M, K, R] with M, K >= 2, or NaN.
    """
    y = _table(outcomes, "outcomes", 3)
    m, k, r = y.shape
    if m < 2 or k < 2:
        raise ValueError(f"{m} seeds and {k} conditions: variances between them need at least 2 of each")
    grand, cell = y.mean(), y.mean(axis=2)
    seed, condition = cell.mean(axis=1), cell.mean(axis=0)
    ms_seed = k * r * np.square(seed - grand).sum() / (m - 1)
    ms_condition = m * r * np.square(condition - grand).sum() / (k - 1)
    ms_cell = r * np.square(cell - seed[:, None] - condition[None, :] + grand).sum() / ((m - 1) * (k - 1))
    ms_repeat = float(np.square(y - cell[..., None]).sum() / (m * k * (r - 1))) if r > 1 else None
    return VarianceComponents(
        seed=max(float(ms_seed - ms_cell) / (k * r), 0.0),
        condition=max(float(ms_condition - ms_cell) / (m * r), 0.0),
        interaction=None if ms_repeat is None else max(float(ms_cell - ms_repeat) / r, 0.0),
        repeat=float(ms_cell) if ms_repeat is None else ms_repeat,
    )


def plateaued(scores: Any, differences: Any, *, window: int = 5, tau: float = 0.2) -> bool:
    """Whether training has stopped paying: Kendall's tau over the last `window` scores is below `tau`, and the last two
    intervals of (this - best so far), `differences` [..., (low, high)] of the checkpoints, both include 0 or lie below it.

    Raises:
        ValueError: NaN, fewer scores than the window, or fewer than 2 intervals.
    """
    s = checks.vector(scores, "scores", min_size=max(window, 2))[-window:]
    ends = _table(differences, "differences", 2)
    if ends.shape[1] != 2 or len(ends) < 2:
        raise ValueError(f"differences of shape {ends.shape}: give (low, high) of at least the last 2 checkpoints")
    slope = kendall(np.arange(s.size), s)
    return bool((not np.isfinite(slope) or slope < tau) and (ends[-2:, 0] <= 0).all())
