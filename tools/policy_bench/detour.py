"""A point that goes round an obstacle, left or right, as its demonstrations do with equal chance: averaging them collides.

The point starts at x = -1 and goes to a goal at x = 1. The action is its displacement in a step; what is executed is
disturbed. It sees its position and the goal, not the obstacles, which are the same in all episodes of a task. The ways part
at the start, and again between two obstacles, so a regression heads for their middle, where the obstacle is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policy_bench.tasks import DEMONSTRATIONS, Advanced
from robopolicy.data.episodes import EpisodeStore, write_episodes
from robopolicy.spec import ACTION, STATE, TASK, Array, DatasetSpec, FeatureSpec, Observation

LIMIT = 80  # steps of an episode
LANES = 50
SPEED = 0.06  # per step, of the demonstrations; a step is cut to twice that
DISTURBANCE = 0.01  # standard deviation of what is added to a step when it is executed
START_SPREAD = 0.02  # standard deviation of both coordinates
REACHED = 0.12  # distance to the goal that counts as success
CLEARANCE = 0.2  # of the demonstrations at the obstacle's side
NUM_DEMONSTRATIONS = 100

SPEC = DatasetSpec(
    {STATE: FeatureSpec((4,), names=("x", "y", "goal_x", "goal_y")), ACTION: FeatureSpec((2,), names=("dx", "dy"))}, fps=10.0
)


@dataclass(frozen=True)
class Obstacle:
    """A disc."""

    x: float
    y: float
    radius: float


# Obstacles by task. The first is for development, the others are held out.
TASKS = {
    "detour-centre": (Obstacle(0.0, 0.0, 0.35),),
    "detour-offset": (Obstacle(0.2, 0.08, 0.28),),
    "detour-twice": (Obstacle(-0.5, 0.0, 0.2), Obstacle(0.5, 0.0, 0.2)),
}


def begin(seed: int) -> tuple[Array, Array, np.random.Generator]:
    """Start [2], goal [2] and the generator of an episode's disturbances."""
    rng = np.random.default_rng(seed)
    return np.array([-1.0, 0.0]) + rng.normal(0.0, START_SPREAD, 2), np.array([1.0, 0.0]), rng


def displaced(position: Array, action: Array, rng: np.random.Generator) -> Array:
    """The next position [2]."""
    length = np.linalg.norm(action)
    return position + action * min(1.0, 2 * SPEED / max(length, 1e-9)) + rng.normal(0.0, DISTURBANCE, 2)


def collides(obstacles: Sequence[Obstacle], position: Array) -> bool:
    """Whether the point is in an obstacle."""
    return any(np.hypot(position[0] - o.x, position[1] - o.y) < o.radius for o in obstacles)


def demonstration(obstacles: Sequence[Obstacle], seed: int) -> dict[str, Any]:
    """An episode of the demonstrator round obstacles in order of x, evenly spaced.

    Successive seeds share a start and take all ways in turn, so nothing in what is seen tells which one comes.
    """
    shared, way_number = divmod(seed, 2 ** len(obstacles))
    position, goal, rng = begin(shared)
    start_y, sides = position[1], [1.0 if way_number >> i & 1 else -1.0 for i in range(len(obstacles))]
    heights = [o.radius + CLEARANCE * rng.uniform(0.8, 1.2) for o in obstacles]

    def way(x: float) -> float:
        lobe = min(int((x + 1) / 2 * len(obstacles)), len(obstacles) - 1)
        share = np.sin(np.pi * np.clip((x + 1) / 2 * len(obstacles) - lobe, 0.0, 1.0))
        straight = start_y + (goal[1] - start_y) * np.clip((x + 1) / 2, 0.0, 1.0)
        return straight + share * (obstacles[lobe].y + sides[lobe] * heights[lobe])

    states, actions = [], []
    while np.linalg.norm(position - goal) > REACHED / 2 and len(actions) < LIMIT:
        forward = min(SPEED, max(goal[0] - position[0], 0.0))
        ahead = np.array([position[0] + forward, way(position[0] + forward)]) - position
        if forward == 0.0:
            ahead = goal - position
        action = ahead * min(1.0, SPEED / max(np.linalg.norm(ahead), 1e-9))
        states.append(np.concatenate([position, goal]))
        actions.append(action)
        position = displaced(position, action, rng)
    collided = any(collides(obstacles, state[:2]) for state in states)
    arrays = {STATE: np.array(states, np.float32), ACTION: np.array(actions, np.float32)}
    reached = bool(np.linalg.norm(position - goal) <= REACHED)
    return {**arrays, "success": reached and not collided, "seed": seed, "left": float(np.mean([side > 0 for side in sides]))}


class DetourEnvironments:
    """See tasks.Environments. Facts: collided, the side of each obstacle ("left" of the direction of travel), the path."""

    lanes, limit = LANES, LIMIT

    def __init__(self, obstacles: Sequence[Obstacle]) -> None:
        self._obstacles = obstacles
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
                collided, executed = collides(self._obstacles, path[-1]), executed + 1
                reached = not collided and bool(np.linalg.norm(path[-1] - goal) <= REACHED)
            steps.append(executed)
            success.append(reached)
            ended.append(collided or reached)
            facts.append({"collided": collided, "sides": _sides(self._obstacles, path), "path": np.round(path, 3).tolist()})
        return Advanced(self._observe(lanes), np.array(steps), np.array(success), np.array(ended), facts)

    def close(self) -> None:
        """Nothing to free."""


def _sides(obstacles: Sequence[Obstacle], path: Sequence[Array]) -> str:
    """L or R for each obstacle that the path has passed."""
    passed = []
    for o in obstacles:
        beyond = [point for point in path if point[0] >= o.x]
        passed += ["L" if beyond[0][1] > o.y else "R"] if beyond else []
    return "".join(passed)


@dataclass(frozen=True)
class DetourTask:
    """See tasks.Task."""

    name: str
    inputs: str = "auto"
    kind: str = "detour"

    @property
    def obstacles(self) -> tuple[Obstacle, ...]:
        """What is in the way."""
        return TASKS[self.name]

    def demonstrations(self, folder: Path) -> EpisodeStore:
        """100 successful demonstrations."""
        path = folder / f"{self.name}-{NUM_DEMONSTRATIONS}"
        if not path.exists():
            temporary, seed, episodes = Path(tempfile.mkdtemp(dir=folder, prefix=f".{self.name}-")), DEMONSTRATIONS, []
            while len(episodes) < NUM_DEMONSTRATIONS:
                episode = demonstration(self.obstacles, seed)
                episodes += [{**episode, TASK: self.name, "source": "expert"}] if episode["success"] else []
                seed += 1
            spec = DatasetSpec(SPEC.features, SPEC.fps, {"attempts": seed - DEMONSTRATIONS})
            write_episodes(temporary, episodes, spec.fps, spec)
            temporary.rename(path)
        return EpisodeStore(path)

    def environments(self) -> DetourEnvironments:
        """See tasks.Task.environments."""
        return DetourEnvironments(self.obstacles)

    def describe(self) -> dict[str, Any]:
        """See tasks.Task.describe."""
        constants = {"speed": SPEED, "disturbance": DISTURBANCE, "reached": REACHED, "limit": LIMIT, "lanes": LANES}
        return {"obstacles": [[o.x, o.y, o.radius] for o in self.obstacles], **constants}
