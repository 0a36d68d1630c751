"""Pictures of a run: success beside latency and by task, and the ways taken round the obstacles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from policy_bench.detour import REACHED, DetourTask, begin
from policy_bench.summary import DETOUR
from policy_bench.two_modes import both_sides

mpl.use("Agg")
import matplotlib.pyplot as plt

_WON, _COLLIDED, _LOST = "#1b7837", "#b2182b", "#999999"


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return path


def success(path: Path, policies: Mapping[str, Mapping[str, Any]], title: str) -> Path:
    """Success with intervals against latency, and by task."""
    names = list(policies)
    tasks = list(dict.fromkeys(task for row in policies.values() for task in row["by_task"]))
    colours = {name: plt.get_cmap("tab10")(i % 10) for i, name in enumerate(names)}
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 5), width_ratios=[1, 1.6])
    for name in names:
        row = policies[name]
        low, high = row["success_ci"]
        if "latency_ms" in row:
            x = row["latency_ms"]["p50"]
            left.errorbar(x, row["success"], [[row["success"] - low], [high - row["success"]]], fmt="o", color=colours[name])
            left.annotate(name, (x, row["success"]), (6, 4), textcoords="offset points", fontsize=9)
    left.set(xscale="log", xlabel="latency of a decision, ms (p50, batch 1, one thread)", ylabel="success")
    left.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_ylim(-0.03, 1.03)
    left.margins(x=0.2)
    for i, name in enumerate(names):
        at = np.arange(len(tasks)) + (i - (len(names) - 1) / 2) * 0.8 / len(names)
        for x, task in zip(at, tasks, strict=True):
            if cell := policies[name]["by_task"].get(task):
                low, high = cell["success_ci"]
                error = [[cell["success"] - low], [high - cell["success"]]]
                right.errorbar(
                    x, cell["success"], error, fmt="o", ms=4, color=colours[name], label=name if x == at[0] else None
                )
    right.set_xticks(range(len(tasks)), [task.removesuffix("-v3") for task in tasks], rotation=20, ha="right")
    right.set_ylim(-0.03, 1.03)
    right.grid(axis="y", alpha=0.3)
    left.grid(alpha=0.3)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(title)
    return _save(figure, path)


def detours(path: Path, cells: Sequence[Mapping[str, Any]], names: Sequence[str], shown: int = 100) -> Path | None:
    """The first `shown` paths of drawn chunks of every policy, a row for each detour. None when there are no such cells."""
    found = {(c["task"], c["policy"]): c for c in reversed(cells) if c.get("kind") == DETOUR and c["repeats"]}
    tasks = list(dict.fromkeys(c["task"] for c in cells if (c["task"], c["policy"]) in found))
    columns = [name for name in names if any(key[1] == name for key in found)]
    if not tasks:
        return None
    size = (max(3.0 * len(columns), 7.0), 0.6 + 2.4 * len(tasks))
    figure, axes = plt.subplots(len(tasks), len(columns), figsize=size, squeeze=False, layout="constrained")
    for task, line in zip(tasks, axes, strict=True):
        line[0].set_ylabel(task, fontsize=9)
        for name, axis in zip(columns, line, strict=True):
            axis.set(xlim=(-1.25, 1.25), ylim=(-0.85, 0.85), aspect="equal", xticks=[], yticks=[])
            for obstacle in DetourTask(task).obstacles:
                axis.add_patch(plt.Circle((obstacle.x, obstacle.y), obstacle.radius, color="black", alpha=0.25, lw=0))
            if (task, name) not in found:
                axis.set_title(f"{name}: not run", fontsize=8)
                continue
            for outcome in found[task, name]["outcomes"][:shown]:
                colour = _WON if outcome["success"] else _COLLIDED if outcome["facts"]["collided"] else _LOST
                axis.plot(*np.transpose(outcome["facts"]["path"]), color=colour, lw=0.6, alpha=0.6)
            goal = begin(0)[1]
            axis.add_patch(plt.Circle(goal, REACHED, fill=False, color="black", lw=0.8))
            won = np.mean([outcome["success"] for outcome in found[task, name]["outcomes"]])
            both = np.mean(both_sides([found[task, name]]))
            axis.set_title(f"{name}\nsuccess {won:.0%}, both sides {both:.0%}", fontsize=8)
    figure.suptitle(
        "drawn chunks from the left to the goal (circle); green: reached it, red: collided, grey: neither\n"
        "success: of all draws. both sides: of the starts, those from which an obstacle is passed on either side",
        fontsize=9,
    )
    return _save(figure, path)
