"""How often the scripted experts succeed: every task, both simulators, every randomisation, and imperfect copies of them.

    python tools/check_experts.py --out runs/experts.json

Success rates with Wilson 95 % intervals, in the worlds of --seed; none of 1,000 and up was looked at while writing an expert.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from provenance import provenance, write_json

from robopolicy.data.actors import ExpertActor
from robopolicy.data.collect import environment, episode_seed, play
from robopolicy.executor import map_units
from robopolicy.ranking.intervals import wilson
from robopolicy.sim.tasks import make_task, task_names

BLOCK = 10  # episodes of one work unit
CELLS = (  # title, twin, randomization, imperfect
    ("none", False, "none", False),
    ("narrow", False, "narrow", False),
    ("wide", False, "wide", False),
    ("held_out", False, "held_out", False),
    ("twin", True, "twin", False),
    ("imperfect", False, "none", True),
)


def episodes(unit: tuple[str, bool, str, bool, int], seed: int) -> list[tuple[bool, int]]:
    """Success and length of a block of episodes."""
    task, twin, randomization, imperfect, block = unit
    env_id = f"robopolicy/{type(make_task(task)).__name__}{'Twin' if twin else ''}-v0"
    env = environment(env_id, {"observation": ["state"], "randomization": randomization})
    seeds = [episode_seed(seed, block, i) for i in range(BLOCK)]
    rows = [play(env, ExpertActor(imperfect=imperfect), number).row for number in seeds]
    return [(row["success"], row["length"]) for row in rows]


def main() -> None:
    """Roll out, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200, help="of each cell")
    parser.add_argument("--quick", action="store_true", help="10 episodes of each cell")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    blocks = 1 if arguments.quick else -(-arguments.episodes // BLOCK)
    cells = [(task, *cell) for task in task_names() for cell in CELLS]
    units = [(task, *rest, block) for task, _, *rest in cells for block in range(blocks)]
    played = map_units(partial(episodes, seed=arguments.seed), units, title="experts", weight=lambda unit: BLOCK)
    found: dict[str, dict[str, dict]] = {}
    for index, (task, title, *_) in enumerate(cells):
        rows = [row for block in played[index * blocks : (index + 1) * blocks] for row in block]
        successes = sum(success for success, _ in rows)
        interval = [round(float(end), 4) for end in wilson(successes, len(rows))]
        lengths = sorted(length for success, length in rows if success)
        steps = lengths[len(lengths) // 2] if lengths else None
        found.setdefault(task, {})[title] = {
            "success": successes / len(rows),
            "ci": interval,
            "episodes": len(rows),
            "median_steps": steps,
        }
    print(f"{'task':12}" + "".join(f"{title:>24}" for title, *_ in CELLS))
    for task, of in found.items():
        cell = (f"{c['success']:6.1%} [{c['ci'][0]:.1%}, {c['ci'][1]:.1%}]" for c in of.values())
        print(f"{task:12}" + "".join(f"{text:>24}" for text in cell))
    if arguments.out is not None:
        facts = {**provenance("pybullet", "mujoco"), "seed": arguments.seed, "episodes": blocks * BLOCK}
        write_json(arguments.out, {**facts, "tasks": found})


if __name__ == "__main__":
    main()
