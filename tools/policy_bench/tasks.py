"""What the benchmark asks of a task, the seeds of its episodes, and where its demonstrations lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from robopolicy.data.episodes import EpisodeStore
from robopolicy.spec import Observation

# First episode seed of each use. They never meet: a use has a million seeds.
DEMONSTRATIONS, DEVELOPMENT, HELD_OUT = 1_000_000, 2_000_000, 3_000_000
SPLITS = {"development": DEVELOPMENT, "seen": HELD_OUT, "held_out": HELD_OUT}


@dataclass(frozen=True)
class Advanced:
    """What a chunk led to in n lanes: the observation after the last step, whether the episode is over, its outcome.

    steps: executed steps of each chunk, int [n]. success, ended: bool [n]; success implies ended.
    facts: further values of the task at this moment, one mapping a lane.
    """

    observations: Observation
    steps: np.ndarray
    success: np.ndarray
    ended: np.ndarray
    facts: list[dict[str, Any]]


class Environments(Protocol):
    """A number of environments of one task that run side by side, in lanes."""

    lanes: int
    limit: int

    def reset(self, lanes: Sequence[int], seeds: Sequence[int]) -> Observation:
        """Begin the episodes of `seeds` in `lanes`; observations {key: [n, ...]}."""

    def advance(self, lanes: Sequence[int], chunks: np.ndarray, budgets: np.ndarray) -> Advanced:
        """Execute chunks [n, h, A] in `lanes`, at most `budgets` [n] steps of each."""

    def close(self) -> None:
        """Free them."""


class Task(Protocol):
    """A task with demonstrations and environments in which episodes of policies run in lock step.

    kind: "metaworld", "simulated" or "detour". inputs: option of conf/inputs that its policies are given.
    overrides: of conf/train.yaml, for all policies on this task. longer: how many times as many training steps they get.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def inputs(self) -> str: ...  # noqa: D102
    @property
    def overrides(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def longer(self) -> int: ...  # noqa: D102

    def demonstrations(self, folder: Path) -> EpisodeStore:
        """The dataset of demonstrations, recorded below `folder` when it is not there."""

    def environments(self) -> Environments:
        """Environments for evaluation; they serve every split, whose seeds differ."""

    def describe(self) -> dict[str, Any]:
        """Everything that determines an episode beside its seed, for the identity of a cell."""
