"""The work of a run: for every task, training seed and distinct training one job, which also evaluates all that share it."""

from __future__ import annotations

import sys
import traceback
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from policy_bench.cells import Budget, Contender, Evaluation, Training, settings
from policy_bench.tasks import Environments, Task
from robopolicy.config import ConfigError
from robopolicy.data.episodes import EpisodeStore
from robopolicy.executor import map_units

REPEATS = 10  # of every episode with drawn chunks, in the detours


@dataclass(frozen=True)
class Job:
    """A training and what is evaluated of it."""

    task: Task
    seed: int
    contenders: tuple[Contender, ...]


def available(contenders: Mapping[str, Contender], budget: Budget, task: Task) -> tuple[list[Contender], dict[str, str]]:
    """The contenders whose configuration composes, and why the others do not."""
    good, missing = [], {}
    for name, contender in contenders.items():
        try:
            settings(contender, budget, 0, task, Path("-"))
            good.append(contender)
        except ConfigError as error:
            missing[name] = str(error)
    return good, missing


def plan(tasks: Sequence[Task], contenders: Sequence[Contender], seeds: Sequence[int]) -> list[Job]:
    """The jobs, contenders with equal overrides together."""
    shared: dict[tuple[str, ...], list[Contender]] = defaultdict(list)
    for contender in contenders:
        shared[contender.train].append(contender)
    return [Job(task, seed, tuple(group)) for task in tasks for seed in seeds for group in shared.values()]


def record(tasks: Sequence[Task], folder: Path, num_workers: int) -> dict[str, EpisodeStore]:
    """The demonstrations of all tasks, made when they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    simulated = [task for task in tasks if task.kind == "simulated"]  # collection has its own processes
    map_units(partial(_record, folder=folder), [t for t in tasks if t not in simulated], num_workers, "demonstrations")
    for task in simulated:
        task.demonstrations(folder)
    return {task.name: task.demonstrations(folder) for task in tasks}


def _record(task: Task, folder: Path) -> None:
    task.demonstrations(folder)


def work(jobs: Sequence[Job], split: str, budget: Budget, folder: Path, num_workers: int) -> list[list[dict[str, Any]]]:
    """The cells of every job, of finished ones from their files; a cell that failed is {"policy", "task", "error"}."""
    return map_units(partial(run, split=split, budget=budget, folder=folder), jobs, num_workers, "cells")


def run(job: Job, split: str, budget: Budget, folder: Path) -> list[dict[str, Any]]:
    """The cells of a job."""
    try:
        store = job.task.demonstrations(folder / "data")
        config = settings(job.contenders[0], budget, job.seed, job.task, store.path)
        training = Training.of(job.task, store, config, folder)
        cost = training.run()
        kinds = (0, REPEATS) if job.task.kind == "detour" else (0,)
        cells = [
            Evaluation.of(training, contender, split, budget.episodes, job.seed, folder, repeats)
            for contender in job.contenders
            for repeats in kinds
        ]
        missing = [cell for cell in cells if not cell.finished()]
        if missing:
            environments = _environments(job.task)
            for cell in missing:
                cell.run(environments)
    except Exception as error:  # one failure must not cost the other cells
        traceback.print_exc()
        sys.stderr.flush()
        facts = {"task": job.task.name, "seed": job.seed, "error": f"{type(error).__name__}: {error}"}
        return [{**facts, "policy": contender.name} for contender in job.contenders]
    facts = {"cost": cost, "seed": job.seed, "kind": job.task.kind, "folder": str(training.folder)}
    return [{**cell.read(), **facts, "policy": cell.contender.name} for cell in cells]


_held: dict[str, Environments] = {}


def _environments(task: Task) -> Environments:
    """The environments of a task, which this process keeps until it is asked for those of another one."""
    if task.name not in _held:
        while _held:
            _held.popitem()[1].close()
        _held[task.name] = task.environments()
    return _held[task.name]
