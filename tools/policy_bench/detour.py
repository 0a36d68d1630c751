"""A point that goes round an obstacle, left or right, as its demonstrations do with equal chance: averaging them collides.

The point starts at x = -1 and goes to a goal at x = 1. The action is its displacement in a step. A chunk of 16 steps leads
past an obstacle and is executed whole, so each obstacle is one decision, taken before anything tells which way it will be.
It sees its position and the goal, not the obstacles, which are the same in all episodes of a task. Every start is shown
with all ways: a regression answers with their mean, which leads through the obstacle.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policy_bench.tasks import DEMONSTRATIONS, Advanced
from robopolicy.data.episodes import EpisodeStore, write_episodes
from robopolicy.spec import ACTION, STATE, TASK, Array, DatasetSpec, FeatureSpec, Observation

DECISION = 16  # steps past one obstacle, executed without a look in between
LANES = 50
LONGEST = 0.3  # step; a longer one is cut. Demonstrations make 0.15 on average round one obstacle
DISTURBANCE = 0.005  # standard deviation of what is added to a step when it is executed
START_SPREAD = 0.01  # standard deviation of both coordinates
REACHED = 0.12  # distance to the goal that counts as success
CLEARANCE = 0.12  # of the demonstrations at the obstacle's side, times 0.8 to 1.2
NUM_DEMONSTRATIONS = 200

SPEC = DatasetSpec(
    {STATE: FeatureSpec((4,), names=("x", "y", "goal_x", "goal_y")), ACTION: FeatureSpec((2,), names=("dx", "dy"))}, fps=10.0
)


@dataclass(frozen=True)
class Obstacle:
    """A disc."""

    x: float
    y: float
    radius: float


# Obstacles by task, in order of x and evenly spaced. The first is for development, the others are held out.
TASKS = {
    "detour-centre": (Obstacle(0.0, 0.0, 0.45),),
    "detour-offset": (Obstacle(0.2, 0.08, 0.4),),
    "detour-twice": (Obstacle(-0.5, 0.0, 0.3), Obstacle(0.5, 0.0, 0.3)),
}


def begin(seed: int) -> tuple[Array, Array, np.random.Generator]:
    """Start [2], goal [2] and the generator of an episode's disturbances."""
    rng = np.random.default_rng(seed)
    return np.array([-1.0, 0.0]) + rng.normal(0.0, START_SPREAD, 2), np.array([1.0, 0.0]), rng


def displaced(position: Array, action: Array, rng: np.random.Generator) -> Array:
    """The next position [2]."""
    length = np.linalg.norm(action)
    return position + action * min(1.0, LONGEST / max(length, 1e-9)) + rng.normal(0.0, DISTURBANCE, 2)


def collides(obstacles: Sequence[Obstacle], start: Array, end: Array) -> bool:
    """Whether the segment between two points [2] touches an obstacle."""
    along = end - start
    for o in obstacles:
        centre = np.array([o.x, o.y])
        share = np.clip((centre - start) @ along / max(along @ along, 1e-12), 0.0, 1.0)
        if np.linalg.norm(start + share * along - centre) < o.radius:
            return True
    return False


def demonstration(obstacles: Sequence[Obstacle], seed: int, sides: Sequence[int]) -> dict[str, Any]:
    """An episode of the demonstrator, who passes each obstacle on the side given, left = 1 and right = -1.

    Steps are even in x, on a half sine round each obstacle. The start depends on the seed alone.
    """
    start, goal, _ = begin(seed)
    rng = np.random.default_rng((seed, *(side > 0 for side in sides)))
    steps = DECISION * len(obstacles)
    heights = [o.y + side * (o.radius + CLEARANCE * rng.uniform(0.8, 1.2)) for o, side in zip(obstacles, sides, strict=True)]
    path, actions = [start], []
    for step in range(1, steps + 1):
        lobe, within = divmod(step, DECISION)
        aside = np.sin(np.pi * within / DECISION) * heights[lobe] if within else 0.0
        wanted = start + (goal - start) * step / steps + np.array([0.0, aside])
        actions.append(wanted - path[-1])
        path.append(displaced(path[-1], actions[-1], rng))
    states = np.array([np.concatenate([position, goal]) for position in path[:-1]], np.float32)
    collided = any(collides(obstacles, *leg) for leg in itertools.pairwise(path))
    reached = bool(np.linalg.norm(path[-1] - goal) <= REACHED)
    return {STATE: states, ACTION: np.array(actions, np.float32), "success": reached and not collided, "seed": seed}


class DetourEnvironments:
    """See tasks.Environments. Facts: collided, the side of each obstacle ("left" of the direction of travel), the path.

    An episode has one decision more than there are obstacles, to come closer to the goal.
    """

    lanes = LANES

    def __init__(self, obstacles: Sequence[Obstacle]) -> None:
        self.limit, self._obstacles = DECISION * (len(obstacles) + 1), obstacles
        self._episodes: dict[int, tuple[list[Array], Array, np.random.Generator]] = {}

    def _observe(self, lanes: Sequence[int]) -> Observation:
        seen = [np.concatenate([self._episodes[lane][0][-1], self._episodes[lane][1]]) for lane in lanes]
        return {STATE: np.array(seen, np.float32)}

    def reset(self, lanes: Sequence[int], seeds: Sequence[int]) -> Observation:
        """See tasks.Environments.reset."""
        for lane, seed in zip(lanes, seeds, strict=True):
            start, goal, rng = begin(seed)
            self._episodes[lane] = [start], goal, rng
        return self._observe(lanes)

    def advance(self, lanes: Sequence[int], chunks: Array, budgets: Array) -> Advanced:
        """See tasks.Environments.advance."""
        steps, success, ended, facts = [], [], [], []
        for lane, chunk, budget in zip(lanes, chunks, budgets, strict=True):
            path, goal, rng = self._episodes[lane]
            executed, collided, reached = 0, False, False
            while executed < min(len(chunk), budget) and not (collided or reached):
                path.append(displaced(path[-1], chunk[executed].astype(np.float64), rng))
                collided, executed = collides(self._obstacles, path[-2], path[-1]), executed + 1
                reached = not collided and bool(np.linalg.norm(path[-1] - goal) <= REACHED)
            steps.append(executed)
            success.append(reached)
            ended.append(collided or reached)
            facts.append({"collided": collided, "sides": _sides(self._obstacles, path), "path": np.round(path, 3).tolist()})
        return Advanced(self._observe(lanes), np.array(steps), np.array(success), np.array(ended), facts)

    def close(self) -> None:
        """Nothing to free."""


def _sides(obstacles: Sequence[Obstacle], path: Sequence[Array]) -> str:
    """L or R for each obstacle that the path has left behind."""
    behind = [o for o in obstacles if path[-1][0] >= o.x + o.radius]
    return "".join("L" if next(point for point in path if point[0] >= o.x)[1] > o.y else "R" for o in behind)


@dataclass(frozen=True)
class DetourTask:
    """See tasks.Task."""

    name: str
    inputs: str = "auto"
    kind: str = "detour"
    overrides: tuple[str, ...] = (f"policy.action_horizon={DECISION}", f"policy.execute_horizon={DECISION}")
    longer: int = 1

    @property
    def obstacles(self) -> tuple[Obstacle, ...]:
        """What is in the way."""
        return TASKS[self.name]

    def demonstrations(self, folder: Path) -> EpisodeStore:
        """200 successful demonstrations: as many starts as it takes, each with all ways."""
        path = folder / f"{self.name}-{NUM_DEMONSTRATIONS}"
        if not path.exists():
            temporary = Path(tempfile.mkdtemp(dir=folder, prefix=f".{self.name}-"))
            ways, seed, episodes = list(itertools.product((1, -1), repeat=len(self.obstacles))), DEMONSTRATIONS, []
            while len(episodes) < NUM_DEMONSTRATIONS:
                shown = [demonstration(self.obstacles, seed, way) for way in ways]
                if all(episode["success"] for episode in shown):
                    episodes += [{**episode, TASK: self.name, "source": "expert"} for episode in shown]
                seed += 1
            spec = DatasetSpec(SPEC.features, SPEC.fps, {"attempts": len(ways) * (seed - DEMONSTRATIONS)})
            write_episodes(temporary, episodes, spec.fps, spec)
            temporary.rename(path)
        return EpisodeStore(path)

    def environments(self) -> DetourEnvironments:
        """See tasks.Task.environments."""
        return DetourEnvironments(self.obstacles)

    def describe(self) -> dict[str, Any]:
        """See tasks.Task.describe."""
        constants = {"decision": DECISION, "longest": LONGEST, "disturbance": DISTURBANCE, "reached": REACHED, "lanes": LANES}
        return {"obstacles": [[o.x, o.y, o.radius] for o in self.obstacles], "start_spread": START_SPREAD, **constants}
