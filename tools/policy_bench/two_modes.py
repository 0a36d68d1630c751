"""Figures of the detours: whether a policy keeps both ways round an obstacle, of its best guesses and of drawn chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from policy_bench.summary import BASE, DETOUR, Cell, paired, share

BEST, DRAWN = "best", "drawn"


def summarise(cells: Sequence[Cell], names: Sequence[str], seed: int) -> dict[str, Any]:
    """{"policies": {policy: {task: {best, drawn: figures}}}, "paired": {best, drawn: {rival: BASE minus rival}}}.

    Best guesses are paired by start (McNemar's test); drawn chunks by start, too, as shares of the draws from it.
    """
    detours = [cell for cell in cells if "error" not in cell and cell["kind"] == DETOUR]
    kinds = {BEST: [c for c in detours if not c["repeats"]], DRAWN: [c for c in detours if c["repeats"]]}
    policies: dict[str, dict[str, Any]] = {}
    for name in names:
        for kind, of_kind in kinds.items():
            for task in dict.fromkeys(cell["task"] for cell in of_kind if cell["policy"] == name):
                own = [cell for cell in of_kind if (cell["policy"], cell["task"]) == (name, task)]
                policies.setdefault(name, {}).setdefault(task, {})[kind] = _figures(own)
    rivals = [name for name in policies if name != BASE] if BASE in policies else []
    return {"policies": policies, "paired": {k: {r: paired(of_kind, r, seed) for r in rivals} for k, of_kind in kinds.items()}}


def _figures(cells: Sequence[Cell]) -> dict[str, Any]:
    """Success, collisions and left among the passed sides, each with a Wilson interval that takes draws as independent.

    ways: how often each series of sides was taken. both_sides (drawn chunks): share of starts (times obstacles) from
    which an obstacle was passed on the left in some draw and on the right in another.
    """
    outcomes = [outcome for cell in cells for outcome in cell["outcomes"]]
    ways = [outcome["facts"]["sides"] for outcome in outcomes]
    found: dict[str, Any] = {
        "success": share([outcome["success"] for outcome in outcomes]),
        "collided": share([outcome["facts"]["collided"] for outcome in outcomes]),
        "left": share([side == "L" for way in ways for side in way]),
        "ways": {way or "none": ways.count(way) for way in sorted(set(ways))},
        "by_seed": {str(cell["seed"]): float(np.mean([o["success"] for o in cell["outcomes"]])) for cell in cells},
    }
    if any(cell["repeats"] for cell in cells):
        found["both_sides"] = share(both_sides(cells))
    return found


def both_sides(cells: Sequence[Cell]) -> list[bool]:
    """For every training seed, start and obstacle: was it passed on either side in the draws from the start?

    The number of obstacles is that of the longest way in the cells, at least one.
    """
    taken: dict[tuple[int, int], list[str]] = defaultdict(list)
    for cell in cells:
        for outcome in cell["outcomes"]:
            taken[cell["seed"], outcome["seed"]].append(outcome["facts"]["sides"])
    obstacles = max([1, *(len(way) for ways in taken.values() for way in ways)])
    return [{"L", "R"} <= {way[i : i + 1] for way in ways} for ways in taken.values() for i in range(obstacles)]


def table(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    lines = []
    for kind, title in ((BEST, "two ways, best guess"), (DRAWN, "two ways, drawn chunks")):
        columns = ("success", "collided", "left", *(("both_sides",) if kind == DRAWN else ()))
        rows = [(n, t, row[kind]) for n, by_task in result["policies"].items() for t, row in by_task.items() if kind in row]
        if rows:
            lines.append(f"\n{title:24}{'':16}" + "".join(f"{column.replace('_', ' '):>24}" for column in columns))
        lines += [f"{n:24}{t:16}" + "".join(f"{_text(row[column]):>24}" for column in columns) for n, t, row in rows]
        pairs = {rival: row for rival, row in result["paired"][kind].items() if row}
        if pairs:
            lines.append(f"\n{f'{BASE} minus, {kind}':24}{'difference':>11}  {'95 % interval':20}{'McNemar p':>10}")
        for rival, row in pairs.items():
            low, high = row["interval"]
            p = "-" if row["mcnemar_p"] is None else f"{row['mcnemar_p']:.2g}"
            lines.append(f"{rival:24}{row['difference']:+11.3f}  {f'[{low:+.3f}, {high:+.3f}]':20}{p:>10}")
    return "\n".join(lines)


def _text(row: Mapping[str, Any] | None) -> str:
    return f"{row['share']:.3f} [{row['ci'][0]:.3f}, {row['ci'][1]:.3f}]" if row else "-"
