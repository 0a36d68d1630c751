"""What choosing a checkpoint costs: episodes in simulation, pairs of episodes for a claim, trials on the robot.

    python tools/bench_selection.py [--quick] [--repeats 100] [--seed 0] [--out FILE.json]

1. Sequential halving against equal episodes for all, on pools with true rates ~ Beta(8, 4): regret of the chosen; with early
   stopping, and how many episodes that saved. And the luck of the winner: shown, shrunk, true.
2. The anytime-valid 2 x 2 e-test: pairs until a decision, power within 200 pairs, false decisions; beside the fixed sample size
   at equal power.
3. `next-real` against uniform, round robin over the top 3 of simulation, and UCB on real outcomes alone: regret by the number
   of real trials, on simulated pools (tools/selection_bench/pools.py) of 20 policies; and where its stop signal stops.

--quick: fewer repeats and smaller pools, under a minute of CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance, write_json
from selection_bench import picture
from selection_bench.pools import SCENARIOS, STRATEGIES, Pool, draw_pool, regret_by_trial

from robopolicy.ranking.advice import next_real
from robopolicy.ranking.allocation import halving_plan, sequential_halving
from robopolicy.ranking.cokriging import fit_cokriging
from robopolicy.ranking.power import episodes_to_separate
from robopolicy.ranking.sequential import log_e_path
from robopolicy.ranking.statistics import stream
from robopolicy.ranking.winners import shrink

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 100
AT = (0, 3, 5, 10, 20, 40)
PAIRS = [(0.5, 0.5), (0.3, 0.6), (0.2, 0.8), (0.4, 0.6), (0.8, 0.9), (0.9, 0.9)]


def main() -> None:
    """Measure, print, write."""
    args = _arguments()
    start = time.process_time()
    result: dict[str, Any] = {"halving": halving(args), "winners": winners(args), "e_test": e_test(args)}
    print(_halving_table(result), flush=True)
    result["next_real"], result["stops"] = real_trials(args)
    print(_real_table(result, args.num_trials))
    out = args.out or ROOT / "runs" / "bench_selection.json"
    settings = {"seed": args.seed, "seeds": args.repeats, "quick": args.quick, "cpu_s": time.process_time() - start}
    write_json(out, {**result, **settings, **provenance("scipy")})
    print(f"\nwrote {out} and {picture.draw(out.with_suffix('.png'), result)}; {settings['cpu_s']:.0f} s of CPU")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=100, help="simulated pools of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file; the picture goes beside it")
    args = parser.parse_args()
    if args.repeats < 2:
        parser.error("--repeats must be at least 2")
    args.repeats = min(args.repeats, 6) if args.quick else args.repeats
    args.num_policies, args.num_trials = (64, 20) if args.quick else (1024, 40)
    return args


def _mean(values: Any) -> dict[str, float]:
    return {"regret": float(np.mean(values)), "error": float(np.std(values, ddof=1) / np.sqrt(len(values)))}


def halving(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Regret and episodes played, by method and budget."""
    rows, num = [], args.num_policies
    for each in (10, 50, 200):
        found: dict[str, list[tuple[float, float]]] = {"uniform": [], "halving": [], "halving, stopping early": []}
        for repeat in range(args.repeats):
            rng = stream(args.seed, "halving", each, repeat)
            rates = rng.beta(8, 4, num)
            uniform = rng.binomial(each, rates)
            found["uniform"].append((rates.max() - rates[int(np.argmax(uniform))], each * num))

            play = suite(rates, rng.integers(1 << 60, size=num))
            plan = halving_plan(num, each * num)
            for name, look in (("halving", 0), ("halving, stopping early", 20)):
                chosen = sequential_halving(play, plan, look_every=look)
                found[name].append((rates.max() - rates[chosen.best[0]], float(chosen.trials.sum())))
        for method, values in found.items():
            regret, episodes = np.array(values).T
            rows.append({"method": method, "num_policies": num, "budget": each * num, "episodes": float(episodes.mean())})
            rows[-1] |= _mean(regret)
    return rows


def suite(rates: Any, seeds: Any) -> Callable[[Sequence[int], int, int], list[Any]]:
    """Outcomes of policies on conditions start..stop - 1, the same whenever they are asked for."""

    def block(policy: int, number: int) -> Any:
        return stream(seeds[policy], number).random(BLOCK) < rates[policy]

    def play(policies: Sequence[int], start: int, stop: int) -> list[Any]:
        numbers = range(start // BLOCK, -(-stop // BLOCK))
        at = slice(start - numbers.start * BLOCK, stop - numbers.start * BLOCK)
        return [np.concatenate([block(p, n) for n in numbers])[at] for p in policies]

    return play


def winners(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The best of the pool by its own episodes: what it shows, what shrinking makes of it, what it is."""
    rows = []
    for each in (20, 50, 200):
        values = []
        for repeat in range(args.repeats):
            rng = stream(args.seed, "winners", each, repeat)
            rates = rng.beta(8, 4, args.num_policies)
            k = rng.binomial(each, rates)
            best = int(np.argmax(k))
            values.append((k[best] / each, shrink(k, np.full(k.size, each)).mean[best], rates[best]))
        shown, shrunk, true = np.mean(values, axis=0)
        rows.append({"episodes": each, "shown": float(shown), "shrunk": float(shrunk), "true": float(true)})
    return rows


def e_test(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Pairs until the decision (capped at 200) and the share decided after each."""
    rows, repeats = [], 200 if args.quick else 5000
    for base, other in PAIRS:
        rng = stream(args.seed, "e-test", str(base), str(other))
        path = log_e_path(rng.random((repeats, 200)) < base, rng.random((repeats, 200)) < other)
        decided = np.maximum.accumulate(path, axis=1) >= np.log(20)
        pairs = 200 - decided.sum(axis=1) + decided.any(axis=1)
        power = float(decided[:, -1].mean())
        fixed = episodes_to_separate(base, other, power=min(power, 0.999), alpha=0.1) if base != other else None
        row = {"base": base, "other": other, "mean_pairs": float(pairs.mean()), "median_pairs": float(np.median(pairs))}
        rows.append({**row, "decided_within_200": power, "fixed_at_equal_power": fixed, "decided": decided.mean(axis=0)})
    return rows


def real_trials(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Regret by real trials of every strategy in every scenario; and where next-real stops, with what regret."""
    rows, stops = [], []
    for name, scenario in SCENARIOS.items():
        pools = [draw_pool(scenario, 20, 400, stream(args.seed, "pool", name, i)) for i in range(args.repeats)]
        for strategy, choose in STRATEGIES.items():
            start = time.process_time()
            regrets = np.array([regret_by_trial(choose, pool, args.num_trials) for pool in pools])
            row = {"scenario": name, "strategy": strategy, "regret": regrets.mean(axis=0)}
            row |= {"error": regrets.std(axis=0, ddof=1) / np.sqrt(len(pools))}
            rows.append({**row, "cpu_ms_a_trial": (time.process_time() - start) * 1000 / regrets.size})
        for tolerance in (0.05, 0.02):
            found = [_stop(pool, tolerance, 4 * args.num_trials) for pool in pools]
            trials, regret, predicted = np.mean(found, axis=0)
            figures = {"trials": float(trials), "regret": float(regret), "predicted": float(predicted)}
            stops.append({"scenario": name, "tolerance": tolerance, **figures})
    return rows, stops


def _stop(pool: Pool, tolerance: float, most: int) -> tuple[int, float, float]:
    """(trials, true regret, expected regret) where the stop signal comes, at most after `most` trials."""
    names = [str(i) for i in range(len(pool.sim))]
    outcomes: dict[str, list[float]] = {}
    for t in range(most + 1):
        found = next_real(fit_cokriging(names, pool.sim, outcomes), tolerance=tolerance, budget=most - t, num_draws=1000)
        if found.stop:
            break
        own = outcomes.setdefault(found.policy, [])
        own.append(float(pool.outcomes[int(found.policy), len(own)]))
    return t, float(pool.real.max() - pool.real[int(found.recommended)]), found.expected_regret


def _halving_table(result: dict[str, Any]) -> str:
    lines = [f"{'method':26}{'budget':>9}{'played':>9}{'regret':>9}{'s.e.':>8}"]
    lines += [
        f"{row['method']:26}{row['budget']:9d}{row['episodes']:9.0f}{row['regret']:9.4f}{row['error']:8.4f}"
        for row in result["halving"]
    ]
    lines.append(f"\n{'the winner after':26}{'shown':>9}{'shrunk':>9}{'true':>9}")
    lines += [
        f"{row['episodes']:4d} episodes each{'':9}{row['shown']:9.3f}{row['shrunk']:9.3f}{row['true']:9.3f}"
        for row in result["winners"]
    ]
    lines.append(f"\n{'e-test':26}{'pairs':>9}{'median':>9}{'decided':>9}{'fixed n at equal power':>24}")
    for row in result["e_test"]:
        name, fixed = f"{row['base']:g} against {row['other']:g}", row["fixed_at_equal_power"] or "-"
        figures = f"{row['mean_pairs']:9.1f}{row['median_pairs']:9.0f}{row['decided_within_200']:9.3f}"
        lines.append(f"{name:26}{figures}{fixed!s:>24}")
    return "\n".join(lines)


def _real_table(result: dict[str, Any], num_trials: int) -> str:
    at = [t for t in AT if t <= num_trials]
    lines = []
    for scenario in dict.fromkeys(row["scenario"] for row in result["next_real"]):
        lines.append(
            f"\n{scenario + ': regret after':34}" + "".join(f"{t:>8}" for t in at) + f"{'s.e.':>8}{'ms':>7}  real trials"
        )
        for row in [row for row in result["next_real"] if row["scenario"] == scenario]:
            values = "".join(f"{row['regret'][t]:8.3f}" for t in at)
            lines.append(f"{row['strategy']:34}{values}{row['error'][at[-1]]:8.3f}{row['cpu_ms_a_trial']:7.1f}")
        for row in [row for row in result["stops"] if row["scenario"] == scenario]:
            text = f"  stops at expected regret {row['tolerance']:g}: after {row['trials']:.1f} trials"
            lines.append(f"{text}, regret {row['regret']:.3f} (predicted {row['predicted']:.3f})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
