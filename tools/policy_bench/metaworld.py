"""Meta-World's tasks (arXiv 1910.10897, v3), their scripted experts as demonstrators, state observations."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peers.environments import REQUIREMENTS

from policy_bench.remote import Remote, WorkerError
from policy_bench.tasks import DEMONSTRATIONS, Advanced
from robopolicy.data.episodes import EpisodeStore, write_episodes
from robopolicy.spec import ACTION, STATE, TASK, DatasetSpec, FeatureSpec, Observation

LIMIT = 300  # steps of an episode
LANES = 25  # environments side by side, made when they are first used, about 30 MB each
NOISE = 0.1  # standard deviation of what is added to the expert's xyz command when it is executed (DART, arXiv 1703.09327)
LINGER = 10  # steps recorded beyond success
NUM_DEMONSTRATIONS = 50
FPS = 80.0  # 5 substeps of 2.5 ms


def _state_names() -> tuple[str, ...]:
    def frame(prefix: str) -> list[str]:
        bodies = [f"{body}_{entry}" for body in ("object", "other") for entry in ("x", "y", "z", "qx", "qy", "qz", "qw")]
        return [prefix + name for name in ("hand_x", "hand_y", "hand_z", "gripper_opening", *bodies)]

    return (*frame(""), *frame("previous_"), "goal_x", "goal_y", "goal_z")


SPEC = DatasetSpec(
    {
        STATE: FeatureSpec((39,), names=_state_names()),
        ACTION: FeatureSpec((4,), names=("x", "y", "z", "gripper")),
    },
    fps=FPS,
)


def worker(task: str) -> Remote:
    """A worker process with environments of one task."""
    remote = Remote("metaworld", "policy_bench.metaworld_worker", {"MUJOCO_GL": "disabled"})
    facts, _ = remote.ask("make", task=task)
    if not np.isclose(facts["fps"], FPS):
        raise WorkerError(f"{task} runs at {facts['fps']} Hz, expected {FPS}")
    return remote


class MetaWorldEnvironments:
    """See tasks.Environments."""

    lanes, limit = LANES, LIMIT

    def __init__(self, task: str) -> None:
        self._remote = worker(task)

    def close(self) -> None:
        """End the worker."""
        self._remote.close()

    def reset(self, lanes: Sequence[int], seeds: Sequence[int]) -> Observation:
        """See tasks.Environments.reset."""
        return {STATE: self._remote.ask("reset", lanes=list(lanes), seeds=list(seeds))[1]["observations"]}

    def advance(self, lanes: Sequence[int], chunks: np.ndarray, budgets: np.ndarray) -> Advanced:
        """See tasks.Environments.advance."""
        _, found = self._remote.ask("advance", {"chunks": chunks, "budgets": budgets}, lanes=list(lanes))
        success = found["success"]
        return Advanced({STATE: found["observations"]}, found["steps"], success, success, [{}] * len(success))


@dataclass(frozen=True)
class MetaWorldTask:
    """See tasks.Task."""

    name: str
    inputs: str = "auto"
    kind: str = "metaworld"
    overrides: tuple[str, ...] = ()
    longer: int = 1

    def demonstrations(self, folder: Path) -> EpisodeStore:
        """50 successful episodes of the expert under noise; the dataset's `extra` counts the attempts."""
        path = folder / f"{self.name}-{NUM_DEMONSTRATIONS}"
        if not path.exists():
            temporary = Path(tempfile.mkdtemp(dir=folder, prefix=f".{self.name}-"))
            episodes = list(self._expert_episodes())
            extra = {"attempts": episodes[-1]["seed"] - DEMONSTRATIONS + 1, "noise": NOISE, "linger": LINGER, "limit": LIMIT}
            spec = DatasetSpec(SPEC.features, SPEC.fps, extra)
            write_episodes(temporary, episodes, SPEC.fps, spec)
            temporary.rename(path)
        return EpisodeStore(path)

    def _expert_episodes(self) -> Iterator[dict[str, Any]]:
        remote, seed, kept = worker(self.name), DEMONSTRATIONS, 0
        try:
            while kept < NUM_DEMONSTRATIONS:
                if seed - DEMONSTRATIONS > 10 * NUM_DEMONSTRATIONS:
                    raise WorkerError(f"{self.name}: the expert succeeds in fewer than one of ten episodes")
                facts, arrays = remote.ask("demonstrate", seed=seed, noise=NOISE, limit=LIMIT, linger=LINGER)
                if facts["success"]:
                    arrays = {STATE: arrays["observations"], ACTION: arrays["actions"]}
                    yield {**arrays, TASK: self.name, "success": True, "seed": seed, "source": "expert"}
                    kept += 1
                seed += 1
        finally:
            remote.close()

    def environments(self) -> MetaWorldEnvironments:
        """See tasks.Task.environments."""
        return MetaWorldEnvironments(self.name)

    def describe(self) -> dict[str, Any]:
        """See tasks.Task.describe."""
        return {"metaworld": list(REQUIREMENTS["metaworld"]), "limit": LIMIT, "lanes": LANES}
