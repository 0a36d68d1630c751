"""Training seeds of a pool: how far runs of one configuration differ, and whether training still pays (`variance`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from robopolicy.ranking.tables import Array, Outcomes
from robopolicy.ranking.variance import seed_variance, variance_components


def training_seeds(
    scores: Array, configs: Sequence[str], runs: Sequence[str], steps: Sequence[int], outcomes: Outcomes | None = None
) -> dict[str, Any]:
    """`seed_variance` of every configuration with several runs or steps, from the scores of checkpoints [C]; plain data.

    configs: the configuration of each, equal for runs that differ in their seed alone. outcomes: of the same checkpoints on the
        same conditions, for the `variance_components` of the last step that all runs of a configuration have.

    {"configs": [{"config", "runs", "steps", ..., "components": {...} or None}]}, or {"not_computed": why}.
    """
    lines = []
    for config in sorted(set(configs)):
        members = [c for c, name in enumerate(configs) if name == config]
        at = {(runs[c], steps[c]): c for c in members}
        seeds = sorted({run for run, _ in at})
        shared = sorted(set.intersection(*({step for run, step in at if run == seed} for seed in seeds)))
        if not shared or len(seeds) * len(shared) < 2:
            continue
        rows = np.array([[at[seed, step] for step in shared] for seed in seeds])
        known = {"config": config, "runs": seeds, "steps": [int(step) for step in shared]}
        lines.append({**known, **asdict(seed_variance(scores[rows])), "components": _components(outcomes, rows[:, -1])})
    if not lines:
        return {"not_computed": "no configuration has two checkpoints of one step or one run"}
    return {"configs": lines}


def _components(outcomes: Outcomes | None, rows: Array) -> dict[str, Any] | None:
    """Of outcomes [M seeds, K conditions], one episode each."""
    if outcomes is None or len(rows) < 2 or len(outcomes.conditions) < 2 or (outcomes.trials != 1).any():
        return None
    return asdict(variance_components(outcomes.successes[rows][:, :, None]))
