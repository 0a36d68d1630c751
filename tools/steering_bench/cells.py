"""Cells of the benchmark: arms on the same conditions, played in blocks that are kept as they come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robopolicy.checkpoint import list_checkpoints, sha256
from robopolicy.data.collect import environment, play
from robopolicy.evaluation.branches import OracleActor
from robopolicy.evaluation.critic_quality import FILE as QUALITY_FILE
from robopolicy.evaluation.critic_quality import NEVER, best_checkpoint
from robopolicy.evaluation.proof import is_proven
from robopolicy.evaluation.rollout import Arm, PolicyActor, Suite, arm_policy, observing, write_table
from robopolicy.policies.steering import Decision, SteeredPolicy
from robopolicy.ranking.statistics import mcnemar
from steering_bench.study import DEVELOPMENT, HELD_OUT, REPORTED_IN, TRAINED_IN, Study

BLOCK = 25  # episodes that are kept together


@dataclass(frozen=True)
class Method:
    """How a base policy is steered. critic: (option of conf/critic, data, overrides), None = not at all.

    steer: keyword arguments of SteeredPolicy; oracle: branching instead of a critic. chooser: the figure of Quality by which
    the critic's checkpoint is chosen, "last" = none.
    """

    name: str
    critic: tuple[str, str, tuple[str, ...]] | None = None
    steer: Mapping[str, Any] = field(default_factory=dict)
    oracle: int = 0
    chooser: str = "within"


@dataclass(frozen=True)
class Cell:
    """A method on a base policy of a task, in one of the two splits."""

    task: str
    family: str
    strength: str
    method: Method
    split: str  # "development" or "held_out"

    @property
    def base(self) -> tuple[str, str, str]:
        """What is steered."""
        return self.task, self.family, self.strength

    @property
    def key(self) -> str:
        """Its name."""
        return "/".join((*self.base, self.split, self.method.name))


def arm_of(study: Study, cell: Cell) -> Arm:
    """The arm that a cell plays."""
    arm = replace(study.arm(*cell.base), name=cell.method.name)
    if cell.method.critic or cell.method.oracle:
        arm = replace(arm, perturb=study.perturbed(cell.family))
    if cell.method.critic is None:
        return arm
    kind, data, overrides = cell.method.critic
    run, checkpoint = study.critic(cell.task, cell.family, kind, data, overrides)
    if cell.method.chooser != "within":
        checkpoint = chosen(run, cell.method.chooser)
    steer = dict(cell.method.steer)
    if "min_gain" in steer and steer["min_gain"] is None:
        steer["min_gain"] = 0.0 if proof(study, cell)["proven"] else NEVER
    if steer.get("min_gain", 0.0) >= NEVER:
        return replace(arm, perturb={})  # candidate 0 always: the base itself
    return replace(arm, critic=str(checkpoint), steer=steer)


def chosen(run: Path, by: str) -> Path:
    """The checkpoint of a critic's run with the highest figure of this name on branches; by="last": the last one."""
    checkpoints = list_checkpoints(run)
    return checkpoints[-1] if by == "last" else best_checkpoint(checkpoints, run / QUALITY_FILE, by)


def proof(study: Study, cell: Cell) -> dict[str, Any]:
    """What opens the gate of a cell's method: paired episodes in the development worlds, base and ungated."""
    ungated = replace(cell.method, steer={**cell.method.steer, "min_gain": 0.0})
    arms = (Method("base"), ungated)
    played_by = []
    for method in arms:
        played, length = Cell(*cell.base, method, "development"), study.sizes.proof
        arm = arm_of(study, played)
        tables = [play_cell(study, played, arm, start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
        played_by.append(pa.concat_tables(tables))
    if not played_by[0]["condition"].equals(played_by[1]["condition"]):
        raise ValueError(f"{cell.key}: base and steered were played in different worlds: remove {study.root / 'cells'}")
    outcomes = [table["success"].to_numpy(zero_copy_only=False) for table in played_by]
    only_base, only_steered, p_value = mcnemar(*outcomes)
    found = {"pairs": len(outcomes[0]), "only_base": only_base, "only_steered": only_steered, "p_value": p_value}
    return {**found, "proven": is_proven(only_base, only_steered, p_value)}


def suite_of(study: Study, cell: Cell, episodes: int) -> Suite:
    """Development: the randomisation of training, its own seeds. Held out: another randomisation, other seeds."""
    use, where = (DEVELOPMENT, TRAINED_IN) if cell.split == "development" else (HELD_OUT, REPORTED_IN)
    return study.suite(cell.task, where, episodes, use)


def play_cell(study: Study, cell: Cell, arm: Arm, start: int, stop: int) -> pa.Table:
    """The rows of episodes start..stop - 1 of a cell and its arm, from their file where it is there."""
    suite = suite_of(study, cell, stop)
    facts = [sha256(arm.checkpoint), arm.critic and sha256(arm.critic), dict(arm.steer), dict(arm.perturb), cell.method.oracle]
    worlds = [suite.env_id, suite.env_kwargs, suite.seeds[0]]  # the first seed stands for all that follow from it
    digest = hashlib.sha256(json.dumps([*facts, *worlds], sort_keys=True).encode()).hexdigest()[:12]
    name = f"{'-'.join(cell.base)}-{cell.split}-{digest}"  # methods that come to the same are played once
    file = study.root / "cells" / name / f"{start:05d}_{stop:05d}.parquet"
    if file.is_file():
        return pq.read_table(file)
    rows = [_episode(arm, suite, seed, cell.method.oracle) for seed in suite.seeds[start:stop]]
    write_table(file, pa.Table.from_pylist([{**row, "digest": digest} for row in rows]))
    return pq.read_table(file)


def _episode(arm: Arm, suite: Suite, seed: int, oracle: int) -> dict[str, Any]:
    policy = arm_policy(arm)
    decisions: list[Decision] = []
    if isinstance(policy, SteeredPolicy):
        policy._watch = decisions.append
    actor = OracleActor(policy, oracle) if oracle else PolicyActor(policy)
    env = environment(suite.env_id, observing(suite.env_kwargs, policy))
    row = play(env, actor, seed).row
    left = float(np.mean([d.index[0] != 0 for d in decisions])) if decisions else 0.0
    kept = {key: row[key] for key in ("success", "length", "progress", "seconds")}
    return {"condition": str(seed), **kept, "deviation": left, "decisions": len(decisions)}


def in_rounds(
    study: Study, cells: Sequence[Cell], episodes: int, done: Callable[[Cell, pa.Table], None], until: Callable[[], bool]
) -> dict[str, pa.Table]:
    """Episodes of all cells, a block of each in turn, so that a benchmark that is stopped has all of them alike."""
    found: dict[str, list[pa.Table]] = {}
    arms: dict[str, Arm] = {}
    for start in range(0, episodes, BLOCK):
        for cell in cells:
            if until():
                break
            if cell.key not in arms:
                arms[cell.key] = arm_of(study, cell)
            table = play_cell(study, cell, arms[cell.key], start, min(start + BLOCK, episodes))
            found.setdefault(cell.key, []).append(table)
            done(cell, pa.concat_tables(found[cell.key]))
    return {key: pa.concat_tables(tables) for key, tables in found.items()}
