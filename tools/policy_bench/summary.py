"""From cells to figures: success with intervals, paired differences, costs. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robopolicy.ranking.statistics import (
    bootstrap_weights,
    cluster_bootstrap,
    paired_comparison,
    percentile_interval,
    stream,
    wilson_interval,
)

BASE = "carp"
NUM_BOOTSTRAP = 10_000
DETOUR = "detour"
Cell = Mapping[str, Any]


def summarise(cells: Sequence[Cell], names: Sequence[str], seed: int) -> dict[str, Any]:
    """Every figure of a run but latency.

    The headline `success` of a policy is over all manipulation tasks, each with the same number of episodes; the detours, where
    there are two ways, are apart in `two_modes`. A run of detours alone has those in the headline.
    """
    failed = [cell for cell in cells if "error" in cell]
    good = [cell for cell in cells if "error" not in cell]
    best = [cell for cell in good if not cell["repeats"]]
    manipulation = [cell for cell in best if cell["kind"] != DETOUR]
    detours = [cell for cell in best if cell["kind"] == DETOUR]
    policies: dict[str, dict[str, Any]] = {}
    for name in names:
        own = [cell for cell in (manipulation or detours) if cell["policy"] == name]
        if not own:
            continue
        every = [cell for cell in best if cell["policy"] == name]
        policies[name] = {
            **_rate(own),
            "num_tasks": len({cell["task"] for cell in own}),
            "params": int(np.median([cell["cost"]["params"] for cell in own])),
            "train_cpu_s": float(np.mean([cell["cost"]["cpu_s"] for cell in own])),
            "train_wall_s": float(np.mean([cell["cost"]["wall_s"] for cell in own])),
            "by_kind": {k: _rate([c for c in every if c["kind"] == k]) for k in dict.fromkeys(c["kind"] for c in every)},
            "by_task": {t: _by_task([c for c in every if c["task"] == t]) for t in dict.fromkeys(c["task"] for c in every)},
            "two_modes": _two_modes([cell for cell in good if cell["policy"] == name and cell["kind"] == DETOUR]),
        }
    result: dict[str, Any] = {"policies": policies, "failed": failed}
    if BASE in policies:
        rivals = [name for name in policies if name != BASE]
        result["paired"] = {r: _paired(manipulation or detours, r, seed) for r in rivals}
        if manipulation and detours:
            result["paired_two_modes"] = {r: _paired(detours, r, seed) for r in rivals}
    return result


def _rate(cells: Sequence[Cell]) -> dict[str, Any]:
    """Success with its Wilson interval over all episodes of the cells."""
    success = [outcome["success"] for cell in cells for outcome in cell["outcomes"]]
    low, high = wilson_interval(sum(success), len(success))
    return {"success": float(np.mean(success)), "success_ci": [float(low), float(high)], "episodes": len(success)}


def _by_task(cells: Sequence[Cell]) -> dict[str, Any]:
    outcomes = [outcome for cell in cells for outcome in cell["outcomes"]]
    won = [outcome["steps"] for outcome in outcomes if outcome["success"]]
    return {
        **_rate(cells),
        "steps_of_successes": float(np.mean(won)) if won else None,
        "jerk": float(np.mean([outcome["jerk"] for outcome in outcomes])),
        "params": cells[0]["cost"]["params"],
        "train_cpu_s": float(np.mean([cell["cost"]["cpu_s"] for cell in cells])),
        "train_wall_s": float(np.mean([cell["cost"]["wall_s"] for cell in cells])),
        "by_seed": {str(cell["seed"]): float(np.mean([o["success"] for o in cell["outcomes"]])) for cell in cells},
        "successes": {str(cell["seed"]): "".join(str(int(o["success"])) for o in cell["outcomes"]) for cell in cells},
    }


def _two_modes(cells: Sequence[Cell]) -> dict[str, Any]:
    """By detour, of the best guesses and of drawn chunks: success, collisions, the ways taken; whether both sides occur.

    both_sides: share of the repeated conditions in whose episodes the first obstacle was passed on either side.
    """
    found: dict[str, dict[str, Any]] = {}
    for cell in cells:
        outcomes = cell["outcomes"]
        ways = [outcome["facts"]["sides"] for outcome in outcomes]
        passed = [way[0] for way in ways if way]
        row = {
            "success": float(np.mean([outcome["success"] for outcome in outcomes])),
            "collided": float(np.mean([outcome["facts"]["collided"] for outcome in outcomes])),
            "left": passed.count("L") / len(passed) if passed else None,
            "ways": {way: ways.count(way) for way in sorted(set(ways))},
        }
        if cell["repeats"]:
            sides: dict[int, set[str]] = {}
            for outcome, way in zip(outcomes, ways, strict=True):
                sides.setdefault(outcome["seed"], set()).update(way[:1])
            row["both_sides"] = float(np.mean([len(both) == 2 for both in sides.values()]))
        key = "drawn" if cell["repeats"] else "best"
        found.setdefault(cell["task"], {}).setdefault(key, {})[str(cell["seed"])] = row
    return found


def _paired(cells: Sequence[Cell], rival: str, seed: int) -> dict[str, Any]:
    """BASE minus rival on the same episodes of the tasks that both were run on.

    interval: bootstrap over pairs, the tasks held fixed. interval_tasks: tasks drawn too, pairs within them: what a new
    choice of tasks might give. Training seeds count as further episodes of a pair.
    """
    outcomes = {name: _conditions(cells, name) for name in (BASE, rival)}
    shared = sorted(set(outcomes[BASE]) & set(outcomes[rival]))
    if not shared:
        return {}
    ours, theirs = (np.array([sum(outcomes[name][c]) for c in shared]) for name in (BASE, rival))
    counts = np.array([len(outcomes[BASE][c]) for c in shared])
    if any(len(outcomes[rival][c]) != n for c, n in zip(shared, counts, strict=True)):
        return {}
    found = paired_comparison(theirs, ours, counts, stream(seed, "paired", rival), NUM_BOOTSTRAP)
    names = np.array([task for task, _ in shared])
    generator = stream(seed, "tasks", rival)
    means = {task: _drawn_means((ours - theirs)[names == task] / counts[names == task], generator) for task in set(names)}
    tasks = sorted(means)
    draws = cluster_bootstrap(lambda rows: rows, [str(i) for i in range(len(tasks))], generator, NUM_BOOTSTRAP).astype(int)
    spread = np.array([np.mean([means[tasks[task]][b] for task in row]) for b, row in enumerate(draws)])
    return {
        "difference": found.difference,
        "interval": list(found.difference_interval),
        "interval_tasks": list(percentile_interval(spread)),
        "mcnemar_p": found.p_value,
        "only_carp": found.only_other,
        "only_rival": found.only_base,
        "pairs": found.num_conditions,
        "by_task": {task: float(((ours - theirs) / counts)[names == task].mean()) for task in tasks},
    }


def _drawn_means(differences: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return bootstrap_weights(len(differences), NUM_BOOTSTRAP, generator) @ differences / len(differences)


def _conditions(cells: Sequence[Cell], name: str) -> dict[tuple[str, int], list[bool]]:
    """{(task, episode seed): its outcomes, one a training seed}."""
    found: dict[tuple[str, int], list[bool]] = {}
    for cell in cells:
        if cell["policy"] == name:
            for outcome in cell["outcomes"]:
                found.setdefault((cell["task"], outcome["seed"]), []).append(outcome["success"])
    return found


def table(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    policies = result["policies"]
    tasks = list(dict.fromkeys(task for row in policies.values() for task in row["by_task"]))
    short = {task: task.removesuffix("-v3")[:14] for task in tasks}
    lines = [f"{'success':12}{'all':>7} {'95 % interval':16}" + "".join(f"{short[task]:>15}" for task in tasks)]
    for name, row in policies.items():
        low, high = row["success_ci"]
        cells = [f"{row['by_task'][task]['success']:.3f}" if task in row["by_task"] else "-" for task in tasks]
        lines.append(f"{name:12}{row['success']:7.3f} [{low:.3f}, {high:.3f}]  " + "".join(f"{cell:>15}" for cell in cells))
    lines.append(f"\n{'cost':12}{'params':>10}{'train cpu s':>13}{'train wall s':>14}{'jerk':>8}")
    for name, row in policies.items():
        jerk = np.mean([cell["jerk"] for cell in row["by_task"].values()])
        lines.append(f"{name:12}{row['params']:10d}{row['train_cpu_s']:13.1f}{row['train_wall_s']:14.1f}{jerk:8.4f}")
    for title, key in (("carp minus", "paired"), ("carp minus, two ways", "paired_two_modes")):
        rows = {rival: row for rival, row in result.get(key, {}).items() if row}
        if rows:
            lines.append(f"\n{title:22}{'difference':>11}  {'95 % interval':20}{'tasks drawn too':20}{'McNemar p':>10}")
        for rival, row in rows.items():
            p = "-" if row["mcnemar_p"] is None else f"{row['mcnemar_p']:.2g}"
            spans = [f"[{low:+.3f}, {high:+.3f}]" for low, high in (row["interval"], row["interval_tasks"])]
            lines.append(f"{rival:22}{row['difference']:+11.3f}  {spans[0]:20}{spans[1]:20}{p:>10}")
    detours = {name: row["two_modes"] for name, row in policies.items() if row["two_modes"]}
    if detours:
        lines.append(
            f"\n{'two ways':12}{'':16}{'best: success  collided  left':>32}{'drawn: success  collided  left  both':>40}"
        )
    for name, by_task in detours.items():
        for task, modes in by_task.items():
            best, drawn = (list(modes.get(key, {}).values()) for key in ("best", "drawn"))
            texts = [f"{_mean(rows, 'success')}  {_mean(rows, 'collided')}  {_mean(rows, 'left')}" for rows in (best, drawn)]
            lines.append(f"{name:12}{task:16}{texts[0]:>32}{texts[1] + '  ' + _mean(drawn, 'both_sides'):>40}")
    lines += [f"failed: {cell['policy']} on {cell['task']}: {cell['error']}" for cell in result["failed"]]
    return "\n".join(lines)


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [row[key] for row in rows if row.get(key) is not None]
    return f"{np.mean(values):.3f}" if values else "-"
