"""Work units of a ranking: one checkpoint on a block of conditions, each with a result file of its own.

A file's name is the hash of all that its content depends on. What is there is not played again, so a run that was killed goes
on where it stopped, and the same checkpoint in another pool costs nothing. Where and how often a unit ran leaves no trace.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from robopolicy.checkpoint import sha256
from robopolicy.evaluation.rollout import Arm, play_block
from robopolicy.executor import Executor, map_units
from robopolicy.files import atomic_write
from robopolicy.selection.suite import FrozenSuite

logger = logging.getLogger(__name__)

BLOCK = 10  # conditions of a unit
PLAYED_BY = ("robopolicy", "pybullet", "mujoco", "torch", "numpy")  # other versions play other episodes


@dataclass(frozen=True)
class Unit:
    """Conditions start..stop of a split for one arm; file: where its result belongs."""

    arm: Arm
    suite: FrozenSuite
    split: str
    start: int
    stop: int
    file: Path

    def __len__(self) -> int:
        return self.stop - self.start


def _identity(arm: Arm, sha: str) -> list[Any]:
    critic = "" if arm.critic is None else sha256(arm.critic)
    steering = [critic, dict(arm.steer)]
    if arm.safety is not None or arm.perturb:
        steering += ["" if arm.safety is None else sha256(arm.safety), dict(arm.perturb)]
    return [sha, *steering, arm.instruction, *([dict(arm.noise)] if arm.noise else [])]


def played_by() -> list[str]:
    """The versions of what plays episodes and runs checkpoints."""
    return [version(name) for name in PLAYED_BY]


def plan(
    arms: Sequence[Arm], shas: Mapping[str, str], suite: FrozenSuite, split: str, start: int, stop: int, folder: Path
) -> list[Unit]:
    """The units of conditions start..stop; blocks lie at multiples of BLOCK, whatever was played before. shas: see hashes."""
    units, versions = [], played_by()
    edges = [start, *range((start // BLOCK + 1) * BLOCK, stop, BLOCK), stop]
    for arm in arms:
        identity = _identity(arm, shas[arm.checkpoint])
        for first, last in pairwise(edges):
            seeds = suite.splits[split][first:last]
            if seeds:
                key = json.dumps([identity, suite.worlds, list(seeds), versions], sort_keys=True)
                name = hashlib.sha256(key.encode()).hexdigest()
                units.append(Unit(arm, suite, split, first, last, folder / name[:2] / f"{name}.json"))
    return units


def _play(unit: Unit) -> int:
    """Play a unit and keep the result; the number of its episodes."""
    if not unit.file.exists():  # another try of it may have been slow, not dead
        rows = play_block((unit.arm, unit.suite.block(unit.split, unit.start, unit.stop)))
        unit.file.parent.mkdir(parents=True, exist_ok=True)
        own = [{key: value for key, value in row.items() if key not in _OF_ARM} for row in rows]
        atomic_write(unit.file, json.dumps(own, default=_plain).encode())
    return len(unit)


_OF_ARM = ("checkpoint", "run", "step", "suite", "split")  # of the pool and the suite, not of what was played


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def read(units: Sequence[Unit]) -> pa.Table:
    """The episode table of finished units, in their order."""
    rows: list[dict[str, Any]] = []
    for unit in units:
        arm = {"checkpoint": unit.arm.name, "run": unit.arm.run, "step": unit.arm.step}
        where = {"suite": unit.suite.name, "split": unit.split}
        definition = {"horizon": unit.suite.horizon, "discount": unit.suite.discount}
        rows += [{**arm, **where, **row, **definition} for row in json.loads(unit.file.read_bytes())]
    return pa.Table.from_pylist(rows)


def run(units: Sequence[Unit], num_workers: int | None, title: str, executor: Executor | None = None) -> pa.Table:
    """Play what is missing and return the episode table of all."""
    missing = [unit for unit in units if not unit.file.exists()]
    if missing:
        done = len(units) - len(missing)
        title = f"{title} ({done} of {len(units)} blocks are there)" if done else title
        options: dict[str, Any] = {"executor": executor, "unit_name": "episode"}
        map_units(_play, missing, num_workers, title, weight=len, **options)
    return read(units)


def seconds_per_episode(units: Sequence[Unit], num_workers: int | None, executor: Executor | None = None) -> float:
    """Mean seconds that an episode of these units took; where none was played yet, the first block is."""
    done = [unit for unit in units if unit.file.exists()]
    if not done:
        done = list(units[:1])
        run(done, num_workers, "a first block, to know what the rest will cost", executor)
    return float(np.mean([row["seconds"] for unit in done[:50] for row in json.loads(unit.file.read_bytes())]))


def num_missing(units: Sequence[Unit]) -> int:
    """Episodes of units that were not played yet."""
    return sum(len(unit) for unit in units if not unit.file.exists())


def duration(seconds: float) -> str:
    """Seconds for people: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def hashes(arms: Sequence[Arm]) -> Mapping[str, str]:
    """{checkpoint folder: its sha256}. Reads every file: done once for a pool."""
    return {arm.checkpoint: sha256(arm.checkpoint) for arm in arms}
