"""All policies over the same demonstrations, encoders, training loop and budget: success, cost and latency.

python tools/bench_policies.py [--quick] [--split held_out] [--policies carp,bc] [--tasks NAME,...] [--steps 1500]
    [--workers 2] [--seed 0] [--folder runs/bench_policies] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from policy_bench.cells import Budget, ConfigError, Evaluation, Training, contenders, settings
from policy_bench.metaworld import MetaWorldTask

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Train, evaluate, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default="carp,bc")
    parser.add_argument("--tasks", default="peg-insert-side-v3")
    parser.add_argument("--split", default="development")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "bench_policies")
    args = parser.parse_args()
    data = args.folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    budget = Budget(steps=args.steps, episodes=args.episodes)
    for name in args.tasks.split(","):
        task = MetaWorldTask(name)
        store = task.demonstrations(data)
        print(f"{name}: {len(store)} demonstrations, {store.lengths.sum()} steps, {store.spec.extra}, hash {store.hash[:16]}")
        for policy in args.policies.split(","):
            contender = contenders()[policy]
            try:
                config = settings(contender, budget, args.seed, ["inputs=auto"], str(store.path))
            except ConfigError as error:
                print(f"{policy}: missing: {error}", file=sys.stderr)
                continue
            training = Training.of(task, store, config, args.folder)
            cost = training.run()
            result = Evaluation.of(training, contender, args.split, budget.episodes, args.seed, args.folder).run()
            success = [outcome["success"] for outcome in result["outcomes"]]
            print(policy, sum(success) / len(success), cost, result["evaluation_cost"], flush=True)


if __name__ == "__main__":
    main()
