"""All policies over the same demonstrations, encoders, training loop and budget: success, two-mode behaviour, cost, latency.

    python tools/bench_policies.py [--quick] [--split held_out] [--policies carp,bc] [--tasks metaworld,detour] [--steps 1500]
        [--seed 0] [--seeds 1] [--workers 2] [--table FILE.yaml] [--folder runs/bench_policies] [--out FILE.json]

Demonstrations: 50 episodes of Meta-World's own scripted expert a task, 200 of our simulator's experts, 200 of the detours.
Every policy is trained by the product's own loop as `robopolicy train policy=NAME` would, with the same number of steps (a
policy's tokenizer phase included; three times as many where it sees images), and sees one frame, which in Meta-World holds two.
Episodes of evaluation are the same for all; their seeds are neither those of the demonstrations nor those of the other split.
What is finished is kept in --folder under a hash of all that determines it; the same command goes on where it was stopped.

--table tools/policy_bench/ablations.yaml --split development compares CARP with itself, a part of it changed at a time.

--quick runs one Meta-World task with few steps and episodes. It vouches for keys and latency, not for success.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from policy_bench import jobs, latency, pictures, registry, summary, two_modes
from policy_bench.cells import Budget, contenders, load
from policy_bench.tasks import SPLITS
from provenance import provenance, write_json

from robopolicy import checkpoint
from robopolicy.spec import did_you_mean

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Train, evaluate, measure, print, write."""
    args = _arguments()
    known = contenders(args.table)
    names = args.policies.split(",") if args.policies else list(known)
    for name in names:
        if name not in known:
            sys.exit(f"no policy {name!r}; {did_you_mean(name, known)}")
    budget = Budget(steps=args.steps, episodes=args.episodes, overrides=tuple(args.override))
    if args.quick:
        budget = Budget(steps=min(args.steps, 20), episodes=3, overrides=budget.overrides)
    try:
        tasks = registry.chosen(args.split, args.tasks.split(",") if args.tasks else _default_tasks(args))
    except ValueError as error:
        sys.exit(str(error))
    origin, began = provenance("torch"), time.perf_counter()
    good, missing = jobs.available({name: known[name] for name in names}, budget, tasks[0])
    for name, reason in missing.items():
        print(f"missing: {name}: {reason}", file=sys.stderr)
    if not good:
        sys.exit("none of the policies can be made")
    stores = jobs.record(tasks, args.folder / "data", args.workers)
    for name, store in stores.items():
        attempts = store.spec.extra.get("attempts", len(store))
        print(f"{name}: {len(store)} demonstrations of {attempts} attempts, {store.lengths.sum()} steps, {store.hash[:16]}")
    planned = jobs.plan(tasks, good, range(args.seed, args.seed + args.seeds))
    done = jobs.work(planned, args.split, budget, args.folder, args.workers)
    cells = [cell for job in done for cell in job]
    result = summary.summarise(cells, names, args.seed)
    result["two_modes"] = two_modes.summarise(cells, names, args.seed)
    result["latency"] = _latency(args, cells, {c.name: c.decode for c in good}, stores)
    for name, row in result["policies"].items():
        if measured := result["latency"].get(latency.name(1, 1), {}).get(name):
            row["latency_ms"] = measured
    result |= {"missing": missing, "split": args.split, "quick": args.quick, "seed": args.seed, "seeds": args.seeds}
    result |= {"steps": budget.steps, "batch_size": budget.batch_size, "episodes": budget.episodes, **origin}
    result["data"] = {n: {"hash": s.hash, "steps": int(s.lengths.sum()), **s.spec.extra} for n, s in stores.items()}
    result["wall_s"] = time.perf_counter() - began
    _report(args, result, cells, names)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one task, 20 steps, 3 episodes")
    parser.add_argument("--split", choices=list(SPLITS), default="held_out", help="development: for choosing")
    parser.add_argument("--table", type=Path, help="of the policies; tools/policy_bench/policies.yaml by default")
    parser.add_argument("--policies", help="names in the table, comma-separated; all by default")
    parser.add_argument("--tasks", help="names, or kinds: metaworld, simulated, detour; all of the split by default")
    parser.add_argument("--steps", type=int, default=1500, help="of training, all phases together; from images three times")
    parser.add_argument("--episodes", type=int, default=200, help="of evaluation on each task")
    parser.add_argument("--seed", type=int, default=0, help="of the first training and of the policies' randomness")
    parser.add_argument("--seeds", type=int, default=1, help="number of training seeds")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread; latency is measured without them")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="of conf/train.yaml, for all")
    parser.add_argument("--latency-seconds", type=float, default=60.0, help="time after which a setting takes no more rounds")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "bench_policies")
    parser.add_argument("--out", type=Path, help="JSON file; the pictures go beside it")
    args = parser.parse_args()
    if args.steps < 1 or args.episodes < jobs.REPEATS or args.seeds < 1 or args.workers < 0:
        parser.error(f"--steps and --seeds must be at least 1, --episodes {jobs.REPEATS}, --workers 0")
    args.folder = args.folder.absolute()
    return args


def _default_tasks(args: argparse.Namespace) -> list[str]:
    return list(registry.QUICK[args.split] if args.quick else registry.tasks(args.split))


def _latency(args: argparse.Namespace, cells: list[dict[str, Any]], decode: dict[str, Any], stores: Any) -> dict[str, Any]:
    """Of the policies trained on the first task, in this process."""
    trained = [cell for cell in cells if "error" not in cell and cell["seed"] == args.seed and not cell["repeats"]]
    first = next((cell["task"] for cell in trained), None)
    policies = {
        cell["policy"]: load(checkpoint.list_checkpoints(cell["folder"])[-1], decode[cell["policy"]])
        for cell in trained
        if cell["task"] == first
    }
    if not policies:
        return {}
    rounds, seconds, patience = (5, 1.0, 1.0) if args.quick else (100, args.latency_seconds, 20.0)
    return latency.measure(policies, stores[first], rounds, seconds, patience)


def _report(args: argparse.Namespace, result: dict[str, Any], cells: list[dict[str, Any]], names: list[str]) -> None:
    """Print the tables; write figures and pictures."""
    print(f"\n{args.split}, {result['steps']} steps, {result['episodes']} episodes a task, {args.seeds} training seeds")
    print(summary.table(result) + "\n" + two_modes.table(result["two_modes"]))
    if result["latency"]:
        print("\n" + latency.table(result["latency"]))
    if args.quick:
        print("\n--quick: 20 training steps. Keys and latency are real, success rates say nothing.")
    out = args.out or args.folder / f"{args.split}.json"
    write_json(out, result)
    title = f"{args.split}, {result['steps']} steps, {result['episodes']} episodes a task"
    made = [pictures.success(out.with_suffix(".png"), result["policies"], title)] if result["policies"] else []
    found = pictures.detours(out.with_name(out.stem + "-detours.png"), cells, names)
    print(f"\nwrote {', '.join(str(path) for path in [out, *made, *([found] if found else [])])} in {result['wall_s']:.0f} s")


if __name__ == "__main__":
    main()
