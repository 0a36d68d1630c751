"""How well predicted scores order policies, given what the policies really obtained. Pure functions of two arrays [C].

`real` is what was obtained, `predicted` are the scores, both larger = better, in this order everywhere. Ties in `predicted`
are broken against the scorer (the really worst first), so no order of the rows can flatter it. Wherever the literature uses
one name for different numbers, `convention` chooses and the default is stated.

Raises, all of them: ValueError for NaN or infinite values, different lengths, no policies, or k outside 1..C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from robopolicy.ranking import checks
from robopolicy.spec import did_you_mean

Array = np.ndarray

MMRV_TIES = ("strict", "count", "simpler_paper", "simpler_code")
REGRETS = ("dope", "dope_normalized", "scope_rl")
SHARPE_RATIOS = ("paper", "scope_rl", "baseline_in_set")


def _pair(real: Any, predicted: Any) -> tuple[Array, Array]:
    return checks.pair(real, predicted, ("real values", "predicted scores"))


def _known(convention: str, conventions: tuple[str, ...], what: str) -> None:
    if convention not in conventions:
        raise ValueError(f"no {what} {convention!r}; {did_you_mean(convention, conventions)}")


def top_k(real: Any, predicted: Any, k: int) -> Array:
    """Real values [k] of the k best-predicted policies, best-predicted first; ties are broken against the scorer."""
    r, s = _pair(real, predicted)
    if int(k) != k or not 1 <= k <= s.size:
        raise ValueError(f"k={k} for {s.size} policies: use 1 <= k <= {s.size}")
    return r[np.lexsort((r, -s))[: int(k)]]


# ---- order and correlation


def pearson(real: Any, predicted: Any) -> float:
    """Linear correlation; NaN when either is constant or there are fewer than 2 policies."""
    r, s = _pair(real, predicted)
    if np.ptp(r) == 0 or np.ptp(s) == 0:
        return float("nan")
    r, s = (r - r.mean()) / np.ptp(r), (s - s.mean()) / np.ptp(s)
    return float(np.clip(r @ s / np.sqrt((r @ r) * (s @ s)), -1.0, 1.0))


def spearman(real: Any, predicted: Any) -> float:
    """Rank correlation: Pearson of mid-ranks; NaN when either is constant."""
    r, s = _pair(real, predicted)
    return pearson(stats.rankdata(r), stats.rankdata(s))


def kendall(real: Any, predicted: Any) -> float:
    """Kendall's tau-b (ties corrected); NaN when either is constant."""
    r, s = _pair(real, predicted)
    return float(stats.kendalltau(r, s).statistic) if np.ptp(r) and np.ptp(s) else float("nan")


def pairwise_accuracy(real: Any, predicted: Any, *, weighted: bool = False) -> float:
    """Share of pairs of really different policies that are predicted in their real order; a predicted tie counts half.

    weighted: each pair by how far apart it really is, so that confusing near-equals costs little. NaN when all are equal.
    """
    r, s = _pair(real, predicted)
    i, j = np.triu_indices(r.size, 1)
    gap = r[i] - r[j]
    weight = np.abs(gap) if weighted else (gap != 0).astype(np.float64)
    right = (1 + np.sign(gap) * np.sign(s[i] - s[j])) / 2
    return float((weight * right).sum() / weight.sum()) if weight.sum() > 0 else float("nan")


def mmrv(real: Any, predicted: Any, *, ties: str = "strict") -> float:
    """Mean maximum rank violation, in units of `real`; 0 is a perfect order (SIMPLER, arXiv 2405.05941, section V).

    (1/C) sum_i max_j |R_i - R_j| 1[i and j are in the wrong order]. Not symmetric in its arguments: the magnitude is the
    real one. SIMPLER's README calls its function as (real, sim) although the signature is (sim, real), which gives other
    numbers. What a tie in the prediction means differs too; without ties all four agree:

    ties: "strict" (default): a pair counts only where the two are in strictly opposite order, so ties never count, and a
        constant score gives 0: look at N and at the range of the scores as well.
        "count": a predicted tie of really different policies counts, for both; a constant score is penalised.
        "simpler_paper": 1[(S_i < S_j) != (R_i < R_j)], as printed: a tie counts for the really worse one alone.
        "simpler_code": the same with ">", as in SIMPLER's code: a tie counts for the really better one alone.
    """
    r, s = _pair(real, predicted)
    _known(ties, MMRV_TIES, "rule for ties")
    gap, predicted_gap = r[:, None] - r[None, :], s[:, None] - s[None, :]
    if ties == "strict":
        violated = np.sign(predicted_gap) * np.sign(gap) < 0
    elif ties == "count":
        violated = np.sign(predicted_gap) != np.sign(gap)
    elif ties == "simpler_paper":
        violated = (predicted_gap < 0) != (gap < 0)
    else:
        violated = (predicted_gap > 0) != (gap > 0)
    return float((np.abs(gap) * violated).max(axis=1).mean())


# ---- the k that would be tried


def best_at_k(real: Any, predicted: Any, k: int) -> float:
    """The best real value among the k best-predicted."""
    return float(top_k(real, predicted, k).max())


def worst_at_k(real: Any, predicted: Any, k: int) -> float:
    """The worst real value among the k best-predicted."""
    return float(top_k(real, predicted, k).min())


def mean_at_k(real: Any, predicted: Any, k: int) -> float:
    """The mean real value of the k best-predicted."""
    return float(top_k(real, predicted, k).mean())


def std_at_k(real: Any, predicted: Any, k: int, *, ddof: int = 0) -> float:
    """Standard deviation of the real values of the k best-predicted; population by default, NaN where k <= ddof."""
    chosen = top_k(real, predicted, k)
    return float(chosen.std(ddof=ddof)) if k > ddof else float("nan")


def safety_violation_rate_at_k(real: Any, predicted: Any, k: int, threshold: float) -> float:
    """Share of the k best-predicted whose real value lies below `threshold`."""
    return float((top_k(real, predicted, k) < threshold).mean())


def top_k_hit(real: Any, predicted: Any, k: int) -> bool:
    """Whether a really best policy is among the k best-predicted."""
    return bool(best_at_k(real, predicted, k) == np.max(real))


def regret_at_k(real: Any, predicted: Any, k: int, *, convention: str = "dope") -> float:
    """What is lost by trying only the k best-predicted; 0 is none.

    convention: "dope" (default): max real - max real among the k, in units of `real`.
        "dope_normalized": the same over max real - min real, in [0, 1] (DOPE, arXiv 2103.16596, which rescales each task so;
        0 where all are equal).
        "scope_rl": SUM of the k really best minus SUM of the chosen k, in units of `real` (SCOPE-RL's code): never smaller.
    """
    chosen = top_k(real, predicted, k)
    _known(convention, REGRETS, "convention of regret")
    r = np.asarray(real, dtype=np.float64)
    if convention == "scope_rl":
        return float(np.sort(r)[::-1][: int(k)].sum() - chosen.sum())
    regret = float(r.max() - chosen.max())
    if convention == "dope":
        return regret
    return regret / float(np.ptp(r)) if np.ptp(r) > 0 else 0.0


@dataclass(frozen=True)
class Portfolio:
    """What trying the k best-predicted policies brings. sharpe is None, with a reason, where it is undefined.

    gain: best - baseline, the ratio's numerator before any clipping.
    downside: (best - baseline) / (baseline - worst) where something is worse than the baseline, else None: a companion to
        the ratio that clones cannot blow up.
    """

    k: int
    best: float
    worst: float
    mean: float
    std: float
    baseline: float
    gain: float
    downside: float | None
    sharpe: float | None
    convention: str
    reason: str = ""


def portfolio_at_k(real: Any, predicted: Any, k: int, baseline: float, *, convention: str = "paper") -> Portfolio:
    """best, worst, mean, population std@k and SharpeRatio@k of the k best-predicted policies against `baseline`.

    SharpeRatio@k (Kiyohara et al., arXiv 2311.18207) = (best@k - baseline) / std@k, of which three kinds are in use.

    convention: "paper" (default): population standard deviation, numerator not clipped.
        "scope_rl": as in SCOPE-RL's code: sample standard deviation (ddof 1), numerator clipped at 0; undefined at k = 1.
        "baseline_in_set": the baseline is one of the candidates: best and population deviation over the k and it.
    Undefined where the deviation is 0 (k = 1, clones); never infinite. It rewards uniformly mediocre choices: do not gate on
    it alone.
    """
    chosen = top_k(real, predicted, k)
    _known(convention, SHARPE_RATIOS, "convention of SharpeRatio")
    if not np.isfinite(baseline):
        raise ValueError(f"baseline={baseline}: give the finite real value of the incumbent")
    gain = float(chosen.max() - baseline)
    if convention == "paper":
        held, ddof, numerator = chosen, 0, gain
    elif convention == "scope_rl":
        held, ddof, numerator = chosen, 1, max(gain, 0.0)
    else:
        held, ddof, numerator = np.append(chosen, baseline), 0, max(gain, 0.0)
    reason, std = "", 0.0
    if held.size <= ddof:
        reason = f"one policy has no sample standard deviation: k = {k}"
    else:
        std = float(held.std(ddof=ddof))
        if std <= 1e-12 * max(1.0, float(np.abs(held).max())):
            reason = f"std@{k} is 0"
    fall = float(baseline - chosen.min())
    return Portfolio(
        k=int(k),
        best=float(chosen.max()),
        worst=float(chosen.min()),
        mean=float(chosen.mean()),
        std=float(chosen.std()),
        baseline=float(baseline),
        gain=gain,
        downside=gain / fall if fall > 0 else None,
        sharpe=None if reason else numerator / std,
        convention=convention,
        reason=reason,
    )


def sharpe_ratio_at_k(real: Any, predicted: Any, k: int, baseline: float, *, convention: str = "paper") -> float:
    """SharpeRatio@k of `portfolio_at_k`, which gives the reason too; NaN where it is undefined, never infinite."""
    found = portfolio_at_k(real, predicted, k, baseline, convention=convention).sharpe
    return float("nan") if found is None else found
