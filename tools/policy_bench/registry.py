"""The tasks of each split. What is chosen is chosen on the development tasks; the held-out ones are for reporting."""

from __future__ import annotations

from collections.abc import Sequence

from policy_bench.detour import DetourTask
from policy_bench.metaworld import MetaWorldTask
from policy_bench.simulated import SimulatedTask
from policy_bench.tasks import Task
from robopolicy.spec import did_you_mean

# Held-out Meta-World tasks span easy to hard; each expert succeeds in over 90 % of its episodes under the noise of the
# demonstrations. No policy's results there took part in the choice.
_METAWORLD = {
    "development": ("peg-insert-side-v3", "stick-push-v3", "coffee-pull-v3"),
    "held_out": ("drawer-open-v3", "pick-place-v3", "hand-insert-v3", "shelf-place-v3", "assembly-v3", "stick-pull-v3"),
}
_DETOUR = {"development": ("detour-centre",), "held_out": ("detour-offset", "detour-twice")}
_SIMULATED = {
    "development": (SimulatedTask("pick-place-points", "robopolicy/PickPlace-v0", "points", ("state", "points")),),
    "held_out": (
        SimulatedTask("lift-points", "robopolicy/Lift-v0", "points", ("state", "points")),
        SimulatedTask("push-images", "robopolicy/Push-v0", "images", ("state", "images.front")),
    ),
}
QUICK = {"development": ("coffee-pull-v3",), "held_out": ("drawer-open-v3",)}


def tasks(split: str) -> dict[str, Task]:
    """The tasks of a split by name."""
    found: list[Task] = [MetaWorldTask(name) for name in _METAWORLD[split]]
    found += [DetourTask(name) for name in _DETOUR[split]]
    found += _SIMULATED[split]
    return {task.name: task for task in found}


def chosen(split: str, names: Sequence[str]) -> list[Task]:
    """Tasks of a split by name or kind ("metaworld", "detour", "simulated"), in the order of the split.

    Raises:
        ValueError: a name that is neither.
    """
    known = tasks(split)
    kinds = {task.kind for task in known.values()}
    for name in names:
        if name not in known and name not in kinds:
            raise ValueError(f"no task {name!r} in the split {split}: {did_you_mean(name, [*known, *kinds])}")
    return [task for task in known.values() if task.name in names or task.kind in names]
