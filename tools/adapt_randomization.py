"""How far can worlds be from the nominal one? Automatic domain randomisation, testing the expert or a checkpoint.

    python tools/adapt_randomization.py --env robopolicy/Push-v0 --out runs/push.json
    python tools/adapt_randomization.py --randomization ranges.yaml --checkpoint runs/wide/checkpoints/step_004000 --out a.json

Starts at the nominal world and widens each parameter while episodes at its boundary succeed (sim/adaptive.py). The file holds
the levels reached, also as values, and all that it takes to go on: the same command continues it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import yaml
from provenance import provenance, write_json
from tqdm import tqdm

from robopolicy.data.collect import Actor, play, robot_env, scripted_actor
from robopolicy.sim.adaptive import AutomaticRandomization
from robopolicy.sim.distributions import Distribution, Level
from robopolicy.sim.env import randomized
from robopolicy.sim.randomize import World


def main() -> None:
    """Play, adapt, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="robopolicy/Lift-v0")
    parser.add_argument("--randomization", default="wide", help="a preset, or a YAML file like those in conf/randomization")
    parser.add_argument("--checkpoint", type=Path, help="of a policy; default: the task's expert")
    parser.add_argument("--episodes", type=int, default=4000, help="in all, those of an earlier run included")
    parser.add_argument("--step", type=float, default=0.1)
    parser.add_argument("--buffer", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="300 episodes")
    parser.add_argument("--out", type=Path, required=True, help="FILE.json")
    arguments = parser.parse_args()
    given: Any = arguments.randomization
    if given.endswith((".yaml", ".yml")):
        given = yaml.safe_load(Path(given).read_text())
    actor, observation = tested(arguments.checkpoint)
    env = gymnasium.make(arguments.env, disable_env_checker=True, observation=observation, randomization=given)
    engine = env.spec.kwargs["engine"] if env.spec else "bullet"
    task = robot_env(env).task
    around, distributions = randomized(task, given, {}, engine)
    initial = randomized(task, {}, {}, engine)[1]
    distributions = {name: d for name, d in distributions.items() if name not in initial}
    adr, done = AutomaticRandomization.around(distributions, around, step=arguments.step, buffer=arguments.buffer), 0
    if arguments.out.is_file():
        earlier = json.loads(arguments.out.read_text())
        adr, done = AutomaticRandomization(**earlier["state"]), earlier["episodes"]
    total = 300 if arguments.quick else arguments.episodes
    for episode in tqdm(range(done, total), initial=done, total=total, desc="adapt", disable=None):
        proposal = adr.propose(np.random.default_rng([arguments.seed, episode]))
        played = play(env, actor, arguments.seed + episode, options={"levels": proposal.levels})
        adr.record(proposal, played.row["success"])
        if (episode + 1) % 200 == 0 or episode + 1 == total:
            write(arguments, adr, episode + 1, distributions, around)
    print_table(adr, distributions, around)


def tested(checkpoint: Path | None) -> tuple[Actor, tuple[str, ...]]:
    """Who plays, and what it observes: a checkpoint's policy, or the expert."""
    if checkpoint is None:
        return scripted_actor("expert"), ("state",)
    from robopolicy.evaluation.rollout import PolicyActor, observing
    from robopolicy.policies.load import load_policy

    policy = load_policy(checkpoint)
    return PolicyActor(policy), tuple(observing({"observation": []}, policy)["observation"])


def reached(distribution: Distribution, nominal: float | list[float], level: list[float]) -> list[list[float]]:
    """Lowest and highest value of every entry at these levels."""
    ends = distribution.support(nominal, Level(level[0], level[1]))
    return [np.clip(end, distribution.low, distribution.high).tolist() for end in ends]


def write(
    arguments: argparse.Namespace,
    adr: AutomaticRandomization,
    episodes: int,
    distributions: dict[str, Distribution],
    nominal: World,
) -> None:
    """The state and what it means, with where it comes from."""
    facts = {
        **provenance(),
        "env": arguments.env,
        "episodes": episodes,
        "ranges": {name: reached(distributions[name], nominal[name], level) for name, level in adr.levels.items()},
        "state": adr.state(),
    }
    write_json(arguments.out, facts)


def print_table(adr: AutomaticRandomization, distributions: dict[str, Distribution], nominal: World) -> None:
    """A line a parameter: levels below and above, and the range that they mean."""
    print(f"{'parameter':30} {'below':>6} {'above':>6}  range reached")
    for name, level in adr.levels.items():
        low, high = reached(distributions[name], nominal[name], level)
        text = ", ".join(f"{a:.4g} .. {b:.4g}" for a, b in zip(low, high, strict=True))
        print(f"{name:30} {level[0]:6.2f} {level[1]:6.2f}  {text}")


if __name__ == "__main__":
    main()
