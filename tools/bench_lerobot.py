"""LeRobot's own diffusion and ACT policies beside ours: the same demonstrations, steps, batches, CPU thread and episodes.

    python tools/bench_lerobot.py [--quick] [--task peg-insert-side-v3] [--split development] [--policies carp,act,ddim16]
        [--steps 1500] [--episodes 200] [--seed 0] [--folder runs/bench_lerobot] [--out FILE.json]

LeRobot runs in an environment of its own (.venv-peer-lerobot, made on first use: about 8 GB). It records the dataset, computes
its statistics, trains with its own loop, data loader, losses and optimisers, and normalises with its own processors; our
policies are trained by our loop. Every policy decides from the same 39 numbers (the frame and the one before it, which
Meta-World gives), predicts 16 steps and executes 8 in the same environments. tools/policy_bench/lerobot.yaml has its settings.

Costs: training is single-threaded, one after the other, CPU time of the whole call; latency is of one decision, from NumPy to
NumPy, the policies of both processes in turn in every round. Policies of LeRobot's default sizes are untrained.

--quick trains 30 steps, runs 5 episodes and leaves LeRobot's default sizes out (a decision of one takes half a minute). It
vouches for costs, not for success.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.environments import REQUIREMENTS
from policy_bench import jobs, latency, registry, summary
from policy_bench.cells import Budget, contenders, load
from policy_bench.lerobot_peer import PEER, Entry, LeRobotPolicy, Peer, entries
from policy_bench.tasks import SPLITS
from provenance import provenance, write_json

from robopolicy import checkpoint
from robopolicy.data.episodes import EpisodeStore
from robopolicy.data.windows import Windows
from robopolicy.spec import STATE, Policy, did_you_mean

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Train, evaluate, measure, print, write."""
    args = _arguments()
    budget = Budget(steps=args.steps, episodes=args.episodes)
    if args.quick:
        budget = Budget(steps=min(args.steps, 30), episodes=5)
    origin, began = provenance("torch"), time.perf_counter()
    task = registry.chosen(args.split, [args.task])[0]
    known = contenders()
    ours = [known[name] for name in args.policies.split(",")]
    store = jobs.record([task], args.folder / "data", 0)[task.name]
    planned = jobs.plan([task], ours, [args.seed])
    cells = [cell for job in jobs.work(planned, args.split, budget, args.folder, 0) for cell in job]
    good = [cell for cell in cells if "error" not in cell]
    policies: dict[str, Policy] = {
        cell["policy"]: load(checkpoint.list_checkpoints(cell["folder"])[-1], known[cell["policy"]].decode) for cell in good
    }
    peer, theirs = Peer(task, store, args.folder), entries()
    try:
        environments = task.environments()
        for entry in (entry for entry in theirs.values() if entry.trained):
            cell, policies[entry.name] = peer.cell(entry, budget, args.seed, args.split, environments)
            cells.append(cell)
        environments.close()
        untrained = [] if args.quick else [entry for entry in theirs.values() if not entry.trained]
        defaults = {entry.name: _default(peer, entry, budget, args, policies) for entry in untrained}
        rounds, seconds = (5, 20.0) if args.quick else (args.rounds, args.latency_seconds)
        found = decision_times(policies, store, rounds, seconds)
    finally:
        peer.close()
    result = summary.summarise(cells, [cell["policy"] for cell in cells], args.seed)
    for cell in cells:
        if "error" not in cell:
            result["policies"][cell["policy"]]["training"] = _training(cell["cost"], budget)
    result |= {"defaults": defaults, "latency": {latency.name(1, 1): found}, "task": task.name, "split": args.split}
    result |= {"steps": budget.steps, "batch_size": budget.batch_size, "episodes": budget.episodes, "seed": args.seed}
    result |= {"quick": args.quick, PEER: list(REQUIREMENTS[PEER]), "data_hash": store.hash, **origin}
    result["wall_s"] = time.perf_counter() - began
    print(f"\n{task.name}, {args.split}, {budget.steps} steps of {budget.batch_size}, {budget.episodes} episodes, one seed")
    print(summary.table(result) + "\n\n" + table(result))
    if args.quick:
        print("\n--quick: 30 training steps. Costs are real, success rates say nothing.")
    out = args.out or args.folder / f"{args.split}.json"
    write_json(out, result)
    print(f"\nwrote {out} in {result['wall_s']:.0f} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 steps, 5 episodes")
    parser.add_argument("--split", choices=list(SPLITS), default="development")
    parser.add_argument("--task", default="peg-insert-side-v3", help="a Meta-World task of the split")
    parser.add_argument("--policies", default="carp,act,ddim16", help="ours, names in tools/policy_bench/policies.yaml")
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--episodes", type=int, default=200, help="of evaluation")
    parser.add_argument("--seed", type=int, default=0, help="of training and of the policies' randomness")
    parser.add_argument("--rounds", type=int, default=100, help="of latency, at most")
    parser.add_argument("--latency-seconds", type=float, default=240.0, help="time after which there are no more rounds")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "bench_lerobot", help="keeps what is finished")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    if min(args.steps, args.episodes, args.rounds) < 1:
        parser.error("--steps, --episodes and --rounds must be at least 1")
    tasks = [name for name, task in registry.tasks(args.split).items() if task.kind == "metaworld"]
    if args.task not in tasks:
        parser.error(f"no task {args.task!r} in the split {args.split}: {did_you_mean(args.task, tasks)}")
    for name in args.policies.split(","):
        if name not in contenders():
            parser.error(f"no policy {name!r}: {did_you_mean(name, contenders())}")
    args.folder = args.folder.absolute()
    return args


def _default(peer: Peer, entry: Entry, budget: Budget, args: argparse.Namespace, policies: dict[str, Policy]) -> dict[str, Any]:
    """A policy of LeRobot's default size: parameters, cost of a training step; it joins `policies`."""
    training = _step_rates(peer.step_cost(entry, budget.batch_size, args.seed), budget.batch_size)
    policies[entry.name], params = peer.policy(entry)
    return {"params": params, "training": training}


def _training(cost: dict[str, Any], budget: Budget) -> dict[str, float]:
    """Samples a second of a whole training, from a cell's cost, and of LeRobot's steps."""
    samples = budget.steps * budget.batch_size
    whole = {f"{clock}_samples_per_s": samples / cost[f"{clock}_s"] for clock in ("cpu", "wall")}
    return whole | _step_rates(cost, budget.batch_size)


def _step_rates(cost: dict[str, Any], batch_size: int) -> dict[str, float]:
    """Samples a second of LeRobot's steps with (loop) and without (update) its data loader; empty for ours."""
    parts = [f"{part}_{clock}" for part in ("loop", "update") for clock in ("cpu", "wall")]
    return {f"{part}_samples_per_s": batch_size / cost[f"{part}_s"] for part in parts if f"{part}_s" in cost}


def decision_times(
    policies: dict[str, Policy], store: EpisodeStore, rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    """{policy: p50, p95, cpu_p50 (ms), ratio to carp, rounds} of one decision, in turn; see latency.measure."""
    torch.set_num_threads(1)
    windows = Windows(store, (STATE,), 1, 1)
    rows = np.linspace(0, len(windows) - 1, rounds).round().astype(int)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in policies}
    began = time.perf_counter()
    for number in range(-latency.WARM_UP, rounds):
        if number >= 3 and time.perf_counter() - began > seconds:
            break
        observation = {STATE: windows.batch(rows[max(number, 0)][None])[STATE]}
        for name, policy in policies.items():
            wall, cpu = time.perf_counter(), time.process_time()
            policy.sample(observation, 1, max(number, 0))
            pair = (time.perf_counter() - wall, time.process_time() - cpu)
            if number >= 0:
                times[name].append((policy.wall_s, policy.cpu_s) if isinstance(policy, LeRobotPolicy) else pair)
    wall_ms = {name: 1e3 * np.array(pairs)[:, 0] for name, pairs in times.items()}
    base = wall_ms[latency.BASE if latency.BASE in wall_ms else next(iter(wall_ms))]
    return {
        name: {
            "p50": float(np.median(values)),
            "p95": float(np.quantile(values, 0.95)),
            "cpu_p50": float(1e3 * np.median(np.array(times[name])[:, 1])),
            "ratio": float(np.median(values / base)),
            "rounds": len(values),
        }
        for name, values in wall_ms.items()
    }


def table(result: dict[str, Any]) -> str:
    """Costs as text. Rates are samples a second of CPU time."""
    lines = [
        f"{'':26}{'params':>12}{'train/cpu s':>13}{'train/wall s':>14}{'its update':>12}"
        f"{'p50 ms':>10}{'p95 ms':>10}{'cpu ms':>10}{'x carp':>8}"
    ]
    rows = {**result["policies"], **result["defaults"]}
    for name, times in result["latency"][latency.name(1, 1)].items():
        rates = rows[name]["training"]
        whole = "loop_" if name in result["defaults"] else ""
        cells = [rates.get(f"{whole}{clock}_samples_per_s") for clock in ("cpu", "wall")]
        cells.append(rates.get("update_cpu_samples_per_s"))
        texts = [f"{cell:.0f}" if cell and cell >= 10 else f"{cell:.2g}" if cell else "-" for cell in cells]
        line = f"{name:26}{rows[name]['params']:12d}{texts[0]:>13}{texts[1]:>14}{texts[2]:>12}"
        lines.append(line + f"{times['p50']:10.2f}{times['p95']:10.2f}{times['cpu_p50']:10.2f}{times['ratio']:8.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
