"""From cells to figures: success with intervals, paired differences, costs. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robopolicy.ranking.intervals import wilson
from robopolicy.ranking.statistics import (
    bootstrap_weights,
    cluster_bootstrap,
    paired_comparison,
    percentile_interval,
    stream,
)

BASE = "carp"
NUM_BOOTSTRAP = 10_000
DETOUR = "detour"
Cell = Mapping[str, Any]


def summarise(cells: Sequence[Cell], names: Sequence[str], seed: int) -> dict[str, Any]:
    """Every figure of a run but latency.

    The headline `success` of a policy is over all manipulation tasks, each with the same number of episodes. The detours,
    where there are two ways, have a row of their own in `by_task` and `by_kind`; for them see two_modes.py.
    """
    failed = [cell for cell in cells if "error" in cell]
    good = [cell for cell in cells if "error" not in cell]
    best = [cell for cell in good if not cell["repeats"]]
    manipulation = [cell for cell in best if cell["kind"] != DETOUR]
    policies: dict[str, dict[str, Any]] = {}
    for name in names:
        every = [cell for cell in best if cell["policy"] == name]
        own = [cell for cell in every if cell["kind"] != DETOUR] or every  # a run of detours alone
        if not own:
            continue
        policies[name] = {
            **_rate(own),
            "num_tasks": len({cell["task"] for cell in own}),
            "params": int(np.median([cell["cost"]["params"] for cell in own])),
            "train_cpu_s": float(np.mean([cell["cost"]["cpu_s"] for cell in own])),
            "train_wall_s": float(np.mean([cell["cost"]["wall_s"] for cell in own])),
            "by_kind": {k: _rate([c for c in every if c["kind"] == k]) for k in dict.fromkeys(c["kind"] for c in every)},
            "by_task": {t: _by_task([c for c in every if c["task"] == t]) for t in dict.fromkeys(c["task"] for c in every)},
        }
    result: dict[str, Any] = {"policies": policies, "failed": failed}
    if BASE in policies:
        rivals = [name for name in policies if name != BASE]
        result["paired"] = {r: paired(manipulation, r, seed) for r in rivals}
    return result


def _rate(cells: Sequence[Cell]) -> dict[str, Any]:
    """Success with its Wilson interval over all episodes of the cells."""
    found = share([outcome["success"] for cell in cells for outcome in cell["outcomes"]])
    assert found is not None
    return {"success": found["share"], "success_ci": found["ci"], "episodes": found["of"]}


def share(values: Sequence[bool]) -> dict[str, Any] | None:
    """The share of true values with its Wilson interval; None where there are no values."""
    if not values:
        return None
    low, high = wilson(sum(values), len(values))
    return {"share": float(np.mean(values)), "ci": [float(low), float(high)], "of": len(values)}


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


def paired(cells: Sequence[Cell], rival: str, seed: int) -> dict[str, Any]:
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
    rows = {rival: row for rival, row in result.get("paired", {}).items() if row}
    if rows:
        lines.append(f"\n{'carp minus':22}{'difference':>11}  {'95 % interval':20}{'tasks drawn too':20}{'McNemar p':>10}")
    for rival, row in rows.items():
        p = "-" if row["mcnemar_p"] is None else f"{row['mcnemar_p']:.2g}"
        spans = [f"[{low:+.3f}, {high:+.3f}]" for low, high in (row["interval"], row["interval_tasks"])]
        lines.append(f"{rival:22}{row['difference']:+11.3f}  {spans[0]:20}{spans[1]:20}{p:>10}")
    lines += [f"failed: {cell['policy']} on {cell['task']}: {cell['error']}" for cell in result["failed"]]
    return "\n".join(lines)
