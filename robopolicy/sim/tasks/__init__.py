"""The tasks, a file each: module pick_place holds class PickPlace. conf/task/<module>.yaml gives it its gymnasium ids."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from robopolicy.resources import conf_dir
from robopolicy.sim.tasks.base import Task
from robopolicy.spec import did_you_mean


def task_names() -> list[str]:
    """Names of all tasks of RobotEnv: those with a file in conf/task and one here."""
    here = Path(__file__).parent
    return sorted(path.stem for path in (conf_dir() / "task").glob("*.yaml") if (here / f"{path.stem}.py").is_file())


def make_task(name: str) -> Task:
    """The task `name`, e.g. "pick_place". Raises ValueError naming the closest tasks when there is none."""
    if name not in task_names():
        raise ValueError(f"task={name!r}; {did_you_mean(name, task_names())}")
    module = importlib.import_module(f"robopolicy.sim.tasks.{name}")
    return getattr(module, name.title().replace("_", ""))()


@cache
def parameter_names() -> frozenset[str]:
    """Names of the parameters that any task has of its own."""
    return frozenset(name for task in task_names() for name in make_task(task).parameters)
