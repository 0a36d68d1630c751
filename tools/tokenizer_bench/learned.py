"""The datasets, and our tokenizers trained on them by the product's own loop, in the tokenizer phase of its policy."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from policy_bench.metaworld import MetaWorldTask
from policy_bench.simulated import SimulatedTask
from policy_bench.tasks import Task

from robopolicy.batch import Phase
from robopolicy.config import TrainConfig
from robopolicy.data.episodes import EpisodeStore
from robopolicy.data.windows import Windows
from robopolicy.models.coarse_to_fine import CoarseToFineTransformer
from robopolicy.models.tokenizer import MultiScaleTokenizer
from robopolicy.policies.carp import TOKENIZER, CarpPolicy
from robopolicy.spec import ACTION, STATE, Array
from robopolicy.train.loop import train
from robopolicy.train.plan import seeded

HORIZON, LEARNING_RATE = 16, 2e-3
HELD_OUT = 0.2  # of the episodes
METRES = 0.01  # what a Meta-World command of 1 moves the hand by

VARIANTS: dict[str, dict[str, Any]] = {
    "fsq joint 1,2,4": {"scales": (1, 2, 4)},
    "fsq joint 1,2,4,8": {"scales": (1, 2, 4, 8)},
    "fsq threes 1,2,4": {"scales": (1, 2, 4), "group_size": 3},
    "fsq each 1,2,4": {"scales": (1, 2, 4), "group_size": 1},
    "vq each 1,2,3,4": {"scales": (1, 2, 3, 4), "group_size": 1, "quantiser": "vq"},
}
TASKS: dict[str, Task] = {
    "pick-place-v3": MetaWorldTask("pick-place-v3"),
    "assembly-v3": MetaWorldTask("assembly-v3"),
    "lift": SimulatedTask("lift-state", "robopolicy/Lift-v0", "auto", ("state",)),
}


@dataclass(frozen=True)
class Entry:
    """An entry of an action: its kind and the kind's units in one of the dataset's."""

    name: str
    kind: str  # "mm", "mrad" or "gripper"
    factor: float


def entries(task: Task, store: EpisodeStore) -> list[Entry]:
    """The entries of the actions of a task."""
    metres = METRES if isinstance(task, MetaWorldTask) else 1.0
    found = []
    for name in store.spec.action.names:
        kind = "gripper" if name == "gripper" else "mrad" if name in ("rx", "ry", "rz") else "mm"
        found.append(Entry(name, kind, {"mm": 1e3 * metres, "mrad": 1e3, "gripper": 1.0}[kind]))
    return found


@dataclass(frozen=True)
class Split:
    """Windows of disjoint episodes, and all their chunks [N, H, A], physical."""

    training: Windows
    chunks: Array
    held_out: Array


def split(store: EpisodeStore, seed: int) -> Split:
    """A random split by episodes."""
    order = np.random.default_rng(seed).permutation(len(store))
    count = max(1, round(HELD_OUT * len(store)))
    parts = [Windows(store, (STATE,), 1, HORIZON, episodes=np.sort(part).tolist()) for part in (order[count:], order[:count])]
    chunks = [part.batch(np.arange(len(part)))[ACTION] for part in parts]
    return Split(parts[0], *chunks)


def trained(data: Split, options: Mapping[str, Any], steps: int, seed: int, folder: Path) -> tuple[CarpPolicy, float]:
    """A policy whose tokenizer was trained, its transformer not, and the CPU seconds that this took."""
    spec = data.training.spec
    with seeded(seed):
        transformer = {"width": 8, "depth": 1, "num_heads": 1, "refine": False, "num_categorical": None}
        policy = CarpPolicy(
            {STATE: spec.features[STATE]},
            spec.action,
            spec.fps,
            action_horizon=HORIZON,
            tokenizer=partial(MultiScaleTokenizer, **options),
            transformer=partial(CoarseToFineTransformer, **transformer),
        )
    policy.phases = (Phase(TOKENIZER, 1.0, LEARNING_RATE),)
    settings = TrainConfig(
        steps=steps, num_checkpoints=1, seed=seed, ema_decay=0.995, log_every=steps, save_every_seconds=1e9, progress=False
    )
    start = time.process_time()
    train(policy, data.training, folder, config={}, settings=settings, kind="policy")
    return policy.requires_grad_(False), time.process_time() - start
