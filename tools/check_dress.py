"""Whether the dressing task is sound: memory over resets, faults and penetration under many actors, expert and naive floor.

    python tools/check_dress.py [--quick] [--seed 0] [--out FILE.json]

Memory is the resident set of this process after a reset and a few steps in contact. Penetration is the least distance of a
vertex to the skin; the collision margin is 6 mm. Ratios are means over episodes with normal 95 % intervals.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from provenance import provenance, write_json

import robopolicy  # noqa: F401
from robopolicy.sim.dress_experts import DressExpert, NaivePath
from robopolicy.sim.dress_world import BENDS

STEPS = 60


def main() -> None:
    """Check, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 resets and 2 episodes of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--actors", default="expert,imperfect,naive,random")
    parser.add_argument("--episodes", type=int, default=50, help="of each actor in each range of the elbow, and in all")
    parser.add_argument("--resets", type=int, default=1000)
    args = parser.parse_args()
    resets, episodes = (30, 2) if args.quick else (args.resets, args.episodes)
    env = gymnasium.make("robopolicy/Dress-v0", disable_env_checker=True).unwrapped
    memory = check_memory(env, resets)
    print(f"resident memory (MiB) over {resets} resets: {memory}")
    rows = [play(env, actor, region, episodes, args.seed) for actor in args.actors.split(",") for region in (*BENDS, "all")]
    print(f"{'actor':10} {'region':9} {'upper':>15} {'whole':>6} {'success':>8} {'force N':>8} {'depth mm':>9} {'faults':>7}")
    for row in rows:
        low, high = row["upper_ci"]
        print(
            f"{row['actor']:10} {row['region']:9} {row['upper']:4.2f} [{low:.2f},{high:.2f}] {row['whole']:6.2f} "
            f"{row['success']:8.2f} {row['peak_force_n']:8.1f} {row['worst_mm']:9.1f} {row['faults']:7d}"
        )
    seconds, steps = sum(row["cpu_s"] for row in rows), sum(row["steps"] for row in rows)
    print(f"{steps / seconds:.0f} decisions per CPU second, resets included, nothing rendered")
    result = {"memory_mib": memory, "rows": rows, "decisions_per_cpu_s": steps / seconds, "episodes": episodes}
    if args.out:
        write_json(args.out, {**provenance("pybullet"), **result})


def check_memory(env: Any, resets: int) -> list[float]:
    """Resident set (MiB) at ten moments of the resets, after each of fewer than ten."""
    sizes = []
    for i in range(resets):
        env.reset(seed=i)
        for _ in range(6):
            env.step(np.array([0.02, 0.0, 0.0, 0.0]))
        if (i + 1) % max(resets // 10, 1) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            sizes.append(round(pages * 4096 / 2**20, 1))
    return sizes


def play(env: Any, actor: str, region: str, episodes: int, seed: int) -> dict[str, Any]:
    """Means over the episodes of one kind of actor in one region."""
    finals, worst, faults, steps, started = [], np.inf, 0, 0, time.process_time()
    for index in range(episodes):
        rng = np.random.default_rng([seed, index])
        env.reset(seed=1000 * seed + index, options={"region": region})
        act = {"expert": DressExpert(), "imperfect": DressExpert.imperfect(rng), "naive": NaivePath()}.get(actor)
        for _ in range(STEPS):
            action = act(env) if act else rng.uniform(env.action_space.low, env.action_space.high)
            _, _, truncated, info = env.advance(action)
            steps += 1
            if truncated:
                faults += 1
                break
            worst = min(worst, float(env.arm.nearest(env.cloth.vertices())[0].min()))
        finals.append([info[name] for name in ("upper_ratio", "whole_ratio", "success", "peak_force_n")])
    table = np.array(finals, float)
    half = 1.96 * table[:, 0].std(ddof=1) / np.sqrt(episodes)
    upper, whole, success, force = table.mean(0)
    return {
        **{"actor": actor, "region": region, "upper": upper, "upper_ci": [upper - half, upper + half]},
        **{"whole": whole, "success": success, "peak_force_n": force, "max_force_n": table[:, 3].max()},
        **{"worst_mm": 1e3 * worst, "faults": faults, "steps": steps, "cpu_s": time.process_time() - started},
    }


if __name__ == "__main__":
    main()
