"""Tasks of our own simulator, from point clouds or images, demonstrated by their scripted experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from policy_bench.tasks import DEMONSTRATIONS, Advanced
from robopolicy.data.collect import collect, robot_env
from robopolicy.data.episodes import EpisodeStore
from robopolicy.spec import Array, Observation

LANES = 10
NUM_DEMONSTRATIONS = 200
DISTURBANCE = 0.025  # m per step, pushes in the demonstrations: with the 0.008 of conf/collect.yaml few learn
RANDOMIZATION = "narrow"
IMAGE_SIZE, NUM_POINTS = 64, 64


class SimulatedEnvironments:
    """See tasks.Environments."""

    lanes = LANES

    def __init__(self, env_id: str, env_kwargs: dict[str, Any]) -> None:
        made = [gymnasium.make(env_id, disable_env_checker=True, **env_kwargs) for _ in range(self.lanes)]
        limit = made[0].spec.max_episode_steps if made[0].spec else None
        assert limit is not None
        self.limit, self._envs, self._box = limit, [robot_env(env) for env in made], made[0].action_space

    def reset(self, lanes: Sequence[int], seeds: Sequence[int]) -> Observation:
        """See tasks.Environments.reset."""
        seen = [self._envs[lane].reset(seed=seed)[0] for lane, seed in zip(lanes, seeds, strict=True)]
        return {key: np.stack([one[key] for one in seen]) for key in seen[0]}

    def advance(self, lanes: Sequence[int], chunks: Array, budgets: Array) -> Advanced:
        """See tasks.Environments.advance. Nothing is rendered within a chunk."""
        steps, success, seen = [], [], []
        for lane, chunk, budget in zip(lanes, chunks, budgets, strict=True):
            executed, done = 0, False
            while executed < min(len(chunk), budget) and not done:
                action = np.clip(chunk[executed], self._box.low, self._box.high)
                _, done, _, _ = self._envs[lane].advance(action)
                executed += 1
            steps.append(executed)
            success.append(done)
            seen.append(self._envs[lane].observe())
        observations = {key: np.stack([one[key] for one in seen]) for key in seen[0]}
        outcome = np.array(success)
        return Advanced(observations, np.array(steps), outcome, outcome, [{}] * len(lanes))

    def close(self) -> None:
        """Free the engines."""
        for env in self._envs:
            env.close()


@dataclass(frozen=True)
class SimulatedTask:
    """See tasks.Task. observation: what is rendered."""

    name: str
    env_id: str
    inputs: str
    observation: tuple[str, ...]
    kind: str = "simulated"
    overrides: tuple[str, ...] = ()

    @property
    def longer(self) -> int:
        """See tasks.Task: an encoder of pictures has to be learned too."""
        return 3 if self.inputs == "images" else 1

    def _kwargs(self) -> dict[str, Any]:
        sizes = {"image_size": IMAGE_SIZE, "num_points": NUM_POINTS}
        return {"randomization": RANDOMIZATION, "observation": list(self.observation), **sizes}

    def demonstrations(self, folder: Path) -> EpisodeStore:
        """200 episodes of the scripted expert under occasional pushes."""
        kwargs = {**self._kwargs(), "nominal": {"robot.disturbance": DISTURBANCE}}
        path = folder / f"{self.name}-{NUM_DEMONSTRATIONS}"
        return collect(path, self.env_id, kwargs, {"expert": NUM_DEMONSTRATIONS}, DEMONSTRATIONS, title=self.name)

    def environments(self) -> SimulatedEnvironments:
        """In the randomisation of the demonstrations, without pushes."""
        return SimulatedEnvironments(self.env_id, self._kwargs())

    def describe(self) -> dict[str, Any]:
        """See tasks.Task.describe."""
        return {"env_id": self.env_id, **self._kwargs(), "lanes": LANES}
