"""Do the intervals of robopolicy.ranking cover as often as they say? At n = 10, 20, 50, 200; worst case and mean.

    python tools/check_coverage.py [--quick] [--repeats 1000] [--confidence 0.95] [--seed 0] [--out FILE.json]

Binomial intervals are enumerated exactly over a grid of rates; the rest is simulated, over several distributions each. What
claims to be exact or anytime-valid must cover with at least nominal - 1 point (beyond three standard errors where simulated),
else exit code 1. What claims to be approximate has its true figure printed. "anytime" rows are the share of sequences whose
interval holds the truth after EVERY one of the n outcomes. --quick: 100 repeats, the same rows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance, write_json
from scipy import stats

from robopolicy.ranking.betting import betting_ci
from robopolicy.ranking.cokriging import fit_cokriging
from robopolicy.ranking.intervals import anytime_binomial, clopper_pearson, tango, wilson
from robopolicy.ranking.ppi import ppi_mean
from robopolicy.ranking.sequential import ALTERNATIVES, log_e_path
from robopolicy.ranking.statistics import paired_comparison, stream
from robopolicy.ranking.winners import confirm, shrink

ROOT = Path(__file__).resolve().parents[1]
SIZES = (10, 20, 50, 200)
RATES = np.linspace(0.005, 0.995, 199)
PAIR_RATES = np.linspace(0, 0.5, 11)
EPISODES = 3  # of a condition, where it has several
EXACT, ANYTIME, APPROXIMATE = "exact", "anytime", "approximate"
Array = np.ndarray


def main() -> int:
    """Measure, print, write; 1 where a claim fails."""
    args = _arguments()
    rows = []
    print(f"{'interval':40}{'claims':13}{'n':>5}{'worst':>8}{'mean':>8}{'width':>8}{'s.e.':>8}{'cpu s':>8}")
    for measure in (binomial, anytime, betting, e_tests, prediction_powered, paired, bootstraps, winners, cokriging):
        start = time.process_time()
        for row in measure(args.confidence, args.repeats, args.seed):
            cpu, start = time.process_time() - start, time.process_time()
            row |= {"nominal": args.confidence, "cpu_s": cpu, "holds": _holds(row, args.confidence)}
            rows.append(row)
            mark = "" if row["holds"] else "   BELOW ITS CLAIM"
            figures = f"{row['worst']:8.3f}{row['mean']:8.3f}{row['width']:8.3f}{row['error']:8.4f}{cpu:8.1f}"
            print(f"{row['interval']:40}{row['claims']:13}{row['n']:5d}{figures}{mark}", flush=True)
    failed = [row for row in rows if not row["holds"]]
    out = args.out or ROOT / "runs" / "check_coverage.json"
    settings = {"repeats": args.repeats, "seed": args.seed, "seeds": 1, "quick": args.quick}
    write_json(out, {"rows": rows, "failed": len(failed), **settings, **provenance("scipy")})
    print(f"\n{len(failed)} of {len(rows)} rows below their claim; wrote {out}")
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=1000, help="of each simulated distribution")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    args.repeats = min(args.repeats, 100) if args.quick else args.repeats
    if args.repeats < 10 or not 0.5 <= args.confidence < 1:
        parser.error("--repeats must be at least 10 and --confidence lie in [0.5, 1)")
    return args


def _holds(row: dict[str, Any], confidence: float) -> bool:
    return row["claims"] == APPROXIMATE or row["worst"] + 3 * row["error"] >= confidence - 0.01


def _row(interval: str, claims: str, n: int, coverage: Any, width: Any, repeats: int = 0) -> dict[str, Any]:
    """worst and mean over the cases of `coverage`; error: standard error of the worst, 0 where enumerated."""
    worst = float(np.min(coverage))
    error = float(np.sqrt(max(worst * (1 - worst), 1 / repeats) / repeats)) if repeats else 0.0
    figures = {"worst": worst, "mean": float(np.mean(coverage)), "width": float(np.mean(width)), "error": error}
    return {"interval": interval, "claims": claims, "n": n, **figures}


def binomial(confidence: float, repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    """Coverage at a fixed n, exact, over the grid of rates."""
    for interval, claims in ((clopper_pearson, EXACT), (wilson, APPROXIMATE), (anytime_binomial, EXACT)):
        for n in SIZES:
            k = np.arange(n + 1)
            low, high = interval(k, n, confidence)
            mass = stats.binom.pmf(k, n, RATES[:, None])
            inside = (low <= RATES[:, None]) & (RATES[:, None] <= high)
            yield _row(f"{interval.__name__} (fixed n)", claims, n, (mass * inside).sum(axis=1), mass @ (high - low))


def anytime(confidence: float, repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    """The exact probability that the interval holds the rate after each of n outcomes; Clopper-Pearson for contrast."""
    rates = RATES[4::10]
    for interval, claims in ((anytime_binomial, ANYTIME), (clopper_pearson, APPROXIMATE)):
        alive = np.ones((rates.size, 1))
        for n in range(1, max(SIZES) + 1):
            padded = np.zeros((rates.size, n + 1))
            padded[:, :-1] = alive * (1 - rates[:, None])
            padded[:, 1:] += alive * rates[:, None]
            low, high = interval(np.arange(n + 1), n, confidence)
            alive = padded * ((low <= rates[:, None]) & (rates[:, None] <= high))
            if n in SIZES:
                yield _row(f"{interval.__name__} (looked at always)", claims, n, alive.sum(axis=1), high - low)


DISTRIBUTIONS: dict[str, tuple[float, Callable[[np.random.Generator, int], Array]]] = {
    "success .5": (0.5, lambda rng, n: (rng.random(n) < 0.5).astype(float)),
    "success .9": (0.9, lambda rng, n: (rng.random(n) < 0.9).astype(float)),
    "progress, all or nothing": (0.75, lambda rng, n: rng.beta(0.3, 0.1, n)),
    "progress, even": (0.5, lambda rng, n: rng.random(n)),
}


def betting(confidence: float, repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    """`betting_ci` is the running intersection, so its coverage at n is that at all times up to n."""
    for n in SIZES:
        coverage, widths = [], []
        for name, (mean, draw) in DISTRIBUTIONS.items():
            rng = stream(seed, "betting", name, n)
            ends = np.array([betting_ci(draw(rng, n), confidence) for _ in range(repeats)])
            coverage.append(((ends[:, 0] <= mean) & (mean <= ends[:, 1])).mean())
            widths.append((ends[:, 1] - ends[:, 0]).mean())
        yield _row("betting_ci (looked at always)", ANYTIME, n, coverage, widths, repeats)


def e_tests(confidence: float, repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    """1 - false rejections within n pairs, looked at after each; width: nothing."""
    rates = (0.1, 0.5, 0.9)
    for alternative in ALTERNATIVES:
        rng = stream(seed, "e-test", alternative)
        many = 20 * repeats
        crossed = []
        for rate in rates:
            outcomes = rng.random((2, many, max(SIZES))) < rate
            path = log_e_path(*outcomes, alternative)
            crossed.append(np.maximum.accumulate(path, axis=1) >= -np.log(1 - confidence))
        for n in SIZES:
            kept = [1 - c[:, n - 1].mean() for c in crossed]
            yield _row(f"e_test_2x2 {alternative}, null kept", ANYTIME, n, kept, np.nan, many)


def prediction_powered(confidence: float, repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    """Real trials succeed at .6; the simulator is right about 60 % or 90 % of them, and too easy."""
    for method, claims in (("betting", ANYTIME), ("asymptotic", APPROXIMATE)):
        for n in SIZES:
            coverage, widths = [], []
            for agree in (0.6, 0.9):
                rng = stream(seed, "ppi", method, str(agree), n)
                found = [_ppi(rng, n, agree, method, confidence) for _ in range(repeats)]
                coverage.append(np.mean([low <= 0.6 <= high for low, high in found]))
                widths.append(np.mean([high - low for low, high in found]))
            yield _row(f"ppi_mean, {method}", claims, n, coverage, widths, repeats)


def _ppi(rng: np.random.Generator, n: int, agree: float, method: str, confidence: float) -> tuple[float, float]:
    real = rng.random(n) < 0.6
    twin = np.where(rng.random(n) < agree, real, rng.random(n) < 0.6) | (rng.random(n) < 0.2)
    extra = (rng.random(1000) < 0.6) | (rng.random(1000) < 0.2)
    found = ppi_mean(real.astype(float), twin.astype(float), extra.astype(float), confidence, method=method)
    return found.low, found.high


def paired(confidence: float, repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    """The difference of two policies over n pairs of outcomes, exact, over a grid of how often one alone succeeds."""
    rates = [(p, q) for p in PAIR_RATES for q in PAIR_RATES]
    for n in SIZES:
        gained, lost = np.array([(b, c) for b in range(n + 1) for c in range(n + 1 - b)]).T
        low, high = tango(gained, lost, n, confidence)
        coverage, widths = [], []
        for p, q in rates:
            mass = stats.multinomial.pmf(np.stack([gained, lost, n - gained - lost], axis=1), n, [p, q, 1 - p - q])
            coverage.append(mass[(low <= p - q + 1e-9) & (p - q - 1e-9 <= high)].sum())
            widths.append(mass @ (high - low))
        yield _row("tango (fixed n)", APPROXIMATE, n, coverage, widths)


def bootstraps(confidence: float, repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    """The paired difference of two policies over n conditions of varying difficulty, 3 episodes each."""
    if confidence != 0.95:
        return  # paired_comparison is at .95
    for n in SIZES:
        rng, found = stream(seed, "bootstrap", n, EPISODES), []
        for trial in range(repeats):
            easy = rng.beta(2, 1, n)
            a, b = rng.binomial(EPISODES, easy), rng.binomial(EPISODES, 0.8 * easy)
            generator = stream(seed, "resample", n, EPISODES, trial)
            found.append(paired_comparison(a, b, np.full(n, EPISODES), generator, 500).difference_interval)
        ends = np.array(found)
        truth = -0.2 * 2 / 3
        coverage = ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()
        widths = (ends[:, 1] - ends[:, 0]).mean()
        yield _row("paired bootstrap over conditions", APPROXIMATE, n, coverage, widths, repeats)


def winners(confidence: float, repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    """The best of 200 after n episodes each: shrunk; its raw Clopper-Pearson; and confirmed on n fresh episodes."""
    names = {
        "confirmed, best 3 at once": EXACT,
        "shrunk, the winner": APPROXIMATE,
        "clopper_pearson of the winner": APPROXIMATE,
    }
    for n in SIZES:
        held: dict[str, list[tuple[bool, float]]] = {name: [] for name in names}
        rng = stream(seed, "winners", n)
        for _ in range(repeats // 2):
            rates = rng.beta(8, 4, 200)
            k = rng.binomial(n, rates)
            best = np.argsort(-k, kind="stable")[:3]
            finalists = confirm(k, np.full(200, n), best, rng.binomial(n, rates[best]), np.full(3, n), confidence)
            inside = all(f.low <= rates[f.index] <= f.high for f in finalists)
            held["confirmed, best 3 at once"].append((inside, finalists[0].high - finalists[0].low))
            shrunk, winner = shrink(k, np.full(200, n), confidence), best[0]
            low, high = shrunk.low[winner], shrunk.high[winner]
            held["shrunk, the winner"].append((low <= rates[winner] <= high, high - low))
            low, high = clopper_pearson(k[winner], n, confidence)
            held["clopper_pearson of the winner"].append((low <= rates[winner] <= high, high - low))
        for name, claims in names.items():
            inside, widths = np.array(held[name], dtype=float).T
            yield _row(name, claims, n, inside.mean(), widths, repeats // 2)


def cokriging(confidence: float, repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    """Central intervals of the posterior over a pool of 12 after n real trials in all, round robin."""
    z = stats.norm.ppf((1 + confidence) / 2)
    for n in SIZES:
        rng, inside, widths = stream(seed, "co-kriging", n), [], []
        for _ in range(max(repeats // 10, 10)):
            sim = rng.beta(6, 2, 12)
            real = np.clip(sim - 0.15 + 0.2 * rng.normal(size=12), 0.02, 0.98)
            outcomes = {str(i): (rng.random(len(range(i, n, 12))) < real[i]).tolist() for i in range(min(12, n))}
            found = fit_cokriging([str(i) for i in range(12)], sim, outcomes)
            inside.append((np.abs(found.mean - real) <= z * found.sd).mean())
            widths.append(2 * z * found.sd.mean())
        yield _row("co-kriging posterior, pool of 12", APPROXIMATE, n, np.mean(inside), widths, 12 * len(inside))


if __name__ == "__main__":
    sys.exit(main())
